"""The command line of experiments against a real coordinator that reaches no Kafka: every end but Pass and Fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.command import Ran, clean_environment, run
from tests.cli.test_aborts import Site
from tests.support import wait_until

pytestmark = pytest.mark.daemons

SPEC: dict[str, Any] = {
    "class": "experiment",
    "name": "nowhere",
    "fault": {"class": "process-stop", "durationMs": 1000, "nodes": ["node1"], "port": 1},
    "chaosMs": 1000,
    "intervalMs": 1000,
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.start("coordinator")
        wait_until(lambda: made.run("status").code == 0, 30, "the coordinator to answer")
        wait_until(lambda: not made.json("status")["listening"], 30, "the coordinator to lead")
        yield made
    finally:
        made.down()


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield f"127.0.0.1:{held.getsockname()[1]}"


def spec(**fields: Any) -> str:
    return json.dumps({**SPEC, **fields})


def programs(site: Site) -> list[psutil.Process]:
    """Return the programs of experiments that the coordinator started."""
    children = psutil.Process(site.daemons["coordinator"].pid).children(recursive=True)
    return [
        child
        for child in children
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE and "trogdor_bus.experiment" in child.cmdline()
    ]


def test_a_coordinator_that_knows_no_cluster_is_an_error_with_all_its_files(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = site.run("experiment", "run", spec(), "--id", "x", "--out", str(out))
    assert ran.code == 5, ran
    assert "nobody knows where the cluster under test is" in ran.out and "Verdict: Error" in ran.out
    result = json.loads((out / "result.json").read_text())
    assert (result["id"], result["verdict"], result["failStep"]) == ("x", "Error", "pre-check")
    names = {"result.json", "chaosresult.yaml", "junit.xml", "report.html"}
    assert {path.name for path in out.iterdir()} == names and all(str(out / name) in ran.out for name in names)
    shown = site.run("experiment", "show", "x", "--json")
    assert (shown.code, json.loads(shown.out)) == (5, result)
    listed = site.run("experiment", "list")
    assert "x" in listed.out and "Error" in listed.out, listed
    assert site.json("experiment", "list")["experiments"] == [{"id": "x", "state": "DONE", "verdict": "Error"}]
    assert site.run("show", "x").code == 0
    again = site.run("experiment", "run", spec(), "--id", "x")
    assert (again.code, "there is a task x already" in again.err) == (2, True), again


def test_a_cluster_that_nobody_answers_for_is_an_error(site: Site) -> None:
    ran = site.run(
        "experiment", "run", spec(), "--cluster", "127.0.0.1:1", "--json", "--out", str(site.directory / "o")
    )
    assert ran.code == 5, ran
    result = json.loads(ran.out)
    assert result["spec"]["bootstrap"] == "127.0.0.1:1"
    assert result["errorOutput"]["code"] == "STATUS_CHECKS_ERROR"
    assert "127.0.0.1:1" in result["errorOutput"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}"], "class: the field is missing"),
        (['{"class": "noop", "durationMs": 1}'], "is a spec of noop, no experiment"),
        (["nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        ([spec(), "--set", "chaosMs"], "is no FIELD=VALUE"),
        ([spec(), "--set", "chaosMs=0"], "chaosMs: leaves no time for a fault"),
        ([spec(), "--set", "name.x=1"], "name holds no fields"),
        ([spec(), "--set", "stream.rats=1"], "stream.rats: unknown field (mend its name, or remove it)"),
        ([spec(), "--cluster", "no port"], "bootstrap: is not a list of HOST:PORT"),
        ([spec(), "--id", "a/b"], "holds a slash"),
    ],
)
def test_what_cannot_be_meant_is_said_without_a_coordinator(arguments: list[str], said: str) -> None:
    ran = run("experiment", "run", *arguments, "--insecure", TROGDOR_BUS_COORDINATOR="127.0.0.1:1")
    assert ran.code == 2 and said in ran.err, ran
    assert "Traceback" not in ran.err


def test_where_it_may_not_connect_is_said_before_it_begins(site: Site) -> None:
    probes = [{"name": "shop", "type": "http", "url": "http://192.0.2.1/health"}]
    for fields in ({"probes": probes}, {"bootstrap": "192.0.2.1:80"}):
        ran = site.run("experiment", "run", spec(**fields), "--id", "far")
        assert ran.code == 2 and "start it with --allow-probe 192.0.2.1:80" in ran.err, ran
    assert site.run("show", "far").code == 2


def test_nobody_answers() -> None:
    ran = run("experiment", "run", spec(), "--insecure", TROGDOR_BUS_COORDINATOR="127.0.0.1:1")
    assert ran.code == 4 and "is one running there?" in ran.err, ran


def test_unknown_ids(site: Site) -> None:
    ran = site.run("experiment", "show", "nothing")
    assert (ran.code, 'No task with ID "nothing" exists' in ran.err) == (2, True), ran
    assert "There are no experiments." in site.run("experiment", "list").out


def test_an_interrupted_command_leaves_it_running_and_a_stop_ends_it(site: Site, silent: str) -> None:
    watching = begin(site, "experiment", "run", spec(), "--id", "x", "--cluster", silent)
    await_line(watching, "pre-check")  # which lasts no longer than 5 s here
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 130, (out, err)
    assert "experiment x goes on" in err and "experiment show x --follow" in err and "stop x" in err
    assert [process.is_running() for process in programs(site)] == [True]
    following = begin(site, "experiment", "show", "x", "--follow", "--out", str(site.directory / "out"))
    assert site.run("stop", "x").code == 0
    out, err = following.communicate(timeout=60)
    result = json.loads((site.directory / "out" / "result.json").read_text())
    assert following.returncode in (5, 6), (out, err)  # nobody may have answered in the same moment
    assert result["verdict"] in ("Error", "Stopped")
    wait_until(lambda: not programs(site), 10, "its program to be gone")


def test_a_command_that_is_killed_costs_nothing(site: Site, silent: str) -> None:
    watching = begin(site, "experiment", "run", spec(), "--id", "x", "--cluster", silent)
    await_line(watching, "pre-check")
    watching.kill()
    watching.communicate(timeout=20)
    ran = site.run("experiment", "show", "x", "--follow")
    assert ran.code == 5 and "Verdict: Error" in ran.out, ran


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_coordinator_says_how_it_ended(site: Site, silent: str, number: signal.Signals) -> None:
    ran = site.run("experiment", "run", spec(), "--id", "x", "--cluster", silent, "--no-wait")
    assert ran.code == 0 and "experiment show x --follow" in ran.out, ran
    wait_until(lambda: programs(site), 20, "its program")
    [program] = programs(site)
    site.end("coordinator", number)
    wait_until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, 30, "its program to end")
    site.start("coordinator")
    wait_until(lambda: site.run("experiment", "show", "x").code == 5, 30, "its verdict")
    ran = site.run("experiment", "show", "x")
    assert "Verdict: Error" in ran.out and "the coordinator was restarted" in ran.out, ran
    assert site.json("show", "x")["error"].startswith("the coordinator was restarted")


def test_its_program_that_is_killed_is_an_error(site: Site, silent: str) -> None:
    site.run("experiment", "run", spec(), "--id", "x", "--cluster", silent, "--no-wait")
    wait_until(lambda: programs(site), 20, "its program")
    os.kill(programs(site)[0].pid, signal.SIGKILL)
    ran = site.run("experiment", "show", "x", "--follow")
    assert ran.code == 5 and "was killed by SIGKILL before it had a verdict" in ran.out, ran


def await_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, "it ended before"


def begin(site: Site, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trogdor_bus", *arguments, *site.trust],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=site.directory,
        env=clean_environment(TROGDOR_BUS_COORDINATOR=site.dialled),
    )


def test_gc_needs_a_cluster(site: Site) -> None:
    ran: Ran = site.run("experiment", "gc")
    assert ran.code == 2 and "which cluster?" in ran.err, ran
    ran = site.run("experiment", "gc", "--cluster", "127.0.0.1:1")
    assert ran.code == 1 and "127.0.0.1:1" in ran.err, ran
