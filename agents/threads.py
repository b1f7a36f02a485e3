"""The threads of lanes, one for each, and a loop for those who have none."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from trogdor_bus.agents.lanes import Call, Job, Lanes, Later, carry_out, caught
from trogdor_bus.errors import HostError

T = TypeVar("T")
Deliver = Callable[[str, Sequence[object]], None]
IDLE_S = 10.0
"""A thread that has nothing to do for so long ends."""
AGAIN_S = 0.1
"""When it is tried again to start a thread that the machine refused."""
log = logging.getLogger("trogdor_bus.agents")


class Threads:
    """Carries the calls of lanes: `deliver` is given their outcomes, in the thread of the lane; `later` is the timer.

    A thread that hangs holds up its lane and nothing else, not even the end of the process. One that the machine
    refuses is asked for again until it can be had.
    """

    def __init__(self, deliver: Deliver, later: Later) -> None:
        self._deliver, self._later, self._changing = deliver, later, threading.Lock()
        self._told = False
        self._queues: dict[str, SimpleQueue[Sequence[Call[Any]]]] = {}

    def carry(self, lane: str, calls: Sequence[Call[Any]]) -> None:
        """Have a lane do calls when it has done those before."""
        with self._changing:
            queue = self._queues.get(lane)
            if queue is None:
                queue = SimpleQueue()
                thread = threading.Thread(target=self._run, args=(lane, queue), name=lane or "lane", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._later(AGAIN_S, partial(self.carry, lane, calls))
                    if not self._told:
                        log.error("no thread can be started: %s; trying on until it can be", error)
                    self._told = True
                    return
                self._queues[lane], self._told = queue, False
            queue.put(calls)

    def _run(self, lane: str, queue: SimpleQueue[Sequence[Call[Any]]]) -> None:
        while calls := self._next(lane, queue):
            self._deliver(lane, carry_out(calls))

    def _next(self, lane: str, queue: SimpleQueue[Sequence[Call[Any]]]) -> Sequence[Call[Any]]:
        """Return the next batch; () if there was none for long, and so this thread is the lane's no more."""
        try:
            return queue.get(timeout=IDLE_S)
        except Empty:
            with self._changing:
                if not queue.empty():
                    return queue.get()
                del self._queues[lane]
                return ()


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work()` returns; HostError if that takes longer, and then its thread goes on alone."""
    outcome: SimpleQueue[T | Exception] = SimpleQueue()
    thread = threading.Thread(target=lambda: outcome.put(caught(work)), name="within", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(f"the machine refuses a thread: {error}") from None
    try:
        found = outcome.get(timeout=seconds)
    except Empty:
        raise HostError(f"nothing answers within {seconds:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def run_in_lanes(job: Job[T]) -> T:
    """Run a job, its calls in threads of their lanes, and return what it returns."""
    inbox: SimpleQueue[tuple[str, Sequence[object]]] = SimpleQueue()
    timers: list[tuple[float, int, Callable[[], None]]] = []
    count = itertools.count()
    ended: list[T | Exception] = []

    def later(seconds: float, go_on: Callable[[], None]) -> None:
        heapq.heappush(timers, (time.monotonic() + seconds, next(count), go_on))

    lanes = Lanes(Threads(lambda lane, outcomes: inbox.put((lane, outcomes)), later).carry, later)
    lanes.begin(job, ended.append)
    while not ended:
        if timers and timers[0][0] <= time.monotonic():
            heapq.heappop(timers)[2]()
            continue
        try:
            lane, outcomes = inbox.get(timeout=timers[0][0] - time.monotonic() if timers else None)
        except Empty:
            continue
        lanes.carried(lane, outcomes)
    if isinstance(ended[0], Exception):
        raise ended[0]
    return ended[0]
