"""The monitor's screens: live on a terminal, lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from trogdor_bus.cli import render
from trogdor_bus.cli.reach import Reach
from trogdor_bus.cli.telling import said_json
from trogdor_bus.client import Client
from trogdor_bus.errors import BusError, TrogdorBusError
from trogdor_bus.messages import (
    EVENT_TOPIC,
    VIEW_TOPIC,
    AnyEvent,
    Pulse,
    TaskChanged,
    ViewPage,
    WorkerChanged,
    decode,
)
from trogdor_bus.mirror import Mirror
from trogdor_bus.printable import escape_json
from trogdor_bus.states import TaskState, WorkerState
from trogdor_bus.view import View

SILENCE_S = 3.0
STRANGER_TEXT = "Another coordinator is heard, and the one before no more: everything is asked for anew."
TICK_S = 0.25
REMEMBERED_EVENTS = 1000
AGAIN_S, LONGEST_S = 1.0, 30.0
"""How long it waits at least, and at most, before it asks for a whole view again."""


def watch(reach: Reach, as_json: bool, limit_s: float | None) -> int:
    """Show everything that is announced, until Ctrl-C or for `limit_s`; return 4 if nothing was heard, else 0."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `monitor --json | head` ends as quietly as any other tool
    try:
        return asyncio.run(_watch(reach, as_json, limit_s))
    except KeyboardInterrupt:
        return 130 if as_json else 0


class _Screen(Protocol):
    def view(self, mirror: Mirror) -> None: ...

    def event(self, event: AnyEvent) -> None: ...

    def say(self, text: str) -> None: ...

    def tick(self) -> None: ...


