"""The client verbs, against a real coordinator and a real agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cli.command import Ran, clean_environment, run
from tests.support import wait_until
from trogdor_bus.bus import Answer
from trogdor_bus.client import CREATE_S, TIMEOUT_S
from trogdor_bus.messages import AnyRequest, CreateTask, Plan, Reply, decode, encode
from trogdor_bus.transports import transport

NOOP = '{"class": "noop", "durationMs": %d}'
NO_MATCH = '{"class": "process-stop", "durationMs": 1000, "nodes": ["node1"], "match": "no process is called this"}'


def free_port() -> int:
    """Return the first of four TCP ports in a row that nobody uses."""
    while True:
        port = random.randrange(20_000, 30_000, 4)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for offset in range(4):
                stack.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trogdor_bus", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**environment),
    )


class Cluster:
    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def run(self, *arguments: str, **environment: str) -> Ran:
        return run(*arguments, "--insecure", TROGDOR_BUS_COORDINATOR=self.address, **environment)

    def json(self, *arguments: str) -> Any:
        ran = self.run(*arguments, "--json")
        assert (ran.code, ran.err) == (0, ""), ran
        return json.loads(ran.out)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start(*arguments, "--insecure", TROGDOR_BUS_COORDINATOR=self.address)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory, port = tmp_path_factory.mktemp("cluster"), free_port()
    found = Cluster(port)
    with contextlib.ExitStack() as stack:
        daemons = []
        for name, arguments in {
            "coordinator": ["coordinator", "--port", str(port)],
            "agent": ["agent", "--node", "node1", "--coordinator", found.address],
        }.items():
            log = stack.enter_context((directory / f"{name}.log").open("w"))
            command = [sys.executable, "-m", "trogdor_bus", *arguments, "--insecure", "--log-json"]
            daemon = subprocess.Popen(
                [*command, "--state-dir", str(directory / name)], stderr=log, env=clean_environment()
            )
            daemons.append(daemon)
            stack.callback(daemon.wait, 20)
            stack.callback(daemon.terminate)
        wait_until(lambda: ready(found) or any(daemon.poll() is not None for daemon in daemons), 30, "the cluster")
        logs = {path.name: path.read_text() for path in directory.glob("*.log")}
        assert all(daemon.poll() is None for daemon in daemons), logs
        yield found
    for line in (directory / "agent.log").read_text().splitlines():
        assert json.loads(line)["level"] != "critical"


def ready(cluster: Cluster) -> bool:
    ran = cluster.run("nodes", "--json")
    if ran.code != 0 or [node.get("alive") for node in json.loads(ran.out)["nodes"]] != [True]:
        return False
    return not cluster.json("status")["listening"]


def wait_for_state(cluster: Cluster, task: str, state: str) -> None:
    def reached() -> bool:
        tasks = cluster.json("tasks", "--id", task)["tasks"]
        return bool(tasks) and tasks[task]["state"] == state and (state != "RUNNING" or tasks[task]["active"])

    wait_until(reached, 20, f"{task} {state}")


def test_submit_and_wait(cluster: Cluster) -> None:
    ran = cluster.run("submit", NOOP % 500, "--wait")
    assert (ran.code, ran.err) == (0, "")
    first, *lines = ran.out.splitlines()
    task = first.removeprefix("Task ")
    assert re.fullmatch("noop-[0-9a-f]{6}", task)
    assert any("node1: DONE, done" in line for line in lines)
    assert re.fullmatch(rf"Task {task}: done\. FINISHED at \S+ after \S+", lines[-1])


def test_submit_and_wait_as_json(cluster: Cluster) -> None:
    ran = cluster.run("submit", NOOP % 300, "--wait", "--json", "--id", "json-1")
    assert ran.code == 0
    assert json.loads(ran.err) == {"id": "json-1"}
    task = json.loads(ran.out)
    assert (task["state"], task["outcome"], task["status"], task["cancelled"]) == ("DONE", "done", "done", False)


def test_a_failed_task_exits_1_and_says_why(cluster: Cluster) -> None:
    ran = cluster.run("submit", NO_MATCH, "--wait")
    assert ran.code == 1
    assert "failed. FAILED at" in ran.out
    assert "Error: no process matches" in ran.out


def test_the_same_id_again(cluster: Cluster) -> None:
    assert cluster.run("submit", NOOP % 300, "--id", "again").code == 0
    assert cluster.run("submit", NOOP % 300, "--id", "again").code == 0
    ran = cluster.run("submit", NOOP % 400, "--id", "again")
    assert ran.code == 2
    assert ran.err.startswith("error: task again exists with another spec")


@pytest.mark.parametrize("verb", ["validate", "submit"])
def test_an_unknown_node_exits_2(cluster: Cluster, verb: str) -> None:
    ran = cluster.run(verb, '{"class": "partition", "durationMs": 1, "partitions": [["node1"], ["nodeX"]]}')
    assert ran.code == 2
    assert ran.err.startswith("error: ") and "Unknown node names: nodeX" in ran.err
    assert ran.err.count("\n") == 1


def test_a_dry_run_creates_nothing(cluster: Cluster) -> None:
    before = cluster.json("tasks")
    ran = cluster.run("submit", NO_MATCH, "--dry-run")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "node1",
        "  do    freeze processes whose command line contains 'no process is called this'",
        "  undo  let the same processes run again",
    ]
    assert cluster.json("submit", NO_MATCH, "--dry-run")["nodes"][0]["node"] == "node1"
    assert cluster.json("tasks") == before


def test_stop_show_and_destroy(cluster: Cluster) -> None:
    waiting = cluster.start("submit", NOOP % 60_000, "--id", "long", "--wait")
    wait_for_state(cluster, "long", "RUNNING")
    shown = cluster.run("show", "long").out
    assert re.match(
        r"Task long of type org\.apache\.kafka\.trogdor\.task\.NoOpTaskSpec is RUNNING\. Started \S+; "
        r"will stop after 1m\n",
        shown,
    )
    assert "long" in cluster.run("tasks", "--state", "running").out
    assert cluster.run("stop", "long", "--wait").code == 0
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, err) == (1, "")
    assert "cancelled. CANCELLED at" in out
    assert cluster.run("destroy", "long").code == 0
    for verb in ("show", "stop"):
        ran = cluster.run(verb, "long")
        assert (ran.code, ran.err) == (2, 'error: No task with ID "long" exists.\n')


def test_a_task_destroyed_while_somebody_waits_is_unknown(cluster: Cluster) -> None:
    waiting = cluster.start("submit", NOOP % 60_000, "--id", "lost", "--wait")
    wait_for_state(cluster, "lost", "RUNNING")
    assert cluster.run("destroy", "lost").code == 0
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 3
    assert "the outcome of task lost is unknown" in err


def test_interrupting_the_wait_leaves_the_task(cluster: Cluster) -> None:
    waiting = cluster.start("submit", NOOP % 60_000, "--id", "left", "--wait")
    wait_for_state(cluster, "left", "RUNNING")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert "task left goes on; to end it: trogdor-bus stop left" in err
    assert "Traceback" not in err
    assert cluster.json("show", "left")["state"] == "RUNNING"
    assert cluster.run("stop", "left", "--wait").code == 0


def first_line_only(process: subprocess.Popen[str]) -> str:
    """Read a line as `head -1` does, and close the pipe."""
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    return line


def test_whose_output_nobody_reads_says_that_the_task_goes_on(cluster: Cluster) -> None:
    waiting = cluster.start("submit", NOOP % 60_000, "--id", "unread", "--wait")
    assert first_line_only(waiting) == "Task unread\n"
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 141
    assert "Broken pipe): task unread goes on; to end it: trogdor-bus stop unread" in err
    assert "Traceback" not in err and "Exception ignored" not in err
    assert cluster.json("show", "unread")["state"] == "RUNNING"
    assert cluster.run("stop", "unread", "--wait").code == 0


def test_the_exit_code_tells_the_end_also_when_nobody_reads_it(cluster: Cluster) -> None:
    waiting = cluster.start("submit", NO_MATCH, "--id", "quiet", "--wait", "--json")
    wait_until(lambda: waiting.stderr is not None and "quiet" in waiting.stderr.readline(), 20, "the id")
    first_out = waiting.stdout
    assert first_out is not None
    first_out.close()
    waiting.stdout = None
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 1
    assert "the end is told by the exit code alone" in err
    assert "Traceback" not in err and "Exception ignored" not in err


def test_status_uptime_and_nodes(cluster: Cluster) -> None:
    status = cluster.run("status").out.splitlines()
    assert status[0] == f"Coordinator is running at {cluster.address}."
    assert status[1].startswith("\tStart time: ")
    uptime = cluster.json("uptime")
    assert uptime["nowMs"] > uptime["serverStartMs"] == cluster.json("status")["serverStartMs"]
    assert [line.split(":")[0].strip() for line in cluster.run("uptime").out.splitlines()[1:]] == [
        "Start time",
        "Current server time",
        "Uptime",
    ]
    header, row, *_ = cluster.run("nodes", COLUMNS="60").out.splitlines()
    assert header.split() == ["NODE", "STATE", "HEARD", "ADDRESSES", "NOTE"]
    assert row.split()[:2] == ["node1", "alive"]


def test_no_matching_tasks(cluster: Cluster) -> None:
    assert cluster.run("tasks", "--id", "nothing").out == "No matching tasks found.\n"
    assert cluster.json("tasks", "--id", "nothing") == {"tasks": {}}


def test_monitors_hear_every_event(cluster: Cluster) -> None:
    machine = cluster.start("monitor", "--json", "--for", "6s")
    plain = cluster.start("monitor", "--for", "6s")
    assert machine.stdout and plain.stdout
    first = json.loads(machine.stdout.readline())
    assert [node["name"] for node in first["view"]["nodes"]] == ["node1"]
    assert "1 of 1 nodes alive" in plain.stdout.readline()
    assert cluster.run("submit", NOOP % 300, "--id", "heard", "--wait").code == 0
    out, err = machine.communicate(timeout=20)
    assert (machine.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    states = [line["task"].get("state", "PENDING") for line in lines if line.get("event") == "task"]
    assert states[0] == "PENDING" and states[-1] == "DONE"
    out, err = plain.communicate(timeout=20)
    assert (plain.returncode, err) == (0, "")
    assert "task heard ended: done" in out


def test_a_monitor_whose_reader_has_enough_ends_quietly(cluster: Cluster) -> None:
    monitor = cluster.start("monitor", "--json", "--for", "20s")
    assert monitor.stdout and monitor.stderr and monitor.stdout.readline()
    monitor.stdout.close()
    with monitor.stderr:
        assert (monitor.wait(15), monitor.stderr.read()) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_monitor_that_cannot_write_says_so_once_and_ends(cluster: Cluster, form: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "trogdor_bus", "monitor", *form, "--insecure", "--for", "20s"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=15,
            env=clean_environment(TROGDOR_BUS_COORDINATOR=cluster.address),
        )
    assert (ended.returncode, ended.stderr) == (1, "error: cannot write to standard output: No space left on device\n")


def test_a_monitor_ends_on_ctrl_c(cluster: Cluster) -> None:
    monitor = cluster.start("monitor")
    assert monitor.stdout and monitor.stdout.readline()
    monitor.send_signal(signal.SIGINT)
    _, err = monitor.communicate(timeout=20)
    assert (monitor.returncode, err) == (0, "")


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return the exit code and all that it wrote."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trogdor_bus", *arguments],
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(TERM="xterm-256color", COLUMNS="60", LINES="30", **environment),
    )
    os.close(theirs)
    written = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal tells its end
            while data := os.read(ours, 4096):
                written.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        code = process.wait(30)
    finally:
        process.kill()
        reader.join(10)
        os.close(ours)
    return code, written.decode()


def test_a_terminal_shows_bars(cluster: Cluster) -> None:
    address = {"TROGDOR_BUS_COORDINATOR": cluster.address}
    assert cluster.run("submit", NOOP % 6000, "--id", "bar").code == 0
    code, text = on_a_terminal("monitor", "--insecure", "--for", "3s", **address)
    assert code == 0
    assert all(word in text for word in ("1 of 1 nodes alive", "node1", "bar (noop)", "━", "\x1b[32m")), text
    code, text = on_a_terminal("submit", NOOP % 1000, "--insecure", "--wait", NO_COLOR="1", **address)
    assert code == 0
    assert "━" in text and "FINISHED" in text
    assert not re.search("\x1b\\[[0-9;]*3[0-7]m", text)


def test_nobody_there() -> None:
    port = free_port()
    start_s = time.monotonic()
    ran = run("status", "--json", "--insecure", "--coordinator", f"127.0.0.1:{port}")
    assert time.monotonic() - start_s < 15  # 3 s, and the start of an interpreter on a busy machine
    assert (ran.code, ran.out) == (4, "")
    told = json.loads(ran.err)
    assert told["error"] == "NoCoordinatorError"
    for words in (f"127.0.0.1:{port}", f"trogdor-bus coordinator --port {port} --insecure", "are the keys right?"):
        assert words in told["message"]


def test_no_keys_yet(tmp_path: Path) -> None:
    ran = run("status", "--keys", str(tmp_path / "none"), "--coordinator", f"127.0.0.1:{free_port()}")
    assert (ran.code, ran.out) == (4, "")
    assert "there are no keys" in ran.err and "trogdor-bus coordinator" in ran.err


def test_a_monitor_says_that_it_hears_nothing() -> None:
    port = free_port()
    ran = run("monitor", "--insecure", "--for", "4s", "--coordinator", f"127.0.0.1:{port}")
    assert ran.code == 4
    assert f"Nothing is heard from 127.0.0.1:{port} for 3 s; still listening." in ran.out
    assert "trogdor-bus coordinator" in ran.out


def test_a_create_that_nobody_answers_is_unknown() -> None:
    """The coordinator here validates, hears the create and dies: it may have been created."""
    url = f"zmq://127.0.0.1:{free_port()}"
    asked: list[str] = []

    async def serve() -> Ran:
        coordinator = transport(url).open_coordinator(url, None)

        def on_request(frame: bytes, answer: Answer) -> None:
            request = decode(frame, AnyRequest)
            if isinstance(request, CreateTask):
                asked.append(request.id)
            else:
                answer(encode(Reply(result=msgspec.Raw(encode(Plan(spec=msgspec.Raw(b"{}")))))))

        coordinator.receive(lambda frame: None, on_request)
        try:
            where = url.removeprefix("zmq://")
            return await asyncio.to_thread(
                run, "submit", NOOP % 1, "--id", "maybe", "--insecure", "--coordinator", where
            )
        finally:
            coordinator.close()

    ran = asyncio.run(serve())
    assert (ran.code, ran.out) == (3, "Task maybe\n")
    assert "may or may not exist" in ran.err and "--id maybe" in ran.err
    assert set(asked) == {"maybe"} and len(asked) > CREATE_S / TIMEOUT_S  # it is patient, and it is one task
