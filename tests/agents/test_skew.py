"""A coordinator of another version: what an agent cannot read of one order costs that worker alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.agents.driver import Agent, order
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.events import Heal, Inject, Injected, KeepLatch
from trogdor_bus.states import Outcome, WorkerState

PORTS = (BlockPorts(ports=(9092,)),)
Skew = Callable[[dict[str, Any]], None]


def action(**fields: Any) -> Skew:
    """Return what changes the action of an order."""
    return lambda order: order["actions"][0].update(fields)


UNKNOWN: dict[str, tuple[Skew, str]] = {
    "an action": (action(action="cut-cable"), "the action 'cut-cable'"),
    "a value": (action(direction="sideways"), "direction"),
    "a type": (action(ports="all"), "ports"),
    "a field": (action(address="10.0.0.1"), "address"),
    "texts": (lambda order: order.update(texts=7), "texts"),
    "an end": (lambda order: order.update(remaining_ms={"wall": 5}), "remaining_ms"),
    "a drift": (lambda order: order.update(drift=[{"node": "b"}]), "drift"),
}


def both() -> Agent:
    """Return an agent whose workers 1 and 2 run."""
    agent = Agent()
    agent.run(1)
    agent.hear(order(1), order(2))
    agent.give(Injected(2))
    return agent


def of(worker: int, skew: Skew) -> Skew:
    """Return what changes the order of one worker in a word."""
    return lambda frame: [skew(order) for order in frame["orders"] if order["worker"] == worker] and None


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_order_that_cannot_be_read_fails_alone_in_words(what: str) -> None:
    skew, told = UNKNOWN[what]
    agent = both()
    effects = agent.hear_skewed(of(3, skew), order(2), order(3, actions=PORTS), order(4))
    assert effects == [Heal(1, Outcome.DONE, "", 0), *[one for one in effects if isinstance(one, Inject)]]
    assert [one.order.worker for one in effects if isinstance(one, Inject)] == [4]
    report = agent.report(3)
    assert (report.state, report.outcome) == (WorkerState.DONE, Outcome.FAILED)
    assert told in report.error
    assert "n1" in report.error and report.error.endswith("upgrade the agent")
    assert agent.worker(2).state is WorkerState.RUNNING


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_word_with_an_order_that_cannot_be_read_renews_the_lease(what: str) -> None:
    agent = Agent()
    agent.run(1, remaining_ms=60_000)
    for _ in range(40):
        agent.after(1_000)
        agent.hear_skewed(of(3, UNKNOWN[what][0]), order(1), order(3, actions=PORTS))
    assert agent.worker(1).state is WorkerState.RUNNING


@pytest.mark.parametrize("what", UNKNOWN)
def test_an_abort_beside_an_order_that_cannot_be_read_is_obeyed(what: str) -> None:
    agent = Agent()
    agent.run(1)
    effects = agent.hear_skewed(of(3, UNKNOWN[what][0]), order(1), order(3, actions=PORTS), abort="latch-1")
    assert KeepLatch("latch-1") in effects
    assert agent.worker(1).state is WorkerState.STOPPING


def test_what_cannot_be_read_of_a_worker_that_runs_does_not_end_it() -> None:
    agent = Agent()
    agent.run(1)
    assert agent.hear_skewed(of(1, lambda order: order.update(drift=7)), order(1, actions=None)) == []
    assert agent.worker(1).state is WorkerState.RUNNING
    assert agent.hear() == [Heal(1, Outcome.DONE, "", 0)]


def test_an_order_that_cannot_be_read_starts_on_a_fresh_word_only_and_is_told_once() -> None:
    agent = Agent()
    skew = of(1, UNKNOWN["an action"][0])
    agent.now += 6_000
    agent.hear_skewed(skew, order(1, actions=PORTS))
    assert 1 not in agent.machine.workers
    agent.after(1_000)
    agent.hear_skewed(skew, order(1, actions=PORTS))
    assert agent.report(1).outcome is Outcome.FAILED
    agent.hear(order(1, actions=PORTS))
    assert agent.report(1).outcome is Outcome.FAILED, "once is once"


def test_the_short_form_of_what_the_agent_has_not_is_no_failure() -> None:
    agent = Agent()
    agent.hear_skewed(of(1, lambda order: order.update(drift=7)), order(1, actions=None))
    assert agent.machine.workers == {}


@pytest.mark.parametrize(
    "broken", [7, {}, {"worker": "x", "task": "t", "journal": "j1"}, {"worker": 3, "journal": "j1"}]
)
def test_an_order_of_which_not_even_the_worker_can_be_read_costs_nothing_else(broken: object) -> None:
    agent = both()
    effects = agent.hear_skewed(lambda frame: frame["orders"].insert(0, broken), order(2), abort="")
    assert effects == [Heal(1, Outcome.DONE, "", 0)]
    assert agent.worker(2).state is WorkerState.RUNNING


def test_fields_of_another_version_are_ignored() -> None:
    agent = Agent()

    def more(frame: dict[str, Any]) -> None:
        frame["news"] = frame["stamp"]["news"] = frame["echo"]["news"] = [1]
        frame["orders"][0]["news"] = {"deep": [1]}

    assert [type(one) for one in agent.hear_skewed(more, order(1, actions=PORTS))] == [Inject]
