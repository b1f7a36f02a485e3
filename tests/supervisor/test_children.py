"""Children of the supervisor: held, released, heard, ended; and nothing is left of them, whoever dies."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.supervisor.kept import DEEP, LEADERLESS, Kept, has_lost_its_main_thread, kept, order, python, shell
from tests.support import wait_until
from trogdor_bus.errors import HostError
from trogdor_bus.host import identity
from trogdor_bus.supervisor import children, tree
from trogdor_bus.supervisor.children import LOST, Child

WAITS = shell("sleep 3600")
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
UP_AT_ONCE = """print('{"status": 1}', flush=True); import time; time.sleep(3600)"""
UP = """print('{"status": 1}', flush=True); time.sleep(3600)"""


def runs(one: Kept, program: str) -> bool:
    """Whether a program of that name is among what belongs to the child."""
    names = [psutil.Process(pid).name() for pid in one.left() if psutil.pid_exists(pid)]
    return any(program in name for name in names)


# --- held, and released -----------------------------------------------------------------------------------------------


def test_a_child_is_known_before_it_runs_and_leads_a_session_of_its_own(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    with kept(shell(f"touch {proof}; exec sleep 3600")) as one:
        child = one.child
        assert child.identity == identity(child.identity.pid)
        assert not proof.exists() and tree.mark_of(child.keeper) == (one.mark, True)
        child.release()
        wait_until(proof.exists, what="the child to run")
        assert os.getsid(child.identity.pid) == child.identity.pid
        assert os.getsid(child.keeper) not in (os.getsid(0), child.identity.pid)
        assert tree.mark_of(child.identity.pid) == (one.mark, False)


def test_one_that_is_not_released_never_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    with kept(shell(f"touch {proof}")) as one:
        one.child.stop(60_000)
        assert one.over(10) and one.child.gone
        assert not one.left() and not proof.exists()


def test_what_cannot_run_says_why() -> None:
    with kept(["/nowhere/at-all"]) as one:
        with pytest.raises(HostError, match=r"/nowhere/at-all: No such file or directory"):
            one.child.release()
        assert one.child.ended is None, "it did not run, so it did not end"


def test_what_is_killed_while_it_is_held_cannot_be_released() -> None:
    with kept(WAITS) as one:
        os.kill(one.child.keeper, signal.SIGKILL)
        wait_until(lambda: not one.left(), what="the child to go with its keeper")
        with pytest.raises(HostError, match=LOST):
            one.child.release()


def test_a_keeper_that_does_not_read_a_large_order_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PATIENCE_S", 0.5)
    keepers: list[subprocess.Popen[bytes]] = []
    raised: list[HostError] = []

    def frozen(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        keepers.append(start())
        keepers[0].send_signal(signal.SIGSTOP)
        return keepers[0]

    def begin() -> None:
        with pytest.raises(HostError, match=r"its keeper did not read within 0\.5 s") as error:
            Child(order(WAITS, "m" * 32, "x" * 400_000), "m" * 32, "task t", frozen, lambda: None)
        raised.append(error.value)

    before = set(threading.enumerate())
    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(10)
    blocked = thread.is_alive()
    (keeper,) = keepers
    keeper.send_signal(signal.SIGCONT)
    try:
        assert not blocked and raised
        wait_until(lambda: keeper.poll() is not None, what="its end, as it has no whole order")
        wait_until(lambda: set(threading.enumerate()) <= before, what="no thread to be left")
    finally:
        keeper.kill()


@pytest.mark.parametrize("which", [0, 1])
def test_a_child_whose_threads_are_refused_leaves_nothing(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked, keepers = threading.Thread.start, list[str](), list[subprocess.Popen[bytes]]()

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "child":
            asked.append(thread.name)
            if len(asked) == which + 1:
                time.sleep(0.2)  # the other one waits by now
                raise RuntimeError("can't start new thread")
        start(thread)

    def door(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        keepers.append(start())
        return keepers[0]

    before = set(threading.enumerate())
    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(HostError, match="its keeper cannot be started: can't start new thread"):
        Child(order(WAITS, "m" * 32), "m" * 32, "task t", door, lambda: None)
    try:
        wait_until(lambda: keepers[0].poll() is not None, 5, "the end of its keeper")
        wait_until(lambda: set(threading.enumerate()) <= before, 5, "no thread to be left")
    finally:
        keepers[0].kill()


@pytest.mark.parametrize("noticed", [False, True])
def test_a_child_that_is_killed_while_it_is_held_did_not_run(noticed: bool) -> None:
    with kept(WAITS) as one:
        if not noticed:
            os.kill(one.child.keeper, signal.SIGSTOP)
        os.kill(one.child.identity.pid, signal.SIGKILL)
        if noticed:
            wait_until(lambda: one.child.exit is not None, what="its end to be noticed")
        else:
            timer = threading.Timer(0.3, os.kill, (one.child.keeper, signal.SIGCONT))  # when it has heard to let it go
            timer.start()
        with pytest.raises(HostError, match="it was killed before it ran"):
            one.child.release()
        assert one.child.ended is None, "it did not run, so it did not end"
        assert not one.child.over, "its keeper lives"
        one.child.stop(0)
        assert one.over(10) and one.child.gone


# --- what it says -----------------------------------------------------------------------------------------------------


def test_it_reads_its_line_and_its_status_is_what_it_said_last(caplog: pytest.LogCaptureFixture) -> None:
    script = """
