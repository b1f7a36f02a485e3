"""Experiments on a real cluster: each kind of verdict, and whoever dies in the middle."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SESSION_MS
from tests.kafka.steps import end_everything
from tests.support import wait_until
from trogdor_bus.faults.stream import StreamSpec
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader
from trogdor_bus.kafka.topics import Topics
from trogdor_bus.lab.kafka_lab import KafkaLab

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
LEADER, FOLLOWER = "leader($stream, 0)", "one-of(follower($stream, 0))"
KILL = {"class": "kafka-kill-leader", "topic": "$stream", "durationMs": 2000}
FREEZE = {"class": "process-stop", "nodes": [FOLLOWER], "match": "kafka.Kafka", "durationMs": 1000}
QUICK = {"chaosMs": 1000, "intervalMs": 1000, "baselineMs": 1000, "quietMs": 1000, "maxFaults": 1}


@pytest.fixture
def lab(made_kafka_lab: KafkaLab) -> Iterator[KafkaLab]:
    """The lab, whole before and after; no test leaves a topic, a fault or a program."""
    yield made_kafka_lab
    end_everything(made_kafka_lab)
    with Reader(access(made_kafka_lab)) as reader:
        wait_until(lambda: not list(reader.read().broken()), 120, "every replica to be in sync again")
    with Topics(access(made_kafka_lab)) as topics:
        assert topics.named(StreamSpec().topic_prefix) == []


def access(lab: KafkaLab) -> Access:
    return Access(lab.cluster.bootstrap_inside)


def spec(**fields: Any) -> str:
    return json.dumps({"class": "experiment", "fault": FREEZE, **QUICK, **fields})


class Judged:
    """What a run left: its exit code, its result, and the reasons by kind."""

    def __init__(self, code: int, result: dict[str, Any]) -> None:
        self.code, self.result = code, result
        self.reasons = {reason["kind"]: reason["text"] for reason in result["reasons"]}
        self.verdict, self.findings = result["verdict"], result["findings"]
        for fault in result["faults"]:
            print(f"fault {fault['number']} {fault['target']}: new leader {fault['newLeaderMs']} ms", end=", ")
            print(f"whole {fault['recoveredMs']} ms after its end; {[one['text'] for one in fault['evidence']]}")
        print(f"{self.verdict} {self.reasons} gaps {result['gaps'][:2]} findings {self.findings}")

    @property
    def fault(self) -> dict[str, Any]:
        found: dict[str, Any] = self.result["faults"][0]
        return found


def run(lab: KafkaLab, given: str, tmp_path: Path, *options: str, file: str = "-") -> Judged:
    argv = ["experiment", "run", file, "--out", str(tmp_path / "out"), "--json", *options]
    done = lab.trogdor(*argv, given=given, timeout_s=350)
    assert done.returncode in (0, 1, 5, 6), done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json",
        "chaosresult.yaml",
        "junit.xml",
        "report.html",
    }
    found = Judged(done.returncode, json.loads(done.stdout))
    assert found.code == {"Pass": 0, "Fail": 1, "Error": 5, "Stopped": 6}[found.verdict]
    return found


def begin(lab: KafkaLab, given: str, task: str) -> None:
    """Start an experiment, and return when its first fault is active."""
    done = lab.trogdor("experiment", "run", "-", "--id", task, "--no-wait", given=given)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: active(lab, f"{task}-f1"), 90, f"the fault of {task} to be active")


def active(lab: KafkaLab, task: str) -> bool:
    done = lab.trogdor("show", task, "--json")
    return done.returncode == 0 and bool(json.loads(done.stdout)["active"])


def shown(lab: KafkaLab, task: str) -> Judged:
    done = lab.trogdor("experiment", "show", task, "--follow", "--json", timeout_s=200)
    return Judged(done.returncode, json.loads(done.stdout))


def stopped_processes(lab: KafkaLab) -> list[str]:
    """Return the nodes whose broker is frozen."""
    frozen = []
    for node in lab.nodes:
        text = Path(f"/proc/{lab.cluster.pid(node)}/stat").read_text()
        frozen += [node] if text.rpartition(")")[2].split()[0] == "T" else []
    return frozen


# --- each verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_the_leader_is_killed_every_interval_and_nothing_is_lost(lab: KafkaLab, tmp_path: Path) -> None:
    sets = [f"--set={name}" for name in ("chaosMs=40000", "intervalMs=12000", "maxFaults=2", "baselineMs=3000")]
    found = run(lab, "", tmp_path, *sets, file=str(ROOT / "examples" / "kafka-leader-kill.yaml"))
    assert found.verdict == "Pass", found.reasons
    assert len(found.result["faults"]) == 2
    for fault in found.result["faults"]:
        assert {one["kind"]: one["held"] for one in fault["evidence"]} == {
            "held-role": True,
            "process-stopped": True,
            "leader-moved": True,
        }
        assert 0 < fault["newLeaderMs"] < SESSION_MS + 10_000
        assert fault["recoveredMs"] > 0
        assert "leader(" in fault["line"]
    assert found.findings["lost"]["count"] == found.findings["duplicated"]["count"] == 0
    assert found.findings["acked"] > 2_000
    assert found.result["timeouts"]["broker.session.timeout.ms"] == SESSION_MS
    assert len(found.result["leaderChanges"]) >= 2
    assert found.result["topic"]["deleted"]


def test_one_replica_and_a_broker_that_stays_down_is_a_gap_inside_the_fault(lab: KafkaLab, tmp_path: Path) -> None:
    fault = {**KILL, "durationMs": 10_000, "signal": "SIGTERM", "graceMs": 20_000}
    stream = {"replicationFactor": 1, "consumerTimeoutMs": 5000}
    found = run(lab, spec(fault=fault, stream=stream), tmp_path)
    assert found.verdict == "Fail", found.reasons
    longest = found.result["gaps"][0]
    assert longest["endMs"] - longest["startMs"] >= 10_000
    assert found.fault["startMs"] <= longest["startMs"] + 1000
    assert "more than consumerTimeoutMs = 5000" in found.reasons["gap"] and "during fault 1" in found.reasons["gap"]
    assert found.findings["lost"]["count"] == 0


def test_a_killed_leader_is_missed_too_late_for_an_impatient_consumer(lab: KafkaLab, tmp_path: Path) -> None:
    found = run(lab, spec(fault=KILL, stream={"consumerTimeoutMs": 3000}), tmp_path)
    assert found.verdict == "Fail" and set(found.reasons) == {"gap"}, found.reasons
    longest = found.result["gaps"][0]
    assert longest["endMs"] - longest["startMs"] > 3000
    assert found.findings["lost"]["count"] == 0


@pytest.mark.core
def test_acknowledged_by_a_leader_that_is_cut_off_is_lost_and_counted(lab: KafkaLab, tmp_path: Path) -> None:
    cut = {"class": "directed-partition", "from": [LEADER], "to": [f"not({LEADER})"], "durationMs": 20_000}
    found = run(lab, spec(fault=cut, stream={"acks": "1"}, evidence=["cut-off", "leader-moved"]), tmp_path)
    assert found.verdict == "Fail", found.reasons
    seen = found.findings
    assert seen["lost"]["count"] > 0 and "lost" in found.reasons
    again = seen["read"] - seen["indeterminateFound"] - seen["foreign"]["count"] - seen["duplicated"]["count"]
    assert seen["lost"]["count"] == seen["acked"] - again
    assert all(one["held"] for one in found.fault["evidence"])


def test_the_active_controller_is_frozen_and_another_one_is_seen(lab: KafkaLab, tmp_path: Path) -> None:
    found = run(lab, spec(fault={"class": "kafka-stop-controller", "durationMs": 8000}), tmp_path)
    assert found.verdict == "Pass", found.reasons
    held = {one["kind"]: one["held"] for one in found.fault["evidence"]}
    assert held == {"held-role": True, "process-stopped": True, "controller-moved": True}
    assert found.fault["target"].startswith("controller ") and found.fault["newLeaderMs"] > 0
    assert found.result["leaderChanges"][0]["partition"] == -1


def test_firing_at_who_does_not_lead_is_not_effective(lab: KafkaLab, tmp_path: Path) -> None:
    found = run(lab, spec(evidence=["leader-moved"]), tmp_path)
    assert found.verdict == "Error", found.reasons
    assert "no partition that is watched was led by broker" in found.reasons["not-effective"]


def test_a_bootstrap_where_nobody_is_an_error(lab: KafkaLab, tmp_path: Path) -> None:
    nobody = f"{lab.cluster.bootstrap_inside.partition(':')[0]}:1"
    found = run(lab, spec(), tmp_path, "--cluster", nobody)
    assert found.verdict == "Error" and found.result["failStep"] == "pre-check", found.result
    assert nobody in found.reasons["broke"]


def test_the_guard_is_an_error_that_names_the_rule(lab: KafkaLab, tmp_path: Path) -> None:
    found = run(lab, spec(fault={**FREEZE, "nodes": ["all"]}), tmp_path)
    assert found.verdict == "Error", found.reasons
    assert "--allow" in found.reasons["not-effective"]


def test_a_probe_of_each_type_and_one_that_halts(lab: KafkaLab, tmp_path: Path) -> None:
    address = lab.cluster.bootstrap_inside.split(",")[0]
    probes = [
        {"name": "whole", "type": "kafka"},
        {"name": "stream", "type": "kafka", "topic": "$stream", "mode": "before"},
        {"name": "port", "type": "tcp", "address": address},
        {
            "name": "nobody",
            "type": "tcp",
            "address": f"{address.rpartition(':')[0]}:1",
            "mode": "continuous",
            "halt": True,
        },
    ]
    found = run(lab, spec(probes=probes, baselineMs=5000), tmp_path)
    assert found.verdict == "Fail", found.reasons
    passed = {one["name"]: one["passed"] for one in found.result["probes"]}
    assert passed == {"whole": None, "stream": True, "port": None, "nobody": False}
    assert found.result["halted"].startswith("probe nobody")


def test_a_chaos_engine_runs_as_it_was_written(lab: KafkaLab, tmp_path: Path) -> None:
    sets = [f"--set={name}" for name in ("chaosMs=15000", "intervalMs=15000", "baselineMs=2000", "quietMs=2000")]
    found = run(lab, "", tmp_path, *sets, file=str(ROOT / "examples" / "litmus" / "charts-engine.yaml"))
    assert found.verdict == "Pass", found.reasons
    assert found.result["notUsedHere"]
    assert 0 < found.fault["newLeaderMs"] < SESSION_MS + 5_000


# --- whoever dies, and whoever stops it -------------------------------------------------------------------------------


def test_the_command_is_killed_and_the_experiment_goes_on(lab: KafkaLab) -> None:
    watching = lab.begin_trogdor("experiment", "run", str(ROOT / "tests" / "kafka" / "quick.yaml"), "--id", "on")
    wait_until(lambda: lab.trogdor("experiment", "show", "on").returncode == 0, 30, "the experiment to be known")
    watching.kill()
    watching.wait()
    found = shown(lab, "on")
    assert (found.code, found.verdict) == (0, "Pass"), found.reasons


@pytest.mark.core
def test_an_abort_stops_it_and_nothing_is_left(lab: KafkaLab) -> None:
    begin(lab, spec(fault={**FREEZE, "durationMs": 60_000}, chaosMs=60_000, intervalMs=60_000), "aborted")
    assert stopped_processes(lab)
    try:
        aborted = lab.trogdor("abort", timeout_s=90)
        assert aborted.returncode == 0, aborted.stderr
        assert not stopped_processes(lab)
        found = shown(lab, "aborted")
        assert (found.code, found.verdict) == (6, "Stopped"), found.reasons
        assert found.findings["acked"] > 0 and found.findings["lost"]["count"] == 0
        refused = lab.trogdor("experiment", "run", "-", given=spec())
        assert refused.returncode == 2 and "trogdor-bus resume" in refused.stderr
    finally:
        assert lab.trogdor("resume").returncode == 0


def test_the_coordinator_is_killed_and_its_faults_end_with_their_lease(lab: KafkaLab) -> None:
    begin(lab, spec(fault={**FREEZE, "durationMs": 120_000}, chaosMs=120_000, intervalMs=120_000), "orphan")
    assert stopped_processes(lab)
    lab.end(lab.process("coordinator", "coordinator"), signal.SIGKILL)
    wait_until(lambda: not stopped_processes(lab), 60, "the fault to end with its lease")
    lab.start_coordinator()
    lab.wait_ready()
    wait_until(lambda: lab.trogdor("experiment", "show", "orphan").returncode == 5, 30, "its verdict")
    found = shown(lab, "orphan")
    assert found.verdict == "Error" and "the coordinator was restarted" in found.reasons["broke"]
    wait_until(lambda: lab.ask("show", "orphan-f1")["state"] == "DONE", 30, "its fault to be known as ended")


def test_gc_sweeps_what_a_killed_program_left(lab: KafkaLab) -> None:
    begin(lab, spec(fault={**FREEZE, "durationMs": 30_000}, chaosMs=30_000, intervalMs=30_000), "left")
    coordinator = lab.process("coordinator", "coordinator")
    below = psutil.Process(coordinator.pid).children(recursive=True)
    [program] = [process for process in below if "trogdor_bus.experiment" in process.cmdline()]
    program.kill()
    wait_until(lambda: not stopped_processes(lab), 20, "its fault to be stopped")
    found = shown(lab, "left")
    assert found.verdict == "Error" and "was killed by SIGKILL" in found.reasons["broke"]
    with Topics(access(lab)) as topics:
        [topic] = topics.named(StreamSpec().topic_prefix)
    young = lab.ask("experiment", "gc")
    assert young == {"deleted": [], "spared": [topic.name], "failed": []}
    assert lab.ask("experiment", "gc", "--older-than", "0s", "--dry-run")["deleted"] == [topic.name]
    assert lab.ask("experiment", "gc", "--older-than", "0s")["deleted"] == [topic.name]
    assert lab.ask("experiment", "gc", "--older-than", "0s") == {"deleted": [], "spared": [], "failed": []}
