"""The bus is hostile ground: what real daemons do about strangers, copies, old words and lost memories.

Beside this: lost, doubled, late and reordered frames and several coordinators in tests/sim; stale and old words in
tests/agents/test_protocol.py and tests/coordinator/test_protocol.py; garbage, strange parts, floods, wrong keys and
frames of 100 MB at every port in tests/transports/test_zmq.py; two coordinators on one address in tests/contract;
fuzzed frames in tests/fuzz.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from tests.cli.command import clean_environment
from tests.cli.test_aborts import Site
from tests.cli.test_verbs import NOOP
from tests.support import wait_until
from trogdor_bus.messages import Beat, Stamp, encode

pytestmark = pytest.mark.matrix
Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as made:
        yield made


def begin(site: Site, name: str, *command: str) -> None:
    """Start a daemon with options of its own."""
    with (site.directory / f"{name}.log").open("ab") as log:
        site.daemons[name] = subprocess.Popen(
            [sys.executable, "-m", "trogdor_bus", *command, *site.trust],
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )


def begin_coordinator(site: Site, *options: str) -> None:
    where = ["--bind", site.bind, "--port", str(site.port), "--state-dir", str(site.state_dir)]
    begin(site, "coordinator", "coordinator", *where, *options)


def log(site: Site, name: str) -> str:
    return (site.directory / f"{name}.log").read_text()


def stands(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def kill_coordinator(site: Site) -> None:
    site.daemons["coordinator"].kill()
    site.daemons["coordinator"].wait(10)


@pytest.mark.parametrize("choice", ["--adopt", "--abort-all"])
def test_a_coordinator_that_lost_its_store_leads_only_when_told_what_to_do_with_live_faults(
    site: Site, choice: str
) -> None:
    site.up("n1")
    task, frozen = site.freeze("n1")
    kill_coordinator(site)
    shutil.rmtree(site.state_dir)
    begin_coordinator(site)
    assert site.daemons["coordinator"].wait(20) == 1
    assert "--adopt" in log(site, "coordinator") and "--abort-all" in log(site, "coordinator")
    assert stands(frozen), "who may not lead has ended nothing"
    shutil.rmtree(site.state_dir)
    begin_coordinator(site, choice)
    site.await_alive("n1")
    if choice == "--adopt":
        assert site.json("show", task)["state"] == "RUNNING"
        assert stands(frozen)
        assert site.run("stop", task, "--wait").code == 0
    wait_until(lambda: not stands(frozen), what="the process to run again")


def test_a_state_directory_that_is_removed_under_a_fault_loses_no_undo_and_takes_no_new_fault(site: Site) -> None:
    site.up("n1")
    task, frozen = site.freeze("n1")
    journal = site.nodes()["n1"]["journal"]
    shutil.rmtree(site.directory / "n1")
    refused = site.noop()
    assert refused.code == 1 and "could not be written" in refused.out + refused.err, refused
    assert site.run("stop", task, "--wait").code in (0, 1)
    wait_until(lambda: not stands(frozen), what="the process to run again, from memory")
    site.end("n1")
    site.start("n1")
    wait_until(lambda: site.nodes()["n1"]["journal"] != journal, 20, "another journal")
    site.await_alive("n1")
    assert site.noop().code == 0
    assert log(site, "n1").count(f"task {task}: undoing") == 1


def test_an_agent_with_a_copied_name_is_refused_and_the_first_one_goes_on(site: Site) -> None:
    site.up("n1")
    state = ["--state-dir", str(site.directory / "copy")]
    begin(site, "copy", "agent", "--node", "n1", "--coordinator", site.dialled, *state)
    wait_until(lambda: "two agents call themselves n1" in log(site, "coordinator"), 20, "the copy to be refused")
    assert site.noop().code == 0
    assert "task " not in log(site, "copy")
    wait_until(lambda: "refused: another agent named n1" in log(site, "copy"), 20, "the copy to say that it is refused")


def test_recorded_words_of_an_older_coordinator_are_not_obeyed(site: Site, context: Context) -> None:
    site.up("n1")
    recorded = record(site, context)
    kill_coordinator(site)
    site.start("coordinator")
    site.await_alive("n1")
    task, frozen = site.freeze("n1")
    kill_coordinator(site)
    replay(site, context, recorded)
    assert stands(frozen), "an old word ends nothing"
    assert not (site.directory / "n1" / "latch.json").exists(), "an old abort latches nobody"
    site.start("coordinator")
    site.await_alive("n1")
    assert site.json("show", task)["state"] == "RUNNING"
    assert site.nodes()["n1"]["latch"] == ""
    assert site.run("stop", task, "--wait").code == 0


def record(site: Site, context: Context) -> list[list[bytes]]:
    """Return what the coordinator told its node during a fault, an abort and a resume."""
    recorded = []
    with context.socket(zmq.SUB) as ear:
        ear.connect(f"tcp://127.0.0.1:{site.port}")
        ear.subscribe(b"")
        site.freeze("n1")
        assert site.run("abort").code == 0
        assert site.run("resume").code == 0
        while ear.poll(500) and len(recorded) < 1000:
            recorded.append(ear.recv_multipart())
    assert any(b'"abort":"' in frame for _, frame in recorded)
    assert any(b'"actions":' in frame for _, frame in recorded)
    return recorded


def replay(site: Site, context: Context, recorded: list[list[bytes]]) -> None:
    """Be the coordinator's control socket for two seconds, and say it all again."""
    with context.socket(zmq.XPUB) as mouth:
        mouth.linger = 0
        mouth.bind(f"tcp://127.0.0.1:{site.port}")
        assert mouth.poll(10_000), "the agent dials the fake"
        for _ in range(20):
            for parts in recorded:
                mouth.send_multipart(parts)
            time.sleep(0.1)


def test_a_coordinator_that_hears_of_a_higher_epoch_stops_and_says_who_fenced_it(site: Site, context: Context) -> None:
    site.up("n1")
    frozen = site.freeze("n1")[1]
    with context.socket(zmq.DEALER) as peer:
        peer.connect(f"tcp://127.0.0.1:{site.port + 1}")
        peer.send(encode(Beat(node="n9", journal="j", counter=1, stamp=Stamp(99, "the-other-one", 1))))
        assert site.daemons["coordinator"].wait(10) == 1
        peer.linger = 0
    assert "fenced" in log(site, "coordinator") and "the-other-one" in log(site, "coordinator")
    assert stands(frozen), "its faults go on to their deadlines"


def test_a_flood_of_garbage_keeps_nobody_from_working(site: Site, context: Context) -> None:
    site.up("n1")
    with context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://127.0.0.1:{site.port + 1}")
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "trogdor_bus",
                "submit",
                NOOP % 1000,
                "--wait",
                "--coordinator",
                site.dialled,
                *site.trust,
            ],
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
        )
        deadline, sent = time.monotonic() + 20, 0
        while waiting.poll() is None and time.monotonic() < deadline:
            for frame in (b"\0" * 2_000, b'{"node":"n1"', b"[" * 5_000, b'{"v":99}'):
                peer.send(frame)
                sent += 1
            time.sleep(0.002)
    assert waiting.wait(1) == 0
    assert sent > 100
    assert site.nodes()["n1"]["alive"]
