"""What agents of another version say that this coordinator cannot read: kept apart, worker by worker. Pure."""

from __future__ import annotations

from collections.abc import Collection

from trogdor_bus.messages import NAMELESS, Beat, Report, UnreadReport
from trogdor_bus.names import shown
from trogdor_bus.states import Outcome

REMEDY = "upgrade the coordinator"
FEW = 3
"""So many reports are told of in one line."""


def of(beat: Beat) -> tuple[UnreadReport, ...]:
    """Return the reports of a beat of which something cannot be read."""
    return tuple(report for report in beat.reports if isinstance(report, UnreadReport))


def nameless(beat: Beat) -> str:
    """Return why a report of a beat cannot be read so far as to say whose it is, "" if all can.

    Beside one that cannot, no worker's absence means anything: it may be that worker's.
    """
    return next((report.why for report in of(beat) if report.worker == NAMELESS), "")


def note(beat: Beat) -> str:
    """Return what people should know of a beat that cannot be read whole, "" if it can."""
    lines = [f"task {shown(report.task)}: {report.why}" for report in of(beat)]
    if not lines:
        return ""
    more = f"; and {len(lines) - FEW} more" if len(lines) > FEW else ""
    return f"what its agent says cannot be read here ({'; '.join(lines[:FEW])}{more}); {REMEDY}"


def blind(beat: Beat, known: dict[int, str], open_: Collection[int]) -> dict[int, str]:
    """Return by open worker why its state could not be read when it was told last; `known` as it was before."""
    found = {worker: before for worker, before in known.items() if worker in open_}
    if why := nameless(beat):
        found |= dict.fromkeys(open_, why)
    for report in beat.reports:
        found.pop(report.worker, None)
        if isinstance(report, UnreadReport) and report.blind and report.worker in open_:
            found[report.worker] = report.why
    return found


def unknown(node: str, why: str) -> str:
    """Return the error of a worker whose end cannot be read."""
    return f"outcome unknown: what the agent of node {node} says of it cannot be read here ({why}); {REMEDY}"


def ended(node: str, report: UnreadReport) -> tuple[Outcome, str]:
    """Return how a worker ended of which this is read: no success is taken from what cannot be read whole."""
    if report.outcome in (Outcome.NONE, Outcome.DONE):
        return Outcome.UNKNOWN, unknown(node, report.why)
    return report.outcome, report.error or unknown(node, report.why)


def warned(node: str, report: Report) -> tuple[str, ...]:
    """Return the warnings of a report, and that something of it cannot be read."""
    if not isinstance(report, UnreadReport):
        return report.warnings
    return (*report.warnings, f"what the agent of node {node} says cannot be read here ({report.why}); {REMEDY}")
