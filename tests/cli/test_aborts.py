"""Abort and resume, against real daemons, and in the place of a coordinator that is dead."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.command import Ran, clean_environment, run
from tests.cli.test_verbs import NOOP, free_port, start
from tests.support import wait_until

pytestmark = pytest.mark.daemons

_numbers = itertools.count(1)


class Site:
    """A coordinator and agents on this machine that a test starts, kills and starts again, and victims for faults."""

    def __init__(self, directory: Path, *, keys: bool = False, bind: str = "127.0.0.1") -> None:
        self.directory, self.bind, self.port = directory, bind, free_port()
        self.trust = ["--keys", str(directory / "keys")] if keys else ["--insecure"]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.victims: list[subprocess.Popen[bytes]] = []

    @property
    def dialled(self) -> str:
        return f"{'127.0.0.1' if self.bind == '0.0.0.0' else self.bind}:{self.port}"

    @property
    def state_dir(self) -> Path:
        return self.directory / "coordinator"

    def command(self, name: str) -> list[str]:
        if name == "coordinator":
            return ["coordinator", "--bind", self.bind, "--port", str(self.port)]
        return ["agent", "--node", name, "--coordinator", self.dialled]

    def start(self, name: str) -> None:
        command = [*self.command(name), "--state-dir", str(self.directory / name)]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-m", "trogdor_bus", *command, *self.trust],
                stdout=log,
                stderr=log,
                env=clean_environment(**self.environment()),
            )

    def environment(self) -> dict[str, str]:
        """Return the variables that daemons have beside."""
        return {}

    def up(self, *nodes: str) -> None:
        self.start("coordinator")
        if "--insecure" not in self.trust:
            wait_until((self.directory / "keys" / "member.json").exists, 30, "the keys")
        for node in nodes:
            self.start(node)
        self.await_alive(*nodes)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        self.daemons[name].send_signal(number)
        return self.daemons[name].wait(20)

    def down(self) -> None:
        for daemon in self.daemons.values():
            for process in self.family(daemon):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
            if daemon.poll() is None:
                daemon.terminate()
        for daemon in self.daemons.values():
            daemon.wait(20)
        for victim in self.victims:
            victim.kill()
            victim.wait()

    @staticmethod
    def family(daemon: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Return a daemon and its children: a guard comes first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            guard = psutil.Process(daemon.pid)
            return [guard, *guard.children()]
        return []

    def run(self, *arguments: str, **environment: str) -> Ran:
        return run(*arguments, *self.trust, TROGDOR_BUS_COORDINATOR=self.dialled, **environment)

    def json(self, *arguments: str) -> Any:
        ran = self.run(*arguments, "--json")
        assert ran.code == 0, ran
        return json.loads(ran.out)

    def nodes(self) -> dict[str, dict[str, Any]]:
        ran = self.run("nodes", "--json")
        return {node["name"]: node for node in json.loads(ran.out)["nodes"]} if ran.code == 0 else {}

    def await_alive(self, *nodes: str) -> None:
        def alive() -> bool:
            heard = self.nodes()
            return all(name in heard and heard[name]["alive"] for name in nodes)

        wait_until(lambda: alive() and not self.json("status")["listening"], 30, f"{nodes} to be heard")

    def freeze(self, node: str, task: str = "", *, wait: bool = True) -> tuple[str, psutil.Process]:
        """Freeze a process of our own for a minute; return the id of the task and the process."""
        number = next(_numbers)
        victim = subprocess.Popen(["sleep", "3600"])
        self.victims.append(victim)
        pid_file = self.directory / f"{number}.pid"
        pid_file.write_text(f"{victim.pid}")
        spec = {"class": "process-stop", "durationMs": 60_000, "nodes": [node], "pidFile": str(pid_file)}
        task, process = task or f"freeze-{number}", psutil.Process(victim.pid)
        ran = self.run("submit", json.dumps(spec), "--id", task)
        assert ran.code == 0, ran
        if wait:
            wait_until(lambda: self.json("show", task)["active"], 20, f"{task} to be active")
            assert process.status() == psutil.STATUS_STOPPED
        return task, process

    def noop(self, node: str = "") -> Ran:
        """Perform a task that does nothing on all nodes, or ask whether a fault could start on one."""
        if not node:
            return self.run("submit", NOOP % 100, "--wait")
        spec = {"class": "port-block", "durationMs": 100, "nodes": [node], "ports": [1]}
        return self.run("submit", json.dumps(spec), "--dry-run")


def runs(process: psutil.Process) -> bool:
    return bool(process.status() != psutil.STATUS_STOPPED)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.up("node1", "node2")
        yield made
    finally:
        made.down()


@pytest.fixture
def cluster(shared: Site) -> Iterator[Site]:
    """The shared site; nothing is aborted before a test."""
    yield shared
    shared.await_alive("node1", "node2")
    assert shared.run("resume").code == 0


def test_an_abort_ends_everything_and_nothing_starts_until_it_is_resumed(cluster: Site) -> None:
    (first, one), (second, two) = cluster.freeze("node1"), cluster.freeze("node2")
    ran = cluster.run("abort")
    assert (ran.code, ran.err) == (0, ""), ran
    assert runs(one) and runs(two)
    begun, *told, end = ran.out.splitlines()
    assert begun == "Aborting everything: every fault ends, nothing starts until `trogdor-bus resume`."
    assert sorted(told) == ["  node1: ended, nothing is left", "  node2: ended, nothing is left"]
    assert end == "Aborted: 2 of 2 nodes hold nothing and start nothing."
    for task in (first, second):
        shown = cluster.json("show", task)
        assert (shown["state"], shown["outcome"], shown["cancelled"]) == ("DONE", "aborted", True)
        assert "trogdor-bus abort" in shown["error"]
    listed = [line.split()[:2] for line in cluster.run("nodes").out.splitlines()]
    assert [row for row in listed if row[0].startswith("node")] == [["node1", "aborted"], ["node2", "aborted"]]
    for refused in (cluster.noop(), cluster.noop("node1")):
        assert refused.code == 2
        assert refused.err.startswith("error: aborted: nothing may start")
        assert "until `trogdor-bus resume`" in refused.err
    resumed = cluster.run("resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.out == "Resumed: faults may start again on node1, node2.\n"
    assert cluster.noop().code == 0
    again = cluster.run("resume")
    assert (again.code, again.out) == (0, "Nothing was aborted.\n")


def test_an_abort_as_json_and_once_more(cluster: Site) -> None:
    _, victim = cluster.freeze("node2")
    ran = cluster.run("abort", "--json")
    assert ran.code == 0 and runs(victim)
    told = json.loads(ran.out)
    nothing: dict[str, Any] = {"dirty": [], "unproven": [], "strays": []}
    ended = [{"node": name, "state": "ended", **nothing} for name in ("node1", "node2")]
    assert told == {"latch": told["latch"], "leaseMs": 30_000, "nodes": ended, "unproven": [], "listening": False}
    assert {node["latch"] for node in cluster.nodes().values()} == {told["latch"]}
    assert cluster.json("abort") == told  # the first latch stays
    assert cluster.json("resume") == {"nodes": ["node1", "node2"], "waiting": [], "silent": []}
    assert cluster.json("resume") == {"nodes": [], "waiting": [], "silent": []}


def test_one_node_is_aborted_and_the_other_goes_on(cluster: Site) -> None:
    (_, here), (there, other) = cluster.freeze("node1"), cluster.freeze("node2")
    ran = cluster.run("abort", "--node", "node1")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1:] == [
        "  node1: ended, nothing is left",
        "Aborted: 1 of 1 nodes hold nothing and start nothing.",
    ]
    assert runs(here) and not runs(other)
    assert cluster.json("show", there)["state"] == "RUNNING"
    refused = cluster.noop("node1")
    assert refused.code == 2 and "nothing may start on node1 until" in refused.err
    assert cluster.noop("node2").code == 0
    assert cluster.run("abort").code == 0
    assert runs(other)
    refused = cluster.run("resume", "--node", "node1")
    assert (refused.code, refused.out) == (2, "")
    assert "every node is aborted, not node1 alone" in refused.err and "without --node" in refused.err
    assert cluster.run("resume").code == 0
    assert cluster.run("abort", "--node", "node2").code == 0
    assert cluster.run("resume", "--node", "node2").out == "Resumed: faults may start again on node2.\n"
    assert cluster.noop("node2").code == 0


@pytest.mark.parametrize("verb", ["abort", "resume"])
def test_an_unknown_node_exits_2(cluster: Site, verb: str) -> None:
    ran = cluster.run(verb, "--node", "nodeX")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: no node is called nodeX; `trogdor-bus nodes` lists the nodes\n"
    assert cluster.noop().code == 0


def test_a_silent_agent_that_holds_a_fault_is_no_proof(cluster: Site) -> None:
    _, victim = cluster.freeze("node2")
    family = Site.family(cluster.daemons["node2"])
    assert len(family) == 2
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: not cluster.nodes()["node2"]["alive"], 20, "node2 to be called silent")
        ran = cluster.run("abort")
        assert (ran.code, ran.err) == (3, ""), ran
        assert "  node1: ended, nothing is left" in ran.out and "  node2: silent" in ran.out
        assert ran.out.splitlines()[-2:] == [
            "Aborted: 1 of 2 nodes hold nothing and start nothing.",
            "No proof from node2. An agent that runs there ends its faults by itself, at the latest 30 s (its lease) "
            "after the last word that it heard; it is told of the abort when it is heard again.",
        ]
        told = cluster.run("abort", "--json")
        assert (told.code, json.loads(told.out)["unproven"]) == (3, ["node2"])
        assert not runs(victim)
    finally:
        for process in family:
            process.send_signal(signal.SIGCONT)
    wait_until(lambda: cluster.nodes()["node2"]["atRest"], 20, "node2 to hear of the abort")
    assert runs(victim)
    assert cluster.run("abort").code == 0


def test_the_latch_is_kept_over_restarts_of_agent_and_coordinator(cluster: Site) -> None:
    latch = cluster.json("abort")["latch"]
    assert json.loads((cluster.directory / "node1" / "latch.json").read_text()) == {"id": latch}
    assert cluster.end("node1") == 0
    cluster.start("node1")
    assert cluster.end("coordinator") == 0
    cluster.start("coordinator")
    cluster.await_alive("node1", "node2")
    assert {node["latch"] for node in cluster.nodes().values()} == {latch}
    assert "this node is aborted" in (cluster.directory / "node1.log").read_text()
    assert cluster.noop().code == 2
    assert cluster.run("resume").code == 0
    assert not (cluster.directory / "node1" / "latch.json").exists()
    assert cluster.noop().code == 0


@pytest.mark.matrix
def test_a_frozen_coordinator_is_not_replaced_but_named(cluster: Site) -> None:
    _, victim = cluster.freeze("node1")
    coordinator = cluster.daemons["coordinator"]
    coordinator.send_signal(signal.SIGSTOP)
    try:
        ran = cluster.run("abort", "--state-dir", str(cluster.state_dir))
        assert (ran.code, ran.out) == (4, ""), ran
        assert f"runs (process {coordinator.pid}), but does not answer" in ran.err
        assert f"kill -KILL {coordinator.pid}, then abort again" in ran.err
        assert "What happens now" in ran.err and "30 s" in ran.err
        elsewhere = cluster.run("abort", "--state-dir", str(cluster.directory / "other"))
        assert elsewhere.code == 4 and "its place cannot be taken" in elsewhere.err
        assert not runs(victim)
    finally:
        coordinator.send_signal(signal.SIGCONT)
    cluster.await_alive("node1")
    assert cluster.run("abort").code == 0
    assert runs(victim)


@pytest.mark.parametrize(
    ("keys", "bind", "aimed"),
    [
        (True, "127.0.0.1", "127.0.0.1"),
        pytest.param(False, "127.0.0.2", "127.0.0.1", marks=pytest.mark.matrix),
        pytest.param(True, "0.0.0.0", "localhost", marks=pytest.mark.matrix),
    ],
)
def test_abort_takes_the_place_of_a_dead_coordinator(tmp_path: Path, keys: bool, bind: str, aimed: str) -> None:
    site = Site(tmp_path, keys=keys, bind=bind)
    try:
        site.up("node1")
        task, victim = site.freeze("node1")
        site.end("coordinator", signal.SIGKILL)
        place = ["--coordinator", f"{aimed}:{site.port}", "--state-dir", str(site.state_dir)]
        ran = site.run("abort", *place)
        assert ran.code == 0, ran
        assert runs(victim)
        assert ran.out.splitlines() == [
            f"No coordinator answers at {aimed}:{site.port}: taking its place at zmq://{bind}:{site.port}.",
            "Aborting everything: every fault ends, nothing starts until `trogdor-bus resume`.",
            "  node1: ended, nothing is left",
            "Aborted: 1 of 1 nodes hold nothing and start nothing.",
        ]
        assert "Traceback" not in ran.err
        site.start("coordinator")
        site.await_alive("node1")
        shown = site.json("show", task)
        assert (shown["state"], shown["outcome"]) == ("DONE", "aborted")
        refused = site.noop()
        assert refused.code == 2 and "aborted" in refused.err
        assert site.run("resume").out == "Resumed: faults may start again on node1.\n"
        assert site.noop().code == 0
    finally:
        site.down()


@pytest.mark.matrix
def test_in_the_place_of_a_dead_coordinator_one_node_that_is_silent_and_then_everything(site: Site) -> None:
    site.up("node1", "node2")
    (_, one), (_, two) = site.freeze("node1"), site.freeze("node2")
    family = Site.family(site.daemons["node1"])
    for process in family:
        process.send_signal(signal.SIGSTOP)
    site.end("coordinator", signal.SIGKILL)
    place = ["--state-dir", str(site.state_dir)]
    ran = site.run("abort", "--node", "node1", "--json", *place)
    assert ran.code == 3, ran
    told = json.loads(ran.out)
    assert [(node["node"], node["state"]) for node in told["nodes"]] == [("node1", "silent")]
    assert told["unproven"] == ["node1"] and "may hold task" in told["nodes"][0]["unproven"][0]
    assert not runs(one) and not runs(two)
    for process in family:
        process.send_signal(signal.SIGCONT)
    assert site.run("abort", *place).code == 0
    assert runs(one) and runs(two)


@pytest.mark.matrix
def test_the_place_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    site = Site(tmp_path, keys=True)
    try:
        site.up()
        exported = site.run("keys", "export")
        assert exported.code == 0
        site.end("coordinator", signal.SIGKILL)
        member = tmp_path / "member"
        assert run("keys", "import", "-", "--keys", str(member), stdin=exported.out).code == 0
        aimed = ["--coordinator", site.dialled]
        for keys in (member, tmp_path / "none"):
            ran = run("abort", *aimed, "--keys", str(keys), "--state-dir", str(site.state_dir))
            assert (ran.code, ran.out) == (4, ""), ran
            assert f"only on its own host, with its keys (coordinator.json, not in {keys})" in ran.err
            assert "What happens now" in ran.err and "30 s" in ran.err and "SIGTERM" in ran.err
        other_port = free_port()
        ran = run("abort", "--coordinator", f"127.0.0.1:{other_port}", *site.trust, "--state-dir", str(site.state_dir))
        assert (ran.code, f"was at zmq://{site.dialled}" in ran.err) == (4, True), ran
    finally:
        site.down()


def test_the_place_is_not_taken_of_a_coordinator_of_another_host(tmp_path: Path) -> None:
    ran = run("abort", "--coordinator", f"192.0.2.1:{free_port()}", "--insecure", "--state-dir", str(tmp_path / "new"))
    assert (ran.code, ran.out) == (4, "")
    assert "only on its own host" in ran.err
    assert not (tmp_path / "new").exists()


@pytest.mark.matrix
def test_whoever_takes_the_place_and_hears_nobody_says_so(tmp_path: Path) -> None:
    def begin(*options: str) -> subprocess.Popen[str]:
        where = ["--coordinator", f"127.0.0.1:{free_port()}", "--state-dir", str(tmp_path / f"new{len(options)}")]
        return start("abort", "--insecure", *where, *options)

    everything, one_node = begin(), begin("--node", "node1")
    out, _ = everything.communicate(timeout=60)
    assert (everything.returncode, "No agent was heard within 5 s" in out) == (3, True), out
    _, err = one_node.communicate(timeout=60)
    assert (one_node.returncode, "no node is called node1" in err) == (2, True), err


def test_a_closed_state_directory_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--insecure", "--state-dir", str(tmp_path / "file" / "state")]
    ran = run("abort", *where)
    assert ran.code == 4, ran
    assert "its place cannot be taken" in ran.err and "Traceback" not in ran.err


def test_ctrl_c_while_taking_the_place_ends_it(tmp_path: Path) -> None:
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--insecure", "--state-dir", str(tmp_path / "new")]
    process = start("abort", *where, PYTHONUNBUFFERED="1")
    assert process.stdout and "taking its place" in process.stdout.readline()
    assert "Aborting everything" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err


def test_an_unreadable_latch_counts_and_is_resumed(site: Site) -> None:
    site.up("node1")
    assert site.end("node1") == 0
    (site.directory / "node1" / "latch.json").write_bytes(os.urandom(20))
    site.start("node1")
    site.await_alive("node1")
    assert site.nodes()["node1"]["latch"] == "unreadable"
    assert site.noop("node1").code == 2
    assert site.run("resume").out == "Resumed: faults may start again on node1.\n"
    assert site.noop("node1").code == 0
