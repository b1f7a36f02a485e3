"""What runs for a worker: it may end by itself, and says how it goes."""

from __future__ import annotations

import msgspec
import pytest

from tests.agents.driver import Agent, order
from trogdor_bus.agents.events import Heal, Healed, Injected, Look, Looked, NotYet, ReadBack, Stirred
from trogdor_bus.agents.machine import SOON_MS
from trogdor_bus.messages import Report, decode, encode
from trogdor_bus.states import Outcome, WorkerState


def said(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


@pytest.mark.parametrize(("ended", "outcome"), [("", Outcome.DONE), ("exited with return code 3", Outcome.FAILED)])
def test_what_ended_by_itself_is_undone_at_once_and_ends_as_it_says(ended: str, outcome: Outcome) -> None:
    agent = Agent()
    agent.run()
    agent.now += 3_000
    healing = agent.give(Looked({1: ReadBack(ended=ended, status=said('{"sent":7}'))}))
    assert healing == [Heal(1, outcome, ended, 3_000)]
    assert agent.worker().state is WorkerState.STOPPING
    agent.give(Healed(1, outcome=outcome, error=ended))
    report = agent.report()
    assert (report.state, report.outcome, report.error) == (WorkerState.DONE, outcome, ended)
    assert (report.progress, report.disturbed) == (said('{"sent":7}'), ())
    assert decode(encode(agent.beats[-1]), type(agent.beats[-1])).reports == (report,)


def test_a_stir_is_looked_at_without_waiting_for_the_beat() -> None:
    agent = Agent()
    agent.run()
    assert agent.give(Stirred(1)) == [Look((1,))]
    agent.give(Looked({1: ReadBack()}))
    assert agent.worker().state is WorkerState.RUNNING, "a look that finds nothing changes nothing"
    assert agent.give(Stirred(99)) == []


def test_what_stirs_before_it_is_known_to_run_is_looked_at_as_soon_as_it_is() -> None:
    agent = Agent()
    agent.hear(order())
    assert agent.give(Stirred(1)) == []
    assert agent.give(Injected(1)) == [Look((1,))]


def test_what_stirs_while_it_is_ended_is_left_to_its_undo() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    assert agent.worker().state is WorkerState.STOPPING
    assert agent.give(Stirred(1)) == []
    assert agent.give(Looked({1: ReadBack(ended="late")})) == []


def test_progress_goes_with_the_next_beat_and_silence_changes_nothing() -> None:
    agent = Agent()
    agent.run()
    agent.pass_(2 * SOON_MS)
    before = len(agent.beats)
    agent.give(Looked({1: ReadBack(status=said("1"))}))
    assert len(agent.beats) == before, "it is no news that cannot wait"
    agent.give(Looked({1: ReadBack()}))
    agent.pass_(1_000)
    assert agent.report().progress == said("1")


@pytest.mark.parametrize("bad", ["[" * 101 + "0" + "]" * 101, str(2**64), '"\\ud800"', '"\udcff"', "{"])
def test_what_some_could_not_read_is_no_progress_and_costs_no_beat(bad: str) -> None:
    agent = Agent()
    agent.run()
    agent.give(Looked({1: ReadBack(status=said("1"))}))
    agent.give(Looked({1: ReadBack(status=msgspec.Raw(bad.encode(errors="surrogateescape")))}))
    agent.pass_(1_000)
    assert agent.report().progress == said("1")


def test_a_failure_that_the_last_look_finds_was_before_the_end() -> None:
    agent = Agent()
    agent.run()
    agent.pass_(10_000)
    assert agent.worker().state is WorkerState.STOPPING
    agent.give(Healed(1, last=ReadBack(ended="exited with return code 1")))
    assert (agent.report().outcome, agent.report().error) == (Outcome.FAILED, "exited with return code 1")


@pytest.mark.parametrize("ended", ["", None])
def test_success_and_no_end_are_no_failure_at_the_last_look(ended: str | None) -> None:
    agent = Agent()
    agent.run()
    agent.pass_(10_000)
    agent.give(Healed(1, last=ReadBack(ended=ended)))
    assert (agent.report().outcome, agent.report().error) == (Outcome.DONE, "")


def test_the_last_look_of_performer_and_machine_judge_alike() -> None:
    failed = ReadBack(found=("gone",), ended="boom")
    assert failed.judge(5, "") == (Outcome.FAILED, "boom")
    assert ReadBack(found=("gone",), ended="").judge(5, "")[0] is Outcome.DISTURBED
    assert ReadBack(ended="").judge(5, "") == (Outcome.DONE, "")


def test_a_report_of_an_older_peer_tells_no_progress() -> None:
    assert msgspec.json.decode(b'{"worker":1,"task":"t","state":"RUNNING"}', type=Report).progress == said("null")


def test_what_an_undo_awaits_is_asked_for_as_soon_as_it_stirs() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(NotYet(1, "it may take its time"))
    assert agent.machine.deadline() > agent.now
    assert agent.give(Stirred(1)) == []
    assert agent.machine.deadline() <= agent.now
    assert agent.after(0) == [Heal(1, Outcome.DONE, "")]


def test_what_stirs_while_it_is_asked_for_is_asked_for_again_at_once() -> None:
    agent = Agent()
    agent.run()
    agent.hear()
    agent.give(Stirred(1))
    agent.give(NotYet(1, "it may take its time"))
    assert agent.after(0) == [Heal(1, Outcome.DONE, "")]
    agent.give(NotYet(1, "it may take its time"))
    assert agent.after(0) == [], "once"
