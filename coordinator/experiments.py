"""The programs of experiments: each is started, answered, watched, and ended; what they tell and find is kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import sys
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from io import FileIO
from pathlib import Path

import msgspec

from trogdor_bus import late
from trogdor_bus.coordinator.events import EndExperiment, Event, ExperimentEnded, StartExperiment
from trogdor_bus.errors import BusError, HostError
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.experiment.files import write_whole
from trogdor_bus.experiment.pipe import (
    Answered,
    Asked,
    Begin,
    Ended,
    FromCoordinator,
    FromExperiment,
    Progressed,
    ToldToStop,
    pack,
    unpack,
)
from trogdor_bus.fuse import heed
from trogdor_bus.messages import ExperimentInfo, ExperimentProgress, GetExperiment, ToldLine
from trogdor_bus.printable import escape
from trogdor_bus.spec import wire
from trogdor_bus.states import Outcome, TaskRow, TaskState
from trogdor_bus.supervisor.children import Child, order
from trogdor_bus.supervisor.tree import CHILD

log = logging.getLogger("trogdor_bus.coordinator")
PROGRAM = (sys.executable, "-m", "trogdor_bus.experiment")
MAX_LINES = 1_000
"""Older lines of an experiment are forgotten."""
LAST_WORDS = 12
"""So many lines of what a program wrote to standard error are told if it dies."""
MAX_FILE_NAME = 200
END_S = 150.0
"""A program that was told to end heals, reads everything again, audits, and removes its topic; then it is killed."""
LINGER_MS = 20_000
"""A program whose coordinator is gone may take so long to remove its topic; then its keeper kills it."""
GONE_S = 8.0
"""How long programs may take to end with the coordinator; they have 5 s for their topics."""


class UnderTest(msgspec.Struct, frozen=True, kw_only=True):
    """Where the cluster under test is ("" = not known), and a file of librdkafka properties for it, "" for none."""

    bootstrap: str = ""
    config: str = ""


def nowhere() -> Destinations:
    """Return that nothing may be reached but the cluster itself."""
    return Destinations()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the file of an ended experiment holds."""

    verdict: str
    progress: ExperimentProgress
    lines: tuple[ToldLine, ...]
    result: msgspec.Raw


class _Verdict(msgspec.Struct):
    verdict: str = ""


