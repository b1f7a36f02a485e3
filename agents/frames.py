"""The frame of a beat, which says all of a node and must not be too large: a beat that is lost is silence."""

from __future__ import annotations

import msgspec

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.messages import UNTOLD, Beat, Report, encode
from trogdor_bus.printable import cut, cut_lines

MOST_BYTES = MAX_FRAME_BYTES - (64 << 10)
"""What a beat may have, so that there is room for an envelope around it."""
MOST_CHARS = 4_000
"""What of each text, and of each list of texts, is told by a beat that is too large; less, if that is too much."""
MOST_ADDRESSES, MOST_ADDRESS_CHARS = 1_000, 100
"""So many addresses are told by a beat that is too large; nothing longer is one."""


def frame_of(beat: Beat) -> bytes:
    """Return the frame of a beat. Specs that do not fit follow with the next beats; then long texts are cut, too.

    Which workers there are, in which states, is always told.
    """
    frame = encode(beat)
    if len(frame) <= MOST_BYTES:
        return frame
    bare = tuple(msgspec.structs.replace(report, spec=UNTOLD) for report in beat.reports)
    room = MOST_BYTES - len(encode(msgspec.structs.replace(beat, reports=bare)))
    if room < 0:
        return _cut(beat)
    reports, first = list(bare), beat.counter % len(bare)
    for index in (*range(first, len(bare)), *range(first)):
        spec = beat.reports[index].spec
        if len(bytes(spec)) + len(b'"spec":,') <= room:
            room -= len(bytes(spec)) + len(b'"spec":,')
            reports[index] = beat.reports[index]
    return encode(msgspec.structs.replace(beat, reports=tuple(reports)))


def _cut(beat: Beat) -> bytes:
    most, frame = MOST_CHARS, encode(_short(beat, MOST_CHARS))
    while len(frame) > MOST_BYTES and most:
        most //= 4
        frame = encode(_short(beat, most))
    return frame


def _short(beat: Beat, most: int) -> Beat:
    """Return what is told with so many characters of each text; what is not empty stays so."""
    return msgspec.structs.replace(
        beat,
        reports=tuple(_short_report(report, most) for report in beat.reports),
        addresses=tuple(one for one in beat.addresses if len(one) <= MOST_ADDRESS_CHARS)[:MOST_ADDRESSES],
        trouble=cut(beat.trouble, most),
        strays=cut_lines(beat.strays, most),
    )


def _short_report(report: Report, most: int) -> Report:
    gravest = sorted(report.disturbed, key=lambda one: (one.mended, one.unseen))[:1]
    return msgspec.structs.replace(
        report,
        status=cut(report.status, most),
        error=cut(report.error, most),
        progress=UNTOLD,
        warnings=cut_lines(report.warnings, most),
        disturbed=tuple(msgspec.structs.replace(one, text=cut(one.text, most)) for one in gravest),
        residue=cut_lines(report.residue, most),
        by_hand=cut_lines(report.by_hand, most),
        spec=UNTOLD,
    )
