"""The frame of a beat, which says all of a node and must not be too large: a beat that is lost is silence."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.messages import UNTOLD, Beat, Report, encode

MOST_BYTES = MAX_FRAME_BYTES - (64 << 10)
"""What a beat may have, so that there is room for an envelope around it."""
FEW = 5
LINE_CHARS = 2_000
CUT = "... (cut)"


def frame_of(beat: Beat) -> bytes:
    """Return the frame of a beat. Specs that do not fit follow with the next beats; then long texts are cut, too."""
    frame = encode(beat)
    if len(frame) <= MOST_BYTES:
        return frame
    bare = tuple(msgspec.structs.replace(report, spec=UNTOLD) for report in beat.reports)
    room = MOST_BYTES - len(encode(msgspec.structs.replace(beat, reports=bare)))
    if room < 0:
        short = tuple(map(_short, bare))
        return encode(msgspec.structs.replace(beat, reports=short, strays=_lines(beat.strays)))
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
        status=_line(report.status),
        error=_line(report.error),
        progress=UNTOLD,
        warnings=_lines(report.warnings),
        disturbed=report.disturbed[:FEW],
        residue=_lines(report.residue),
        by_hand=_lines(report.by_hand),
    )


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    more = (f"and {len(lines) - FEW} more",) if len(lines) > FEW else ()
    return (*map(_line, lines[:FEW]), *more)


def _line(line: str) -> str:
    return line if len(line) <= LINE_CHARS else line[:LINE_CHARS] + CUT