class Experiments:
    """The programs, by experiment.

    `answer` replies to a request of one of them, `handle` gives an event to the machine. Results are files in
    `directory`, which only their owner reads. `probe_commands`: probes may start programs here; `destinations` tells
    where they may connect. `broken` is told of what nobody foresaw, and of the experiment at which that came up.
    """

    def __init__(
        self,
        directory: Path,
        under_test: UnderTest,
        *,
        probe_commands: bool,
        answer: Callable[[bytes, str], Awaitable[bytes]],
        handle: Callable[[Event], None],
        now_ms: Callable[[], int],
        broken: Callable[[BaseException, str], object],
        destinations: Callable[[], Destinations] = nowhere,
    ) -> None:
        self._destinations, self._broken = destinations, broken
        self._directory, self._under_test, self._probe_commands = directory, under_test, probe_commands
        self._answer, self._handle, self._now_ms = answer, handle, now_ms
        self._programs: dict[str, Program] = {}
        self._running: dict[str, tuple[Program, asyncio.Task[None]]] = {}
        self._closing = False

    def perform(self, effect: StartExperiment | EndExperiment) -> None:
        """Start the program of an experiment, or tell it to end and kill it if it does not in time."""
        if isinstance(effect, StartExperiment):
            begin = Begin(
                id=effect.id,
                spec=msgspec.Raw(wire(effect.spec)),
                bootstrap=self._under_test.bootstrap,
                config=self._under_test.config,
                probe_commands=self._probe_commands,
                destinations=self._destinations(),
            )
            program = self._programs[effect.id] = Program(begin, self._answer, self._now_ms)
            before = self._running.get(effect.id)  # of an experiment that was destroyed
            task = asyncio.create_task(self._run(effect.id, program, before[1] if before else None))
            heed(task, lambda error: self._broken(error, effect.id))
            self._running[effect.id] = (program, task)
        elif effect.id in self._running:
            self._running[effect.id][0].end(effect.why)

    async def told(self, task: TaskRow, request: GetExperiment) -> ExperimentInfo:
        """Return how an experiment goes, or went; HostError if its file cannot be read."""
        program = self._programs.get(task.id)
        kept = program.kept() if program else await asyncio.to_thread(self._read, task.id)
        if kept is None:
            return ExperimentInfo(task=task, verdict="Error" if task.state is TaskState.DONE else "")
        return ExperimentInfo(
            task=task,
            progress=kept.progress,
            lines=tuple(line for line in kept.lines if line.number > request.after),
            verdict=kept.verdict,
            result=kept.result if request.with_result else msgspec.Raw(b"null"),
        )

    def forget(self, task_id: str) -> None:
        """Forget what an experiment told and found; harmless if there is nothing."""
        forgotten = self._programs.pop(task_id, None)
        if forgotten is not None:
            forgotten.is_forgotten = True
        with contextlib.suppress(OSError):
            self._path(task_id).unlink(missing_ok=True)

    async def close(self) -> None:
        """Let every program see that the coordinator ends, and kill those that do not end in time."""
        self._closing = True
        for give_up in (Program.hang_up, Program.kill):
            for program, _ in self._running.values():
                give_up(program)
            if self._running:
                await asyncio.wait([task for _, task in self._running.values()], timeout=GONE_S)

    async def _run(self, task_id: str, program: Program, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        ended = await program.run()
        if program.is_forgotten or self._closing:
            self._done(task_id, program)
            return
        try:
            await asyncio.to_thread(self._keep, task_id, program.kept())
            if self._programs.get(task_id) is program:
                del self._programs[task_id]  # from now on its file tells
        except HostError as error:
            program.say(f"the result cannot be kept: {error}")
            log.error("experiment %s: the result cannot be kept: %s", task_id, error)
        self._done(task_id, program)
        if program.is_forgotten:  # while it was written down
            self._path(task_id).unlink(missing_ok=True)
        else:
            with contextlib.suppress(HostError):  # said already, and the end of this coordinator
                self._handle(ExperimentEnded(task_id, ended.outcome, ended.error))

    def _done(self, task_id: str, program: Program) -> None:
        if self._running[task_id][0] is program:
            del self._running[task_id]

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, task_id: str) -> Path:
        short = len(task_id.encode()) <= MAX_FILE_NAME
        return self._directory / f"{task_id if short else hashlib.sha256(task_id.encode()).hexdigest()}.json"

    def _keep(self, task_id: str, kept: Kept) -> None:
        path = self._path(task_id)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, msgspec.json.encode(kept), 0o600)
        except OSError as error:
            raise HostError(
                f"cannot write {path}: {error.strerror}; free space there, and let this user write"
            ) from None

    def _read(self, task_id: str) -> Kept | None:
        path = self._path(task_id)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise HostError(f"{path} is damaged; remove it") from None


