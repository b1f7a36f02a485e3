"""The programs of experiments, as a simulated coordinator runs them: they submit, take their time, and end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from trogdor_bus.coordinator.events import EndExperiment, ExperimentEnded, StartExperiment
from trogdor_bus.messages import CreateTask, encode
from trogdor_bus.states import Outcome

if TYPE_CHECKING:
    from tests.sim.coordinator import SimCoordinator


class SimPrograms:
    """Those of one life of a coordinator; `after` does something later in that life."""

    def __init__(self, host: SimCoordinator, after: Callable[[int, Callable[[], None]], None]) -> None:
        self._host, self._after, self._random = host, after, host.world.random
        self.running: dict[str, int] = {}
        self._started = 0

    def perform(self, effect: StartExperiment | EndExperiment) -> None:
        """Start a program, or have it end, which it does at its own pace."""
        if isinstance(effect, EndExperiment):
            if effect.id in self.running:
                self._end_after(self._random.randint(10, 3_000), effect.id, Outcome.CANCELLED)
            return
        self._host.world.tally.counts["programs of experiments"] += 1
        self._started += 1
        self.running[effect.id] = self._started
        for number in range(self._random.randint(1, 3)):
            child = partial(self._submit, effect.id, self._started, f"{effect.id}-{self._started}-{number}")
            self._after(self._random.randint(50, 10_000), child)
        self._end_after(self._random.randint(2_000, 30_000), effect.id, Outcome.DONE)

    def forget(self, task_id: str) -> None:
        """Forget an experiment; its program ends by itself, and nobody is told."""
        self.running.pop(task_id, None)

    def _end_after(self, ms: int, task_id: str, outcome: Outcome) -> None:
        self._after(ms, partial(self._end, task_id, self.running[task_id], outcome))

    def _end(self, task_id: str, started: int, outcome: Outcome) -> None:
        if self.running.get(task_id) == started:
            del self.running[task_id]
            self._host.feed(ExperimentEnded(task_id, outcome))

    def _submit(self, parent: str, started: int, child: str) -> None:
        if self.running.get(parent) != started:
            return
        names = self._random.sample(list(self._host.world.nodes), 2)
        spec = {"class": "port-block", "nodes": names, "ports": [9094], "durationMs": self._random.choice((500, 9_000))}
        request = CreateTask(id=child, spec=msgspec.Raw(msgspec.json.encode(spec)))
        self._host.submit(encode(request), parent)
