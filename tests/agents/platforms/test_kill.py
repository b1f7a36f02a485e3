from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agents.platforms.nodes import SLEEP, Node, end, from_journal, inside, known, prepare, undone
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill, Suspend
from trogdor_bus.agents.platforms.linux import processes, signals
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.agents.platforms.linux.node import Node as OnLinux
from trogdor_bus.errors import HostError, RefusedError
from trogdor_bus.platform import Prepared, ProcessIdentity, Seen, Step, Surroundings

HANDLER = f"""
import pathlib, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path(sys.argv[1]).touch())
{SLEEP}
"""


def test_kill_takes_and_without_restart_nothing_comes_back(node: Node) -> None:
    pid = node.sleeper("victim")
    identity = known(pid)
    (step,) = prepare(node, Kill(match=ProcessMatch(command="victim")))
    node.platform.do(step)
    assert processes.thread_states(identity) == {}
    assert node.platform.disturbance(step) == ""
    assert undone(node.platform, step) == ""
    assert node.platform.residue(step, []) == ()
    node.platform.do(step)  # what is gone is gone: one of several matches may take others with it


def test_another_process_under_the_same_pid_is_not_killed(node: Node) -> None:
    pid = node.sleeper("reused")
    (step,) = prepare(node, Kill(match=ProcessMatch(command="reused")))
    earlier = {**step.do["process"], "start_ticks": step.do["process"]["start_ticks"] - 1}
    node.platform.do(Step(do={**step.do, "process": earlier}, undo=step.undo))
    assert processes.thread_states(known(pid))