class _Ears:
    """Decodes what is heard, drops what was heard already, keeps a view, and notices silence.

    What goes wrong in showing it is raised by `tick`: whoever calls `hear` is a bus, and knows nothing of screens.
    """

    def __init__(self, screen: _Screen, silence_text: str) -> None:
        self._screen, self._silence_text = screen, silence_text
        self._seen: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_EVENTS)
        self._last = time.monotonic()
        self._silent = False
        self._broken = ""
        self._leader, self._ask_at, self._wait_s = "", 0.0, AGAIN_S
        self.mirror = Mirror()
        self.heard = False
        self._failed: Exception | None = None

    def hear(self, topic: str, frame: bytes) -> None:
        self._last, self.heard = time.monotonic(), True
        if self._failed is not None:
            return
        try:
            self._show(topic, frame)
        except Exception as error:
            self._failed = error

    def _show(self, topic: str, frame: bytes) -> None:
        if self._silent:
            self._silent = False
            self._screen.say("The coordinator is heard again.")
        try:
            if topic.startswith(VIEW_TOPIC):
                self._hear_view(frame)
            elif topic.startswith(EVENT_TOPIC):
                self._hear_event(frame)
        except BusError as error:
            self._say_broken(f"A frame is left out: {error}")

    def _hear_view(self, frame: bytes) -> None:
        pulse: Pulse = decode(frame, Pulse)
        strangers, agrees = self.mirror.strangers, self.mirror.beat(pulse, time.monotonic_ns() // 1_000_000)
        if self.mirror.leader != self._leader:
            self._leader, self._ask_at, self._wait_s = self.mirror.leader, 0.0, AGAIN_S
        if self.mirror.strangers != strangers:
            self._screen.say(STRANGER_TEXT)
        if agrees:
            self._wait_s = AGAIN_S
            self._screen.view(self.mirror)

    def _hear_event(self, frame: bytes) -> None:
        event: AnyEvent = decode(frame, AnyEvent)  # of one that only newer versions know the text; the digest shows it
        if (event.at_ms, event.seq) not in self._seen:
            self._seen.append((event.at_ms, event.seq))
            whole = self.mirror.filled(event)
            self.mirror.hear(event)
            self._screen.event(whole)

    def wants(self) -> bool:
        """Return whether a whole view is to be asked for now; whoever is told so asks.

        Not before anything is heard: from the first view on, no event is missed.
        """
        now = time.monotonic()
        if not (self.heard and self.mirror.wants) or now < self._ask_at:
            return False
        self._ask_at, self._wait_s = now + self._wait_s, min(2 * self._wait_s, LONGEST_S)
        return True

    async def ask(self, client: Client) -> None:
        """Ask for a whole view, and show it."""
        try:
            self._take(await client.view())
        except TrogdorBusError as error:
            if self.mirror.wants and not self._silent:
                self._say_broken(f"Only events are shown, since the whole view does not come: {error}")

    def _take(self, pages: Sequence[ViewPage]) -> None:
        try:
            self.mirror.take(pages)
            if not self.mirror.wants:
                self._broken = ""
                self._screen.view(self.mirror)
        except Exception as error:
            self._failed = self._failed or error

    def _say_broken(self, text: str) -> None:
        if text != self._broken:
            self._broken = text
            self._screen.say(text)

    def tick(self) -> None:
        if self._failed is not None:
            raise self._failed
        if not self._silent and time.monotonic() - self._last > SILENCE_S:
            self._silent = True
            self._screen.say(self._silence_text)
        self._screen.tick()


async def _watch(reach: Reach, as_json: bool, limit_s: float | None) -> int:
    bus = reach.monitor()
    silence_text = f"Nothing is heard from {reach.where()} for {SILENCE_S:g} s; still listening.{reach.advice()}"
    try:
        with _screen(as_json, reach.where()) as screen:
            ears = _Ears(screen, silence_text)
            async with reach.client() as client, _asking(ears, client) as ask:

                def hear(topic: str, frame: bytes) -> None:
                    ears.hear(topic, frame)
                    ask()

                bus.receive(hear)
                end = time.monotonic() + limit_s if limit_s is not None else None
                while end is None or time.monotonic() < end:
                    ask()
                    await asyncio.sleep(TICK_S if end is None else max(0.0, min(TICK_S, end - time.monotonic())))
                    ears.tick()
    finally:
        bus.close()
    return 0 if ears.heard else 4


@asynccontextmanager
async def _asking(ears: _Ears, client: Client) -> AsyncIterator[Callable[[], None]]:
    """Yield what begins to ask for a whole view, if that is wanted and not under way."""
    under_way: list[asyncio.Task[None]] = []

    def ask() -> None:
        if all(task.done() for task in under_way) and ears.wants():
            under_way[:] = [asyncio.create_task(ears.ask(client))]

    try:
        yield ask
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


@contextmanager
def _screen(as_json: bool, where: str) -> Iterator[_Screen]:
    if as_json:
        yield _JsonLines()
    elif not sys.stdout.isatty():
        yield _Lines()
    else:
        screen = _LiveScreen(render.console(), where)
        with screen.live:
            yield screen


class _JsonLines:
    """One JSON line per event, and per view as {"view": ...}; words for people go to standard error."""

    def view(self, mirror: Mirror) -> None:
        if (world := mirror.world()) is None:
            return
        tasks = tuple(msgspec.structs.replace(one, task=render.with_why(one.task)) for one in world.tasks)
        _print_raw({"view": msgspec.structs.replace(world, tasks=tasks)})

    def event(self, event: AnyEvent) -> None:
        if isinstance(event, TaskChanged):
            event = msgspec.structs.replace(event, task=render.with_why(event.task))
        _print_raw(event)

    def say(self, text: str) -> None:
        render.print_line(render.console(stderr=True), text)

    def tick(self) -> None:
        pass


class _Lines:
    """A line per event; the first view as one line."""

    def __init__(self) -> None:
        self._console = render.console()
        self._greeted = False

    def view(self, mirror: Mirror) -> None:
        if not self._greeted:
            self._greeted = True
            self.say(_summary(mirror.view))

    def event(self, event: AnyEvent) -> None:
        _print_event(self._console, event)

    def say(self, text: str) -> None:
        render.print_line(self._console, text)

    def tick(self) -> None:
        sys.stdout.flush()


class _LiveScreen:
    """Nodes and running tasks at the bottom of the terminal, events scrolling above."""

    def __init__(self, console: Console, where: str) -> None:
        self._where = where
        self._mirror = Mirror()
        self._offset_ms: int | None = None
        self.live = Live(render.text(f"listening to {where} ..."), console=console, auto_refresh=False)

    def view(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._offset_ms = mirror.at_ms - time.monotonic_ns() // 1_000_000

    def event(self, event: AnyEvent) -> None:
        _print_event(self.live.console, event)

    def say(self, text: str) -> None:
        render.print_line(self.live.console, text, "yellow")

    def tick(self) -> None:
        if self._offset_ms is not None:
            self.live.update(self._screen(time.monotonic_ns() // 1_000_000 + self._offset_ms), refresh=True)

    def _screen(self, now_ms: int) -> RenderableType:
        view = self._mirror.view
        head = render.text(f"{self._where}: {_summary(view)}", "bold")
        nodes = sorted(view.nodes.values(), key=lambda node: node.name)
        table = render.nodes_table(nodes, now_ms, live=True)
        return Group(head, table, *render.dirt(nodes), _running(view, now_ms))


def _running(view: View, now_ms: int) -> Table:
    result = render.table("TASK", "STATE", "", "LEFT")
    for task in sorted(view.tasks.values(), key=lambda task: task.id):
        if task.state is TaskState.DONE:
            continue
        total = max(task.duration_ms, 1)
        left_ms = task.end_ms - now_ms
        bar = ProgressBar(total=total, completed=min(max(total - left_ms, 0), total), width=14)
        waits = task.state is TaskState.PENDING
        left = f"starts in {render.duration(task.start_ms - now_ms)}" if waits else render.duration(left_ms)
        name = render.text(f"{task.id} ({render.kind_of(task)})")
        result.add_row(name, render.text(task.state.value), bar, render.text(left))
    return result


def _summary(view: View) -> str:
    alive = sum(node.alive for node in view.nodes.values())
    going = sum(task.state is not TaskState.DONE for task in view.tasks.values())
    return f"{alive} of {len(view.nodes)} nodes alive, {going} tasks under way"


def _print_event(console: Console, event: AnyEvent) -> None:
    if not event.text:
        return
    stuck = isinstance(event, WorkerChanged) and event.worker.state is WorkerState.STUCK
    render.print_line(console, f"{render.date(event.at_ms)} {event.text}", "bold red" if stuck else "")


def _print_raw(told: object) -> None:
    sys.stdout.buffer.write(escape_json(said_json(told).decode()).encode() + b"\n")
    sys.stdout.buffer.flush()
