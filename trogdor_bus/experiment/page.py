"""The result as one HTML page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from trogdor_bus.experiment.charts import charts, shown_ms
from trogdor_bus.experiment.result import UNKNOWN, Result
from trogdor_bus.experiment.verdict import gap_words, since
from trogdor_bus.printable import escape_lines

MOST_ROWS = 200
"""So many rows of a table are shown; result.json has all."""


def document(result: Result) -> bytes:
    """Return the page in UTF-8."""
    text = _template().render(
        result=result,
        charts=charts(result),
        most_rows=MOST_ROWS,
        spec=json.dumps(result.spec, indent=2, ensure_ascii=False),
        gaps=sorted(result.gaps, key=lambda gap: -gap.ms)[:5],
        ms=shown_ms,
        when=_when,
        since=lambda at_ms: since(at_ms, result),
        gap_words=lambda gap: gap_words(gap, result),
        summary=_summary(result),
    )
    return text.encode("utf-8", "replace")


@functools.cache
def _template() -> Template:
    loader = PackageLoader("trogdor_bus.experiment", "")
    return Environment(
        loader=loader,
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")


def _printable(value: Any) -> Any:
    """Return a text with what would steer a reader's eyes, such as U+202E, written as an escape."""
    return escape_lines(value) if type(value) is str else value


def _when(at_ms: int) -> str:
    if not 0 <= at_ms < 10**14:
        return "an unknown time"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _summary(result: Result) -> list[tuple[str, str]]:
    """Return the numbers that stand at the top: what, and how much."""
    found = result.findings
    leaders = [fault.new_leader_ms for fault in result.faults if fault.new_leader_ms != UNKNOWN]
    recoveries = [fault.recovered_ms for fault in result.faults if fault.recovered_ms != UNKNOWN]
    longest = max((gap.ms for gap in result.gaps), default=UNKNOWN)
    tiles: list[tuple[str, Any]] = [
        ("faults", len(result.faults)),
        ("acknowledged", "–" if found is None else found.acked),
        ("lost", "–" if found is None else found.lost.count),
        ("longest gap", shown_ms(longest)),
        ("slowest new leader", shown_ms(max(leaders, default=UNKNOWN))),
        ("slowest recovery", shown_ms(max(recoveries, default=UNKNOWN))),
    ]
    return [(name, str(value)) for name, value in tiles]