import json, sys
line = json.loads(sys.stdin.readline())
print("hello", flush=True)
print(json.dumps({"status": "begun"}), flush=True)
print(json.dumps({"log": "a \\u001b[31m line", "status": {"got": line, "n": [1.5, None]}}), flush=True)
print(json.dumps([1]), flush=True)
print("trouble", file=sys.stderr, flush=True)
sys.stdin.read()
"""
    caplog.set_level(logging.INFO)
    with kept(python(script), '{"id":"t"}\n') as one:
        one.child.release()
        wait_until(lambda: one.said() == {"got": {"id": "t"}, "n": [1.5, None]}, what="its status")
        for text in ("task t: hello", "task t: a \x1b[31m line", "task t: [1]", "task t: standard error: trouble"):
            wait_until(lambda text=text: text in caplog.messages, what=text)
        assert one.child.ended is None and one.stirs == [], "its standard input stays open"


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("exit 0", ""),
        ("exit 3", "exited with return code 3"),
        ("kill -SEGV $$", "exited with return code 139"),
        ("""echo '{"error": "boom"}'; exit 3""", "boom"),
        ("""echo '{"error": "boom"}'; exec sleep 3600""", "boom"),
        ("""echo '{"error": ""}'; exit 3""", ""),
        ("""echo '{"error": null}'; exit 3""", "exited with return code 3"),
        ("""echo '{"error": {"code": 7}}'; sleep 3600""", '{"code": 7}'),
        ("exec 0<&- 1>&- 2>&-; exit 4", "exited with return code 4"),
    ],
)
def test_it_ends_by_itself_as_it_says_and_that_stirs_at_once(script: str, ended: str) -> None:
    with kept(shell(script)) as one:
        one.child.release()
        wait_until(lambda: one.child.ended is not None, 5, "its end")
        assert one.child.ended == ended
        wait_until(lambda: one.stirs == [None], what="one stir")


def test_an_error_that_it_says_when_it_is_told_to_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    script = """trap 'echo "{\\"error\\": \\"half done\\"}"; exit 1' TERM
        echo '{"status": 1}'; while :; do sleep 0.05; done"""
    with kept(shell(script)) as one:
        one.child.release()
        wait_until(lambda: one.said() == 1, what="it to run")
        one.child.stop(30_000)
        assert one.over(20) and one.child.ended is None, "it was told to"
        assert "task t: error: half done" in caplog.messages


def test_what_it_said_at_its_very_end_is_heard() -> None:
    script = r"""i=0; while [ $i -lt 500 ]; do echo "{\"status\": $i}"; i=$((i+1)); done; printf '{"status": "last"}'"""
    with kept(shell(script)) as one:
        one.child.release()
        wait_until(lambda: one.child.ended == "", 10, "its end")
        assert one.said() == "last"


def test_whoever_holds_its_output_does_not_hold_its_end() -> None:
    with kept(shell("sleep 3600 & exit 5")) as one:
        one.child.release()
        wait_until(lambda: one.child.ended == "exited with return code 5", 5, "its end")
        assert runs(one, "sleep")
        one.child.stop(0)
        assert one.over(10) and not one.left()


@pytest.mark.parametrize("line", [r'{"log": "\udcff"}', r'{"status": "\udcff"}', r'{"log": ["\udcff"]}'])
def test_half_a_character_keeps_nothing_else_from_being_heard(line: str) -> None:
    with kept(shell(f"printf '%s\\n' '{line}' '{{\"status\": 1}}'; exit 3")) as one:
        one.child.release()
        wait_until(lambda: one.child.ended is not None, 10, "its end")
        assert (one.child.ended, one.child.exit, one.said()) == ("exited with return code 3", 3, 1)


def test_half_a_character_in_its_error_does_not_hide_it() -> None:
    with kept(shell(r"""printf '%s\n' '{"error": "boom \udcff"}'; sleep 3600""")) as one:
        one.child.release()
        wait_until(lambda: one.child.ended is not None, 10, "its end")
        assert one.child.ended == "boom ?"


def test_a_word_of_a_keeper_that_nobody_can_read_is_dropped_alone(caplog: pytest.LogCaptureFixture) -> None:
    with kept(WAITS) as one:
        one.child.release()
        one.child._take(rb'{"log": "\udcff"}')
        one.child._take(b'{"log": "\xff"}')
        one.child._take(b'{"status": %s}' % (b"[" * 101 + b"0" + b"]" * 101))
        one.child._take(b'{"status": 2}')
        assert one.said() == 2 and len(caplog.messages) == 3


def test_whatever_happens_to_the_one_who_listens_its_keeper_is_known_to_be_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def broken(self: Child, word: bytes) -> None:
        raise ZeroDivisionError

    with kept(WAITS) as one:
        monkeypatch.setattr(Child, "_take", broken)
        with pytest.raises(HostError, match=LOST):
            one.child.release()
        assert one.over(10) and one.child.ended == LOST
        wait_until(lambda: not one.left(), what="all of it to be gone")
    assert len(raised) == 1


def test_what_is_no_status_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    script = r"""
import json
deep = "[" * 3000 + "]" * 3000
huge = json.dumps("x" * 20_000)
for text in (deep, huge, "NaN", "1e999", r'"\ud800"', "{"):
    print('{"status": %s}' % text, flush=True)
