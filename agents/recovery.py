"""Undoes what an earlier life left, beside the loop of an agent that starts."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence

from trogdor_bus.agents.lanes import All
from trogdor_bus.agents.looplanes import LoopLanes
from trogdor_bus.agents.perform import Performer

log = logging.getLogger("trogdor_bus.agents")


async def recover(
    performer: Performer,
    lanes: LoopLanes,
    broken: Callable[[BaseException], object],
    within_s: float | None = None,
    *,
    wait: bool = False,
) -> None:
    """Undo every live worker, for so long at most; with `wait`, what goes on by itself is waited for.

    What is not done by then goes on, and what else is to be done for its worker comes after it.
    """

    def told(job: asyncio.Future[tuple[str, ...]]) -> None:
        if (error := job.exception()) is not None:
            broken(error)
            return
        for line in job.result():
            log.warning("%s", line)

    jobs = [lanes.done(performer.recover_one(worker, wait=wait), worker) for worker in performer.left()]
    for job in jobs:
        job.add_done_callback(told)
    if jobs:
        await asyncio.wait(jobs, timeout=within_s)


async def by_hand_of(performer: Performer, workers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return what a person would type to undo each."""
    typed = await All([functools.partial(performer.by_hand, worker) for worker in workers])
    return {worker: one for worker, one in zip(workers, typed, strict=True) if not isinstance(one, Exception)}
