"""The charts of an experiment's page, as numbers and SVG paths. Pure; every text in them is still to be escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from trogdor_bus.experiment.result import UNKNOWN, Bin, Result

WIDTH, HEIGHT = 960, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 26, 30
_SPACE = 46
"""So far apart must two marks be for both to be labelled."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line: its name, the CSS class that colours it, and the path."""

    name: str
    css: str
    path: str


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """A place on an axis, in the chart's units, and what stands there."""

    at: float
    text: str


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A time that is shaded: from `at` over `width`; `title` tells of it, `text` stands on it."""

    at: float
    width: float
    text: str
    title: str


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart over the time of the experiment; `lines` without a path have no data."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    windows: tuple[Window, ...]
    marks: tuple[Window, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def has_data(self) -> bool:
        """Return whether there is anything to draw."""
        return any(line.path for line in self.lines)


class _Span(msgspec.Struct, frozen=True):
    start_ms: int
    end_ms: int

    def x(self, at_ms: float) -> float:
        part = (at_ms - self.start_ms) / (self.end_ms - self.start_ms)
        return round(LEFT + min(1.0, max(0.0, part)) * (WIDTH - LEFT - RIGHT), 1)


def charts(result: Result) -> tuple[Chart, ...]:
    """Return the charts of throughput and of latency; none without bins."""
    if not result.bins:
        return ()
    start_ms = min(one.start_ms for one in result.bins)
    span = _Span(start_ms, max(start_ms + 1, *(one.end_ms for one in result.bins)))
    return (_throughput(result, span), _latency(result, span))


def _throughput(result: Result, span: _Span) -> Chart:
    top = max(1.0, *(max(one.acked, one.delivered) for one in result.bins))
    steps = nice(top)
    top = steps[-1]

    def y(value: float) -> float:
        return _y(value / top)

    lines = (
        Line(name="acknowledged", css="one", path=_path(result.bins, span, y, lambda one: one.acked)),
        Line(name="read by the auditor", css="two", path=_path(result.bins, span, y, lambda one: one.delivered)),
    )
    ticks = tuple(Tick(at=y(step), text=f"{step:g}") for step in steps)
    return _chart("Throughput", "records a second", lines, ticks, result=result, span=span)


def _latency(result: Result, span: _Span) -> Chart:
    seen = [ms for one in result.bins for ms in (one.produce_p99_ms, one.end_to_end_p99_ms) if ms >= 0]
    decades = math.ceil(math.log10(max(10.0, *seen, 0.0)))

    def y(ms: float) -> float:
        return _y(math.log10(max(1.0, ms)) / decades)

    lines = (
        Line(
            name="to the acknowledgement", css="one", path=_path(result.bins, span, y, lambda one: one.produce_p99_ms)
        ),
        Line(name="to the auditor", css="two", path=_path(result.bins, span, y, lambda one: one.end_to_end_p99_ms)),
    )
    ticks = tuple(Tick(at=y(10**power), text=shown_ms(10**power)) for power in range(decades + 1))
    return _chart("Latency, 99th percentile", "logarithmic", lines, ticks, result=result, span=span)


def _chart(
    title: str, unit: str, lines: tuple[Line, ...], y_ticks: tuple[Tick, ...], *, result: Result, span: _Span
) -> Chart:
    length_s = (span.end_ms - span.start_ms) / 1000
    origin_ms = result.started_ms if result.started_ms != UNKNOWN else span.start_ms
    first_s = (span.start_ms - origin_ms) / 1000
    step = _step(length_s, 8)
    seconds = [step * n for n in range(math.ceil(first_s / step), math.floor((first_s + length_s) / step) + 1)]
    return Chart(
        title=title,
        unit=unit,
        lines=lines,
        x_ticks=tuple(Tick(at=span.x(origin_ms + at_s * 1000), text=f"{at_s:g} s") for at_s in seconds),
        y_ticks=y_ticks,
        windows=tuple(_windows(result, span)),
        marks=tuple(_marks(result, span)),
    )


def _windows(result: Result, span: _Span) -> Iterable[Window]:
    for fault in result.faults:
        end_ms = span.end_ms if fault.end_ms == UNKNOWN else fault.end_ms
        at = span.x(fault.start_ms)
        width = round(max(2.0, span.x(end_ms) - at), 1)
        title = f"fault {fault.number}: {fault.target}" if fault.target else f"fault {fault.number}"
        yield Window(at=at, width=width, text=str(fault.number), title=f"{title}, {end_ms - fault.start_ms} ms")


def _marks(result: Result, span: _Span) -> Iterable[Window]:
    labelled = -math.inf
    for change in sorted(result.leader_changes, key=lambda change: change.at_ms):
        at = span.x(change.at_ms)
        moved = f"{_broker(change.before)}→{_broker(change.after)}"
        what, short = (
            ("active controller", f"ctl {moved}")
            if change.partition < 0
            else (f"leader of partition {change.partition}", moved)
        )
        text = "" if at - labelled < _SPACE else short
        labelled = at if text else labelled
        yield Window(at=at, width=0, text=text, title=f"{what}: {_broker(change.before)} → {_broker(change.after)}")


def _broker(number: int) -> str:
    return "none" if number < 0 else str(number)


def _path(bins: Sequence[Bin], span: _Span, y: Callable[[float], float], value: Callable[[Bin], float]) -> str:
    """Return the path through the middles of the bins; a bin without a value interrupts it."""
    parts, drawing = [], False
    for one in bins:
        known = value(one)
        if known < 0 or not math.isfinite(known):
            drawing = False
            continue
        x = span.x((one.start_ms + one.end_ms) / 2)
        # A point that stands alone is a dot: a line of no length with round ends.
        parts.append(f"L{x:g} {y(known):g}" if drawing else f"M{x:g} {y(known):g}h0")
        drawing = True
    return "".join(parts)


def _y(part: float) -> float:
    return round(HEIGHT - BOTTOM - min(1.0, max(0.0, part)) * (HEIGHT - TOP - BOTTOM), 1)


def nice(top: float) -> list[float]:
    """Return round numbers from 0 to at least `top`, four to six of them."""
    step = _step(top, 5)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def _step(length: float, most: int) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 ... (or tenths of it) that fits at most `most` times."""
    power = math.floor(math.log10(length / most))
    for factor in (1, 2, 5, 10):
        step = float(factor * 10**power) if power >= 0 else factor / 10**-power
        if length / step <= most:
            return step
    raise AssertionError(f"no step for {length}")


def shown_ms(ms: float) -> str:
    """Return a time in ms for people: "3.2 ms", "41.2 s", "5 min 3 s"; a dash for one that is not known."""
    if ms < 0:
        return "–"
    if ms < 1000:
        return f"{ms:.0f} ms" if ms == int(ms) or ms >= 100 else f"{ms:.1f} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s".replace(".0 s", " s")
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s"