print("x" * 300_000, flush=True)
print('{"status": "good"}', flush=True)
"""
    caplog.set_level(logging.INFO)
    with kept(python(script)) as one:
        one.child.release()
        wait_until(lambda: one.child.ended == "", 10, "its end")
        assert one.said() == "good"
        assert any("a status of 20002 bytes is dropped" in text for text in caplog.messages)
        assert max(map(len, caplog.messages)) < 3_000


def test_a_flood_neither_blocks_nor_fills_us(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with kept(shell("yes 2>/dev/null | head -c 4000000; exec >&-; exec sleep 3600 2>/dev/null")) as one:
        keeper = psutil.Process(one.child.keeper)
        one.child.release()
        wait_until(lambda: any("lines were not logged" in text for text in caplog.messages), 60, "the flood to be told")
        assert len(caplog.messages) < 2_000
        assert keeper.memory_info().rss < 60 << 20
        began = time.monotonic()
        one.child.stop(0)
        assert one.over(10) and time.monotonic() - began < 5


# --- its end ----------------------------------------------------------------------------------------------------------


def test_it_is_told_to_end_with_its_group_and_has_its_time() -> None:
    script = """(trap 'echo "{\\"log\\": \\"group\\"}"; exit 0' TERM; while :; do sleep 0.05; done) &
        trap 'sleep 0.2; echo "{\\"status\\": \\"bye\\"}"; exit 7' TERM
        echo '{"status": "up"}'; while :; do sleep 0.05; done"""
    with kept(shell(script)) as one:
        one.child.release()
        wait_until(lambda: one.said() == "up", what="it to run")
        began = time.monotonic()
        one.child.stop(30_000)
        assert one.over(20) and one.child.gone and not one.left()
        assert time.monotonic() - began < 10, "nobody waits for a grace that nobody needs"
        assert one.said() == "bye"
        assert one.child.ended is None, "it was told to"


@pytest.mark.parametrize("frozen", [False, True])
def test_what_ignores_us_or_stands_is_killed_after_its_grace_with_all_that_it_started(frozen: bool) -> None:
    script = f"{DEAF}{DEEP}{UP}"
    with kept(python(script)) as one:
        one.child.release()
        wait_until(lambda: one.said() == 1, what="it to run")
        wait_until(lambda: len(tree.below([one.child.keeper], tree.living())) == 3, what="all of it to run")
        hidden = tree.below([one.child.keeper], tree.living())
        one.pids |= hidden
        if frozen:
            for pid in hidden:
                os.kill(pid, signal.SIGSTOP)
        one.child.stop(300)
        assert not one.over(0.2)
        assert one.over(10) and one.child.gone and not one.left()


def test_what_forks_for_ever_is_gone_all_the_same() -> None:
    with kept(python("import os\nwhile True:\n    if os.fork(): os._exit(0)")) as one:  # always another process
        one.child.release()
        wait_until(lambda: one.child.ended == "", what="the first one to leave")
        one.child.stop(0)
        assert one.over(20) and one.child.gone
        assert not one.left()


@pytest.mark.parametrize("who_ends_it", ["keeper", "sweep"])
def test_what_hides_behind_the_end_of_its_main_thread_is_gone_as_well(who_ends_it: str) -> None:
    with kept(python(f"import os\nif not os.fork():\n  os.setsid()\n  exec({LEADERLESS!r})\n{UP_AT_ONCE}")) as one:
        one.child.release()
        wait_until(lambda: one.said() == 1, what="it to run")
        (hidden,) = tree.below([one.child.identity.pid], tree.living(marks=False))
        one.pids.add(hidden)
        wait_until(lambda: has_lost_its_main_thread(hidden), what="the end of its main thread")
        if who_ends_it == "sweep":
            os.kill(one.child.keeper, signal.SIGKILL)
            wait_until(lambda: one.child.over, what="the end of its keeper")
            assert one.child.sweep()
        one.child.stop(0)
        assert one.over(10) and one.child.gone is (who_ends_it == "keeper")
        wait_until(lambda: not Path(f"/proc/{hidden}/task").exists(), what="all of it to be gone")


@contextlib.contextmanager
def frozen_keeper() -> Iterator[Kept]:
    """Three processes that do not end by themselves, and their keeper, which is frozen."""
    with kept(python(f"{DEAF}{DEEP}{UP}")) as one:
        one.child.release()
        wait_until(lambda: one.said() == 1, what="it to run")
        wait_until(lambda: len(tree.below([one.child.keeper], tree.living())) == 3, what="all of it to run")
        os.kill(one.child.keeper, signal.SIGSTOP)
        assert len(one.left()) == 4
        yield one


def test_a_keeper_that_somebody_has_frozen_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "KILL_S", 0.3)
    with frozen_keeper() as one:
        one.child.stop(700)
        assert not one.over(0.6) and len(one.left()) == 4, "its grace is not over"
        assert one.over(10) and not one.left()
        assert one.child.ended is None, "it was told to"


def test_a_keeper_is_known_though_it_does_not_tell_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    living = tree.living
    with frozen_keeper() as one:
        monkeypatch.setattr(tree, "living", lambda **_: living(marks=False))
        assert one.child.sweep()
        monkeypatch.setattr(tree, "living", living)
        assert not one.left()


def test_what_the_machine_refuses_while_it_is_swept_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    living, refusals = tree.living, [OSError(24, "Too many open files")] * 3

    def refused(**_: object) -> tree.Family:
        if refusals:
            raise refusals.pop()
        return living()

    with kept(WAITS) as one:
        os.kill(one.child.keeper, signal.SIGSTOP)
        monkeypatch.setattr(tree, "living", refused)
        assert one.child.sweep()
        monkeypatch.setattr(tree, "living", living)
        wait_until(lambda: not one.left(), what="all of it to be gone")


# --- who dies ---------------------------------------------------------------------------------------------------------


HOLDER = """
import json, sys, time
from trogdor_bus.supervisor.children import Child
given = json.loads(sys.stdin.readline())
child = Child(given["order"], given["mark"], "task t", lambda start: start(), lambda: None)
print(child.keeper, child.identity.pid, flush=True)
if given["release"]:
    child.release()