class Program:
    """One experiment's program, and what it has told so far."""

    is_forgotten = False
    """Nobody wants to know any more how it ends."""

    def __init__(
        self, begin: Begin, answer: Callable[[bytes, str], Awaitable[bytes]], now_ms: Callable[[], int]
    ) -> None:
        self._begin, self._answer, self._now_ms = begin, answer, now_ms
        self._child: Child | None = None
        self._stdin: asyncio.WriteTransport | None = None
        self._stirred, self._mark = asyncio.Event(), uuid.uuid4().hex
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._lines: deque[ToldLine] = deque(maxlen=MAX_LINES)
        self._progress = ExperimentProgress(phase="starting")
        self._number = 0
        self._why = ""
        self._ended: Ended | None = None

    def kept(self) -> Kept:
        """Return what it has told; the verdict is "" while it goes on, "Error" if it ended without one."""
        result = self._ended.result if self._ended else msgspec.Raw(b"null")
        verdict = ""
        if self._ended:
            with contextlib.suppress(*late.UNREADABLE):
                verdict = msgspec.json.decode(result, type=_Verdict).verdict
            verdict = verdict or "Error"
        return Kept(verdict=verdict, progress=self._progress, lines=tuple(self._lines), result=result)

    def say(self, text: str) -> None:
        """Add a line to what it told."""
        self._number += 1
        self._lines.append(ToldLine(number=self._number, at_ms=self._now_ms(), text=text))

    async def run(self) -> Ended:
        """Return how it ended, in words of our own if it could say nothing itself."""
        try:
            self._ended = await self._spoken()
        except (HostError, BusError) as error:
            self.kill()
            self._ended = Ended(outcome=Outcome.FAILED, error=f"Error: {error}")
            self.say(str(error))
        return self._ended

    def end(self, why: str) -> None:
        """Tell it to end, and kill it if it does not in time."""
        self._why = why
        if self._stdin is not None:
            self._write(ToldToStop(why=why))
            asyncio.get_running_loop().call_later(END_S, self.kill)

    def hang_up(self) -> None:
        """Close the pipe to it: it knows by that that the coordinator is gone."""
        if self._stdin is not None:
            self._stdin.close()

    def kill(self) -> None:
        """Kill it, and all that it has started."""
        if self._child is not None:
            self._child.stop(0)

    async def _spoken(self) -> Ended:
        stdout, stderr = await self._start()
        self._write(self._begin)
        if self._why:
            self.end(self._why)
        hearing = asyncio.create_task(self._hear(stderr))
        ended: Ended | None = None
        try:
            while (message := await unpack(stdout, FromExperiment)) is not None:
                match message:
                    case Asked(number=number, request=request):
                        reply = await self._answer(bytes(request), self._begin.id)
                        self._write(Answered(number=number, reply=msgspec.Raw(reply)))
                    case Progressed(progress=progress, lines=lines):
                        self._progress = progress
                        for line in lines:
                            self.say(line)
                    case Ended():
                        ended = message
            self.hang_up()
            how = await self._exit()
        finally:
            await self._end_all()
            await asyncio.wait([hearing], timeout=1)
            hearing.cancel()
        if ended is not None:
            return ended
        topic = self._progress.topic
        left = f"; its topic {topic} is left, `‹remove-topics›` removes it" if topic else ""
        words = "".join(f"\n{line}" for line in self._last_words)
        said = f"; it said last:{words}" if words else ""
        raise HostError(f"its program {how} before it had a verdict{left}{said}")

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
        """Start it under a keeper, and return what reads its output."""
        ours, theirs = list[int](), list[int]()
        try:
            for ends in ((theirs, ours), (ours, theirs), (ours, theirs)):
                for side, fd in zip(ends, os.pipe(), strict=True):
                    side.append(fd)
            loop, stirred = asyncio.get_running_loop(), self._stirred.set

            def stir() -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(stirred)

            self._child = await asyncio.to_thread(self._launch, theirs, stir)
            stdin, stdout, stderr = (os.fdopen(ours.pop(0), mode, buffering=0) for mode in ("wb", "rb", "rb"))
            self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, stdin)
            return await _reader(stdout), await _reader(stderr)
        except (OSError, HostError) as error:
            raise HostError(f"its program cannot be started: {error}") from None
        finally:
            for fd in (*ours, *theirs):
                os.close(fd)

    def _launch(self, streams: Sequence[int], stirred: Callable[[], None]) -> Child:
        name, environment = f"experiment {self._begin.id}", {**os.environb, CHILD.encode(): self._mark.encode()}
        what = {**order(PROGRAM, str(Path.cwd()), environment), "linger_ms": LINGER_MS}
        child = Child(what, self._mark, name, lambda start: start(), stirred, streams=streams)
        try:
            child.release()
        except HostError:
            child.stop(0)
            raise
        return child

    async def _exit(self) -> str:
        """Wait until it has ended, and return how."""
        child = self._child
        assert child is not None
        while child.exit is None and not child.over:
            await self._stirred.wait()
            self._stirred.clear()
        if child.exit is None:
            return "was killed with its keeper"
        return (
            f"was killed by {_signal_name(-child.exit)}" if child.exit < 0 else f"ended with exit status {child.exit}"
        )

    async def _end_all(self) -> None:
        """Leave nothing of it, nor of what its probes have started."""
        child = self._child
        assert child is not None
        self.hang_up()
        child.stop(0)
        while not child.over:
            await self._stirred.wait()
            self._stirred.clear()
        if not await asyncio.to_thread(child.sweep):
            log.error("experiment %s: some of its processes are left", self._begin.id)

    async def _hear(self, stderr: asyncio.StreamReader) -> None:
        """Take in what it says to people; a line without an end is cut."""
        while chunk := await stderr.read(1 << 14):
            for line in chunk.decode(errors="replace").splitlines():
                if line.strip():
                    self._last_words.append(escape(line)[:500])
                    log.debug("experiment %s: %s", self._begin.id, self._last_words[-1])

    def _write(self, message: FromCoordinator) -> None:
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(pack(message))


async def _reader(file: FileIO) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return reader


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
