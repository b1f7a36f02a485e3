"""Looking at all processes beside some that hang."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.platforms.hungfs import hung_process
from tests.supervisor.kept import LEADERLESS, has_lost_its_main_thread
from tests.support import wait_until
from trogdor_bus.supervisor import tree


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[list[int]]:
    """Four processes that do not tell their environment."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(hung_process(tmp_path / f"dead{n}", f"hung{n}", "setsid")) for n in range(4)]
        yield [one.pid for one in made]


@pytest.fixture
def marked() -> Iterator[int]:
    """A process with a mark."""
    with subprocess.Popen(["sleep", "3600"], env={tree.CHILD: "m" * 32}, start_new_session=True) as process:
        yield process.pid
        process.kill()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def test_those_that_hang_are_waited_for_once_and_all_together(hung: list[int], marked: int) -> None:
    began_s = time.monotonic()
    family = tree.living()
    took_s = time.monotonic() - began_s
    assert took_s < 4 * tree.PATIENCE_S and family.keys() >= {*hung, marked}
    # Where nobody runs for half a second, as on a busy machine, whoever is asked seems to hang, and is asked again.
    wait_until(lambda: tree.living()[marked].mark == "m" * 32, what="the mark of the one that does not hang")
    waiting = threads()
    times = []
    for _ in range(3):
        began_s = time.monotonic()
        assert tree.living()[marked].mark == "m" * 32
        times.append(time.monotonic() - began_s)
    assert min(times) < tree.PATIENCE_S
    wait_until(lambda: threads() <= waiting, what="only those threads to be left that wait for ever")


def test_only_those_below_the_ancestor_are_asked(hung: list[int], marked: int) -> None:
    waiting = threads()
    family = tree.living(ancestor=marked)
    assert family.keys() >= {*hung, marked} and not family[marked].mark
    assert tree.living(marks=False).keys() >= set(hung)
    wait_until(lambda: threads() <= waiting, what="nobody to wait")


def test_one_that_hangs_and_answers_at_last_is_asked_again(tmp_path: Path) -> None:
    with hung_process(tmp_path / "dead", "hung", "setsid") as victim:
        assert tree.mark_of(victim.pid) == ("", False)
        assert any(pid == victim.pid for pid, _ in tree._asked)
    wait_until(lambda: not tree._asked, what="the answer")


def test_a_process_lives_and_tells_its_mark_though_its_main_thread_has_ended() -> None:
    environment = {**os.environ, tree.CHILD: "m" * 32}
    with contextlib.ExitStack() as stack:
        argv = [sys.executable, "-c", LEADERLESS]
        process = stack.enter_context(subprocess.Popen(argv, env=environment, start_new_session=True))
        stack.callback(process.kill)
        wait_until(lambda: has_lost_its_main_thread(process.pid), what="the end of its main thread")
        assert tree.mark_of(process.pid) == ("m" * 32, False)
        family = tree.living()
        assert family[process.pid].mark == "m" * 32
        tree.kill([process.pid], family)
        wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 1, what="its end")  # noqa: PTH208
        assert process.pid not in tree.living(), "who is dead and not reaped does not live"
