"""Many processes: what is read for each does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from tests.agents.inline import Inline
from tests.agents.simdisk import SimDisk
from tests.agents.stops import Table
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Suspend
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.platforms.linux import operations, platform, processes, signals
from trogdor_bus.agents.platforms.linux.operations import freezes
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
from trogdor_bus.spec import Texts
from trogdor_bus.states import Outcome


def order(worker: int, word: str) -> Order:
    actions = (Suspend(match=ProcessMatch(command=word)),)
    texts = Texts("a", "b", "c", "d")
    return Order(
        worker=worker,
        journal="j",
        task=f"t{worker}",
        texts=texts,
        actions=actions,
        duration_ms=60_000,
        remaining_ms=60_000,
        spec=msgspec.Raw(b"null"),
    )


def work(many: int) -> int:
    """Freeze that many twice, and one other, and undo it all; return how often an operation or a process was read."""
    count = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            return work(*args)

        return call

    table = Table()
    for _ in range(many):
        table.start("many")
    table.start("other")
    with table.installed(), pytest.MonkeyPatch.context() as patch:
        for module in (operations, freezes, platform):
            patch.setattr(module, "read", counted(operations.read))
        for module in (processes, signals):
            patch.setattr(module, "thread_states", counted(module.thread_states))
        performer = Inline(Journal(SimDisk(Random(1))), table.platform)
        for worker, word in ((1, "many"), (2, "many"), (3, "other")):
            performer.inject(order(worker, word), 10**12, Surroundings())
        assert len(table.stopped) == many + 1
        for worker in (3, 1, 2):
            assert performer.look(worker).found == ()
            run_in_lanes(performer.performer.heal(worker, Outcome.DONE, ""))
            assert len(table.stopped) == (0 if worker == 2 else many)
    return count


def test_stops_of_many_processes_are_counted_in_linear_time() -> None:
    few, many = work(20), work(200)
    assert many < 12 * few, f"{few} reads for 20 processes, {many} for 200"
