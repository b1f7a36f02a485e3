"""Which epochs are believed, and what a beat says of other coordinators. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trogdor_bus.messages import MAX_EPOCH, Beat

MOST = MAX_EPOCH // 2
"""No epoch above this is believed, wherever it stands; what follows from it can still be obeyed and written."""
LEAP = 2**32
"""No epoch is believed that is so far above the one that is stored: whole fleets start coordinators less often."""


def is_plausible(epoch: int, known: int = MOST) -> bool:
    """Return whether a coordinator can have reached an epoch, if one of epoch `known` is stored."""
    return 0 <= epoch <= min(MOST, known + LEAP)


def beyond(epoch: int) -> str:
    """Return why an epoch is not believed."""
    return f"it is of epoch {epoch}, which no coordinator can have reached"


class Epochs:
    """What was heard of epochs, by a coordinator that leads above `above` and above what it has stored."""

    def __init__(self, stored: int, above: int) -> None:
        self._known, self._highest = max(stored, above), above

    def refusal(self, beat: Beat) -> str:
        """Return why a beat cannot be believed, "" if it can."""
        for stamp in (beat.stamp, beat.clash):
            if stamp is not None and not is_plausible(stamp.epoch, self._known):
                return (
                    f"the beats of node {beat.node} are refused: its agent says that it heard of epoch {stamp.epoch}, "
                    f"which no coordinator can have reached; restart that agent"
                )
        return ""

    def listen(self, beat: Beat) -> None:
        """Take in the epoch of a beat, while nobody leads here."""
        if beat.stamp is not None:
            self._highest = max(self._highest, beat.stamp.epoch)

    def lead(self, stored: int) -> int:
        """Return the epoch to lead in."""
        self._known = 1 + max(stored, self._highest)
        return self._known

    def fence(self, beat: Beat) -> str:
        """Return why this coordinator must end, "" if it need not."""
        stamp = beat.stamp
        if stamp is None or stamp.epoch <= self._known:
            return ""
        return (
            f"fenced: node {beat.node} obeys coordinator {stamp.coordinator} of epoch {stamp.epoch}, ours is "
            f"{self._known}; this one stops publishing"
        )

    def clashes(self, beat: Beat, me: str) -> Iterator[str]:
        """Yield what a beat says of another coordinator of our own epoch; we are `me`."""
        for what, other in (("obeys", beat.stamp), ("also hears", beat.clash)):
            if other is not None and other.epoch == self._known and other.coordinator != me:
                yield f"clash: node {beat.node} {what} coordinator {other.coordinator} of our own epoch {self._known}"
