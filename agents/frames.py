"""The frame of a beat, which says all of a node and must not be too large: a beat that is lost is silence."""

from __future__ import annotations

import msgspec

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.messages import UNTOLD, Beat, Report, encode
from trogdor_bus.printable import cut, cut_lines

MOST_BYTES = MAX_FRAME_BYTES - (64 << 10)
"""What a beat may have, so that there is room for an envelope around it."""
MOST_CHARS = 4_000
"""What of each text, and of each list of texts, is told by a beat that is too large."""


def frame_of(beat: Beat) -> bytes:
    """Return the frame of a beat. Specs that do not fit follow with the next beats; then long texts are cut, too."""
    frame = encode(beat)
    if len(frame) <= MOST_BYTES:
        return frame
    bare = tuple(msgspec.structs.replace(report, spec=UNTOLD) for report in beat.reports)
    room = MOST_BYTES - len(encode(msgspec.structs.replace(beat, reports=bare)))
    if room < 0:
        short = tuple(map(_short, bare))
        return encode(msgspec.structs.replace(beat, reports=short, strays=cut_lines(beat.strays, MOST_CHARS)))
    reports, first = list(bare), beat.counter % len(bare)
    for index in (*range(first, len(bare)), *range(first)):
        spec = beat.reports[index].spec
        if len(bytes(spec)) + len(b'"spec":,') <= room:
            room -= len(bytes(spec)) + len(b'"spec":,')
            reports[index] = beat.reports[index]
    return encode(msgspec.structs.replace(beat, reports=tuple(reports)))


def _short(report: Report) -> Report:
    return msgspec.structs.replace(
        report,
        status=cut(report.status, MOST_CHARS),
        error=cut(report.error, MOST_CHARS),
        progress=UNTOLD,
        warnings=cut_lines(report.warnings, MOST_CHARS),
        disturbed=report.disturbed[:1],
        residue=cut_lines(report.residue, MOST_CHARS),
        by_hand=cut_lines(report.by_hand, MOST_CHARS),
    )
