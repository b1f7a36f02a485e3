"""The pipe between the coordinator and the program of an experiment: JSON behind its length (4 bytes, big endian).

The program reads it from its standard input and writes to its standard output. The end of its input means that the
coordinator is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable
from typing import Any

import msgspec

from trogdor_bus.errors import BusError, NoCoordinatorError
from trogdor_bus.experiment.destinations import Destinations
from trogdor_bus.messages import ExperimentProgress
from trogdor_bus.names import shown
from trogdor_bus.states import Outcome

MAX_FRAME = 32 << 20
"""No frame on the pipe is larger."""
_LENGTH = 4


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """The coordinator's first word: which experiment, and where the cluster under test is.

    `config` is a file of librdkafka properties, "" for none; `probe_commands`: probes may start programs;
    `destinations`: where probes and clients of Kafka may connect.
    """

    id: str
    spec: msgspec.Raw
    bootstrap: str = ""
    config: str = ""
    probe_commands: bool = False
    destinations: Destinations = Destinations()


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """The coordinator's reply to the request of that number."""

    number: int
    reply: msgspec.Raw


class ToldToStop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """The experiment shall end soon, with what it has."""

    why: str


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    """A request to the coordinator, as a client makes it."""

    number: int
    request: msgspec.Raw


class Progressed(msgspec.Struct, frozen=True, kw_only=True, tag="progressed"):
    """How far the experiment is, and what is new to tell."""

    progress: ExperimentProgress
    lines: tuple[str, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The experiment's last word; `result` is the JSON of its Result, `error` "" or why it did not pass."""

    outcome: Outcome
    error: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


FromCoordinator = Begin | Answered | ToldToStop
FromExperiment = Asked | Progressed | Ended


def pack(message: FromCoordinator | FromExperiment) -> bytes:
    """Return a message as it goes through the pipe; BusError if it is too large."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_FRAME:
        raise BusError(f"a frame of {len(body)} bytes is too large for the pipe, which takes {MAX_FRAME}")
    return len(body).to_bytes(_LENGTH, "big") + body


async def unpack(reader: asyncio.StreamReader, kind: Any) -> Any:
    """Return the next message, None at the end; BusError if what came is none, or is cut off in the middle."""
    try:
        head = await reader.readexactly(_LENGTH)
        length = int.from_bytes(head, "big")
        if length > MAX_FRAME:
            raise BusError(f"what came through the pipe is no frame: it begins with {head!r}")
        return msgspec.json.decode(await reader.readexactly(length), type=kind)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BusError("the pipe ended in the middle of a frame") from None
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError(f"what came through the pipe is no frame: {shown(str(error))}") from None


class Pipe:
    """The program's end, which is also a client's bus. `on_stop` is told why the experiment shall end.

    It is told "" when the coordinator is gone.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.WriteTransport, written: asyncio.Event) -> None:
        self._reader, self._writer, self._written = reader, writer, written
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._open = True

    async def begin(self) -> Begin:
        """Return the coordinator's first word; BusError if it is another one, or none."""
        first = await unpack(self._reader, FromCoordinator)
        if not isinstance(first, Begin):
            raise BusError("this program is started by the coordinator, and speaks with nobody else")
        return first

    async def listen(self, on_stop: Callable[[str], None]) -> None:
        """Take in what the coordinator says, until it is gone."""
        with contextlib.suppress(BusError):
            while (message := await unpack(self._reader, FromCoordinator)) is not None:
                if isinstance(message, ToldToStop):
                    on_stop(message.why)
                elif isinstance(message, Answered):
                    waiting = self._waiting.pop(message.number, None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(bytes(message.reply))
        self._open = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(NoCoordinatorError("the coordinator is gone"))
        on_stop("")

    def tell(self, message: FromExperiment) -> None:
        """Send a message, if the coordinator is still there."""
        if self._open:
            self._writer.write(pack(message))

    async def finish(self, timeout_s: float = 10.0) -> None:
        """Return when everything has gone through the pipe, or nobody reads it; nothing can be told after."""
        self._open = False
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._written.wait(), timeout_s)

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the coordinator's answer; NoCoordinatorError if there is none in time, or it is gone."""
        if not self._open:
            raise NoCoordinatorError("the coordinator is gone")
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.tell(Asked(number=number, request=msgspec.Raw(frame)))
        try:
            return await asyncio.wait_for(waiting, timeout_s)
        except TimeoutError:
            raise NoCoordinatorError(f"the coordinator did not answer within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Let the pipe be: it ends with the program, by `finish`."""


async def open_pipe() -> Pipe:
    """Return this program's end of the pipe; from then on what anybody prints goes to standard error."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_FRAME)
    given, taken = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), given)
    transport, out = await loop.connect_write_pipe(_Out, taken)
    return Pipe(reader, transport, out.written)


class _Out(asyncio.BaseProtocol):
    def __init__(self) -> None:
        self.written = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.written.set()