def test_other_signals_are_delivered(node: Node, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    pid = node.sleeper(str(seen), HANDLER)
    wait_until(lambda: processes.signal_mask(pid, "SigCgt") & (1 << signal.SIGUSR1 - 1), what="the handler")
    (step,) = prepare(node, Kill(match=ProcessMatch(command=str(seen)), signal="SIGUSR1"))
    node.platform.do(step)
    wait_until(seen.exists, what="the signal")


@pytest.mark.parametrize("bad", ["SIGSTOP", "SIGCONT", "kill", "", "SIGKILL\n"])
def test_signals_that_leave_something_behind_are_refused(node: Node, bad: str) -> None:
    node.sleeper("victim")
    with pytest.raises(RefusedError, match="is not a signal"):
        prepare(node, Kill(match=ProcessMatch(command="victim"), signal=bad))


def test_a_process_that_is_deaf_to_the_signal_is_a_failure_with_the_reason(node: Node) -> None:
    pid = node.sleeper("deaf", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}")
    wait_until(lambda: processes.signal_mask(pid, "SigIgn") & (1 << signal.SIGTERM - 1), what="the deafness")
    with pytest.raises(HostError, match="ignores SIGTERM"):
        prepare(node, Kill(match=ProcessMatch(command="deaf"), signal="SIGTERM"))
    inside(node, "init-of-its-own")
    with pytest.raises(HostError, match="init of its own pid namespace and does not handle SIGTERM"):
        prepare(node, Kill(match=ProcessMatch(command="init-of-its-own"), signal="SIGTERM"))


def deaf(node: Node, token: str) -> ProcessIdentity:
    pid = node.sleeper(token, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}")
    wait_until(lambda: processes.signal_mask(pid, "SigIgn") & (1 << signal.SIGTERM - 1), what="the deafness")
    return known(pid)


def ask_to_end(token: str, grace_ms: int) -> Kill:
    return Kill(match=ProcessMatch(command=token), signal="SIGTERM", grace_ms=grace_ms)


def perform(node: Node, step: Step) -> Step:
    """Do a step, and return it as the journal has it then."""
    undo = node.platform.do(step)
    assert undo is not None
    return Step(step.do, undo)


def done_by_one_who_died(node: Node, step: Step, grace_ms: int) -> Step:
    """Return a step as it is done, with a grace that nobody of this life waits for."""
    undo = perform(node, step).undo
    return Step(step.do, {**undo, "kill_ms": undo["kill_ms"] - step.do["grace_ms"] + grace_ms})


def test_who_does_not_end_by_itself_is_killed_when_the_grace_is_over(node: Node) -> None:
    victims = [deaf(node, "stubborn"), known(inside(node, "stubborn"))]
    steps = prepare(node, ask_to_end("stubborn", 700))
    assert len(steps) == 3  # unshare is one of them
    began = time.monotonic()
    steps = [perform(node, step) for step in steps]
    wait_until(lambda: not any(map(processes.thread_states, victims)), what="the end")
    assert 0.69 < time.monotonic() - began < 20
    assert [undone(node.platform, step) for step in reversed(steps)] == ["", "", ""]


def test_the_undo_waits_for_the_grace_and_kills_for_an_agent_that_died_meanwhile(node: Node) -> None:
    victim = deaf(node, "stubborn")
    began = time.monotonic()
    (step,) = prepare(node, ask_to_end("stubborn", 60_000))
    step = done_by_one_who_died(node, step, 700)
    another = node.sleeper("stubborn")
    assert node.platform.by_hand(step) == f"kill -KILL {victim.pid}"
    assert undone(node.platform, step) == ""
    assert 0.69 < time.monotonic() - began < 20
    assert processes.thread_states(victim) == {}
    assert processes.thread_states(known(another))
    assert undone(node.platform, step) == ""


def test_who_ends_by_itself_is_not_waited_for_longer(node: Node) -> None:
    victim = known(node.sleeper("willing"))
    (step,) = prepare(node, ask_to_end("willing", 60_000))
    step = perform(node, step)
    began = time.monotonic()
    assert undone(node.platform, step) == ""
    assert time.monotonic() - began < 20
    assert processes.thread_states(victim) == {}


def test_who_was_not_told_to_end_is_not_killed(node: Node) -> None:
    victim = deaf(node, "stubborn")
    (step,) = prepare(node, ask_to_end("stubborn", 1))
    assert undone(node.platform, step) == ""
    assert processes.thread_states(victim)


def test_a_grace_of_another_boot_is_over(node: Node) -> None:
    victim = deaf(node, "stubborn")
    (step,) = prepare(node, ask_to_end("stubborn", 60_000))
    step = perform(node, step)
    (dying,) = step.undo["dying"]
    began = time.monotonic()
    assert undone(node.platform, Step(step.do, {**step.undo, "dying": [{**dying, "boot_id": "x"}]})) == ""
    assert time.monotonic() - began < 20
    assert processes.thread_states(victim)


def test_who_is_started_again_by_somebody_has_the_same_grace(node: Node) -> None:
    node.sleeper("stubborn")
    (first,) = prepare(node, ask_to_end("stubborn", 60_000))
    first = perform(node, first)
    undone(node.platform, first)
    risen = deaf(node, "stubborn")
    (again,) = from_journal(Prepared(node.platform.again(first, Surroundings(), [])))
    assert again.do["grace_ms"] == 60_000
    again = done_by_one_who_died(node, again, 700)
    assert processes.thread_states(risen)
    assert undone(node.platform, again) == ""
    assert processes.thread_states(risen) == {}


def test_what_somebody_starts_again_is_seen_and_killed_again(node: Node) -> None:
    victims = [known(node.sleeper("watched")) for _ in range(2)]
    first, second = prepare(node, Kill(match=ProcessMatch(command="watched")))
    for step in (first, second):
        node.platform.do(step)
    assert [processes.thread_states(victim) for victim in victims] == [{}, {}]
    assert [node.platform.disturbance(step) for step in (first, second)] == ["", ""]
    assert node.platform.again(first, Surroundings(), []) == ()
    risen = known(node.sleeper("watched"))
    name = Path(sys.executable).name
    assert node.platform.disturbance(first) == f"started again by somebody: pid {risen.pid} ({name})"
    assert node.platform.disturbance(second) == ""  # one speaks for all
    (again,) = from_journal(Prepared(node.platform.again(first, Surroundings(), [])))
    assert again.undo == {"op": "nothing"}
    node.platform.do(again)
    assert processes.thread_states(risen) == {}
    assert [node.platform.disturbance(step) for step in (first, again)] == ["", ""]


def test_what_a_process_that_lives_on_starts_is_not_somebody_elses(node: Node, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    pid = node.sleeper(str(seen), HANDLER)
    wait_until(lambda: processes.signal_mask(pid, "SigCgt") & (1 << signal.SIGUSR1 - 1), what="the handler")
    (step,) = prepare(node, Kill(match=ProcessMatch(command=str(seen)), signal="SIGUSR1"))
    node.platform.do(step)
    node.sleeper(str(seen))
    assert node.platform.disturbance(step) == ""


def test_the_coordinator_is_not_killed_again_in_place_of_another(node: Node) -> None:
    node.sleeper("mistaken")
    (step,) = prepare(node, Kill(match=ProcessMatch(command="mistaken")))
    node.platform.do(step)
    coordinator = known(node.sleeper("mistaken"))
    with pytest.raises(RefusedError, match="is the coordinator"):
        node.platform.again(step, Surroundings(coordinator=coordinator), [])


def test_a_pid_file_that_went_with_its_process_is_no_disturbance(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "it.pid"
    file.write_text(str(node.sleeper("filed")))
    (step,) = prepare(node, Kill(match=ProcessMatch(pid_file=str(file))))
    node.platform.do(step)
    assert node.platform.disturbance(step) == ""
    file.unlink()
    assert node.platform.disturbance(step) == ""
    assert node.platform.again(step, Surroundings(), []) == ()


def test_who_starts_while_the_node_is_opened_is_a_target_and_no_newcomer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, opened, late = node.sleeper("it"), OnLinux.open, list[int]()

    def slowly(on: OnLinux) -> Namespace:
        late.append(node.sleeper("it"))
        return opened(on)

    monkeypatch.setattr(OnLinux, "open", slowly)
    steps = prepare(node, Kill(match=ProcessMatch(command="it")))
    assert {step.do["process"]["pid"] for step in steps} == {first, *late}
    since = steps[0].do["watch"]["since_ticks"]
    assert all(step.do["process"]["start_ticks"] <= since for step in steps)


def test_one_look_at_all_processes_is_for_all_kills_that_are_over_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, looks, look = list[Step](), list[None](), processes.Look
    for name in ("a-victim", "b-victim", "c-victim"):
        node.sleeper(name)
        (step,) = prepare(node, Kill(match=ProcessMatch(command=name)))
        node.platform.do(step)
        steps.append(step)
    node.sleeper("b-victim")
    monkeypatch.setattr(processes, "Look", lambda namespace: looks.append(None) or look(namespace))
    one, two, three = [seen.disturbance for seen in node.platform.search_many(steps) if isinstance(seen, Seen)]
    assert (one, three) == ("", "") and two.startswith("started again by somebody")
    assert len(looks) == 1


@pytest.mark.parametrize("action", [Kill, Suspend])
def test_who_is_started_in_the_same_tick_as_the_search_is_a_newcomer_unless_it_was_found(
    node: Node, monkeypatch: pytest.MonkeyPatch, action: type[Kill | Suspend]
) -> None:
    found = sorted((known(node.sleeper("it")) for _ in range(2)), key=lambda one: one.start_ticks)
    monkeypatch.setattr(processes, "now_ticks", lambda: found[-1].start_ticks)
    steps = prepare(node, action(match=ProcessMatch(command="it")))
    (step,) = [step for step in steps if step.do["process"]["pid"] == found[0].pid]
    end(found[0])
    assert "pid " not in node.platform.search(Step({**step.do, "watch": steps[0].do["watch"]}, step.undo)).disturbance
    risen, real = known(node.sleeper("it")), processes._living

    def at_once(*given: Any) -> Iterator[processes.Process]:
        """The newcomer was started in that very tick, too."""
        for one in real(*given):
            same = msgspec.structs.replace(one.identity, start_ticks=found[-1].start_ticks)
            yield msgspec.structs.replace(one, identity=same) if one.identity == risen else one

    monkeypatch.setattr(processes, "_living", at_once)
    monkeypatch.setattr(signals, "is_stopped", lambda process: False)
    told = node.platform.search(Step({**step.do, "watch": steps[0].do["watch"]}, step.undo)).disturbance
    assert f"pid {risen.pid} (" in told and told.count("pid ") == 1, told
