"""The one loop that both daemons run, and the simulation: events in, their effects performed, when to come back.

Nothing here waits, and nothing is behind it: whoever has a loop, or simulated time, feeds what happens, and ticks when
it is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from trogdor_bus.errors import HostError, TrogdorBusError

Event = TypeVar("Event")
Effect = TypeVar("Effect")
Event_contra = TypeVar("Event_contra", contravariant=True)
Effect_co = TypeVar("Effect_co", covariant=True)


class Machine(Protocol[Event_contra, Effect_co]):
    """A pure machine: bad input raises a TrogdorBusError and has changed nothing."""

    def handle(self, event: Event_contra, now_ms: int) -> Sequence[Effect_co]:
        """Return the effects of one event, in the order in which they must happen."""
        ...

    def deadline(self) -> int:
        """Return when it must be told the time, on its own clock."""
        ...


class UnforeseenError(Exception):
    """An event of our own making was refused: an error of ours, which only `broken` gets to see."""


class Shell(Generic[Event, Effect]):
    """Runs a machine: `ticked` is the event that tells it the time, `perform` does all that one event asks for.

    `fed` is called when the deadline may be another one. What nobody foresaw goes to `broken`, which ends the process:
    what is on disk is right, what is in memory may not be.
    """

    def __init__(
        self,
        machine: Machine[Event, Effect],
        perform: Callable[[Sequence[Effect]], None],
        now_ms: Callable[[], int],
        *,
        ticked: Event,
        fed: Callable[[], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._machine, self._perform, self._now_ms = machine, perform, now_ms
        self._ticked, self._fed, self._broken = ticked, fed, broken
        self._later: deque[Event] = deque()
        self._busy = False

    def feed(self, event: Event, *, ours: bool = False) -> None:
        """Handle an event and perform what follows; raise the TrogdorBusError by which either ends.

        One of `ours` cannot be refused by the machine. What is fed while another one is performed comes after it, as
        one of ours.
        """
        if self._busy:
            self._later.append(event)
            return
        self._busy = True
        try:
            self._turn(event, ours)
            while self._later:
                self._turn(self._later.popleft(), ours=True)
        except TrogdorBusError:
            raise
        except (Exception, SystemExit) as error:
            self._broken(error)
        finally:
            self._later.clear()
            self._busy = False
            self._fed()

    def due(self) -> int:
        """Return when to `tick`."""
        return self._machine.deadline()

    def tick(self) -> None:
        """Tell the machine the time, if that is due."""
        if self._now_ms() >= self.due():
            self.feed(self._ticked, ours=True)

    def _turn(self, event: Event, ours: bool) -> None:
        try:
            self._perform(self._machine.handle(event, self._now_ms()))
        except TrogdorBusError as error:
            if ours and not isinstance(error, HostError):
                raise UnforeseenError(f"{type(event).__name__} was refused") from error
            raise