print("released", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_its_agent_dies_all_of_it_goes_at_once(number: signal.Signals, release: bool, tmp_path: Path) -> None:
    proof, mark = tmp_path / "up", "m" * 32
    argv = python(f"{DEAF}{DEEP}open({str(proof)!r}, 'w'); time.sleep(3600)")
    words = json.dumps({"order": order(argv, mark), "mark": mark, "release": release})
    with subprocess.Popen(python(HOLDER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin and agent.stdout
        try:
            agent.stdin.write(f"{words}\n")
            agent.stdin.flush()
            pids = set(map(int, agent.stdout.readline().split()))
            assert agent.stdout.readline() == "released\n"
            if release:
                wait_until(proof.exists, what="the child to run")
                wait_until(lambda: len(pids | tree.below(pids, tree.living())) == 4, what="all of it to run")
                pids |= tree.below(pids, tree.living())
        finally:
            agent.send_signal(number)
    began = time.monotonic()
    wait_until(lambda: not pids & tree.living().keys(), 10, "all of it to be gone")
    assert time.monotonic() - began < 5


def test_when_its_keeper_dies_it_does_and_what_it_started_can_be_found() -> None:
    with kept(shell("setsid sleep 3600 & exec sleep 3600")) as one:
        one.child.release()
        wait_until(lambda: len(one.left()) == 3, what="it to run")
        os.kill(one.child.keeper, signal.SIGKILL)
        wait_until(lambda: one.child.ended == LOST, what="the loss to be noticed")
        assert one.over(5) and not one.child.gone and len(one.stirs) == 2, "its end, and that all is over"
        wait_until(lambda: len(one.left()) == 1, what="the child itself to be gone")
        family = tree.living()
        tree.kill(tree.of_child(one.mark, one.child.identity.pid, family), family)
        wait_until(lambda: not one.left(), what="the rest to be gone")


def test_a_keeper_goes_last_so_that_nothing_gets_out_from_below_it() -> None:
    with kept(python(f"{DEEP}{UP}")) as one:
        one.child.release()
        wait_until(lambda: one.said() == 1, what="it to run")
        wait_until(lambda: len(tree.below([one.child.keeper], tree.living())) == 3, what="all of it to run")
        os.kill(one.child.keeper, signal.SIGSTOP)
        family = tree.living()
        found = tree.of_child(one.mark, 0, family)
        assert len(found) == 4 and one.child.keeper in found
        tree.kill(found, family)
        wait_until(lambda: one.left() == {one.child.keeper}, what="only the keeper to be left")
        family = tree.living()
        tree.kill(tree.of_child(one.mark, 0, family), family)
        wait_until(lambda: not one.left(), what="the keeper to be gone")


def test_a_keeper_is_ended_by_no_signal_that_asks() -> None:
    with kept(WAITS) as one:
        one.child.release()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(one.child.keeper, number)
        wait_until(lambda: runs(one, "sleep"), what="it to run")
        assert one.child.keeper in one.left() and one.child.ended is None
        caught = Path(f"/proc/{one.child.identity.pid}/status").read_text()
        mask = int(next(line for line in caught.splitlines() if line.startswith("SigIgn")).split()[1], 16)
        ignored = [number for number in signal.valid_signals() if mask >> (number - 1) & 1]
        assert ignored == [], "what the keeper ignores, the child does not"
