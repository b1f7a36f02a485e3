"""What the steps of one experiment share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trogdor_bus.client import Client
from trogdor_bus.clock import Clock
from trogdor_bus.errors import NotFoundError, TrogdorBusError
from trogdor_bus.experiment import health
from trogdor_bus.experiment.watch import QUICK_S, Watch
from trogdor_bus.faults.experiment import ExperimentSpec


@dataclass(frozen=True, kw_only=True)
class Around:
    """The experiment `id`, its own topic ("" without a stream), who is asked, and who is told what happens.

    `brokers` and `controllers` are the nodes, by id.
    """

    id: str
    spec: ExperimentSpec
    topic: str
    client: Client
    watch: Watch
    clock: Clock
    say: Callable[[str], None]
    brokers: Mapping[int, str] = field(default_factory=dict)
    controllers: Mapping[int, str] = field(default_factory=dict)

    async def lacking(self, answering: tuple[int, ...] = ()) -> list[str]:
        """Return what is not whole now, [] if all is; the brokers in `answering` must answer themselves, too."""
        only = {self.topic} if "under-replicated" in self.spec.allow else None
        try:
            found = health.lacking(await self.watch.whole(), self.brokers, only=only)
        except TrogdorBusError as error:
            return [str(error)]
        for broker in answering if not found else ():
            try:
                await self.watch.settings(broker, QUICK_S)
            except NotFoundError:
                found.append(f"broker {broker} is not there")
            except TrogdorBusError as error:
                found.append(str(error))
        return found

    async def pause_until(self, at_ms: int) -> None:
        """Return at that time."""
        await asyncio.sleep(max(0, at_ms - self.clock.now_ms()) / 1000)
