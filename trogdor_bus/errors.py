"""The errors that trogdor-bus raises, one tree.

TrogdorBusError
├── SpecError            a spec, configuration or argument is wrong: names the field and the remedy
├── ConflictError        the id is taken by something else
├── NotFoundError        no such task, node or file
├── RefusedError         correct, but not allowed here (policy, safety); says what would allow it
│   └── NotNowError          a role that nobody holds at this moment
├── BusError             the bus cannot carry the frame
│   ├── NoCoordinatorError   nobody answered
│   ├── VersionError         the peer speaks another version of the protocol: says who is to be upgraded
│   └── TakenError           another coordinator has the place
├── HostError            the machine under test refused or failed
│   ├── GoneError            what is acted on is not there any more
│   └── CannotHealError      an undo did not succeed; the fault may still be there
├── NotYetError          it goes on without being waited for: ask again soon
├── FencedError          another coordinator is in charge
├── InvalidTransitionError   an illegal event; carries the story of its id
└── DuplicateSpecError   two spec classes claim one tag (a programming error)
"""

from __future__ import annotations

from trogdor_bus.printable import escape_lines
from trogdor_bus.remedies import Remedy, remedies_in


class TrogdorBusError(Exception):
    """Any error that trogdor-bus raises on purpose; its text is meant for people and steers no terminal.

    What can be done about it stands in the text as in `remedies`, for whoever has words for it.
    """

    def __str__(self) -> str:
        return escape_lines(super().__str__())

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """Return the remedies that the text names."""
        return remedies_in(str(self))


class SpecError(TrogdorBusError):
    """Bad input: `path` is where (JSONPath style, "$" for the whole), `remedy` what to do about it."""

    def __init__(self, message: str, *, path: str = "$", remedy: str = "") -> None:
        self.message, self.path, self.remedy = message, path, remedy
        where = "" if path == "$" else f"{path.removeprefix('$.')}: "
        super().__init__(f"{where}{message}" + (f" ({remedy})" if remedy else ""))


class ConflictError(TrogdorBusError):
    """The id is already taken by something different."""


class NotFoundError(TrogdorBusError):
    """Nothing has that name or id."""


class RefusedError(TrogdorBusError):
    """The request is well formed but not allowed; the text says what would allow it."""


class NotNowError(RefusedError):
    """Nobody holds a role at this moment; a moment later somebody may."""


class BusError(TrogdorBusError):
    """The bus cannot be opened or cannot carry the frame."""


class NoCoordinatorError(BusError):
    """No coordinator answered in time."""


class VersionError(BusError):
    """A peer speaks another version of the protocol; the text says who is to be upgraded."""


class TakenError(BusError):
    """Another coordinator is on that bus, or something else has its address."""


class HostError(TrogdorBusError):
    """The machine under test refused or failed; the text carries its own words."""


class GoneError(HostError):
    """The process, container or network namespace that is acted on is not there any more."""


class CannotHealError(HostError):
    """An undo did not succeed: the fault may still be there."""


class NotYetError(TrogdorBusError):
    """What was asked of a machine goes on by itself: ask again soon. `notes` tell of what was done already.

    `overdue`: what is waited for should have happened at once, so whoever waits is late. Else somebody is slow.
    """

    def __init__(self, text: str, notes: tuple[str, ...] = (), *, overdue: bool = False) -> None:
        self.notes, self.overdue = notes, overdue
        super().__init__(text)


class FencedError(TrogdorBusError):
    """Another coordinator, of a higher epoch, is in charge."""


class InvalidTransitionError(TrogdorBusError):
    """An event that the table does not allow; nothing was changed. Carries the story of the id."""

    def __init__(self, subject: str, state: str, event: str, story: tuple[str, ...] = ()) -> None:
        self.story = story
        past = "".join(f"\n  {line}" for line in story)
        super().__init__(f"{subject}: {event} is not allowed in state {state}{past}")


class DuplicateSpecError(TrogdorBusError):
    """Two spec classes claim the same tag or alias."""
