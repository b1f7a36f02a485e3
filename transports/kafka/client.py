"""A client's end of a Kafka bus.

A request and its reply have the client's random id as key, and a header `number`. A request shows a `ticket`, too: one
without a good ticket is not delivered but answered with a good one, which the client then shows.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from trogdor_bus.bus import MAX_FRAME_BYTES
from trogdor_bus.errors import BusError, NoCoordinatorError
from trogdor_bus.transports.kafka import topics
from trogdor_bus.transports.kafka.end import End
from trogdor_bus.transports.kafka.record import Record

NUMBER = "number"
TICKET = "ticket"
REPEAT_S = 1.0


class KafkaClient(End):
    """A client's end: knows where the replies end before it asks."""

    reads = (topics.REPLIES,)
    writes = (topics.REQUESTS,)
    moves = False  # that nothing comes is usual, and what came meanwhile would be lost

    def __init__(self, url: str, keys: Path | None) -> None:
        self._id = secrets.token_hex(16).encode()
        self._ticket = b""
        self._frames: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._number = 0
        self._suspicion = ""
        self._receiving = False
        super().__init__(url, keys)
        self._thread.start()

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the answer; NoCoordinatorError if there is none in time, BusError if the frame is too large."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BusError(f"the request has {len(frame)} bytes, the bus carries at most {MAX_FRAME_BYTES}")
        if self._closed:
            raise BusError("the bus is closed")
        if not self._receiving:
            self._receiving = True
            self._inbox.open(lambda item: self._answered(*item))
        self._number += 1
        number = self._number.to_bytes(8, "big")
        self._frames[number] = frame
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                while not future.done():
                    self._ask_for(number)
                    await asyncio.wait((future,), timeout=REPEAT_S)
                answer: bytes = future.result()
                return answer
        except TimeoutError:
            trouble = self._trouble() or self._suspicion or self._lost or "the brokers answer, but no coordinator does"
            raise NoCoordinatorError(
                f"no coordinator answered at {self.address} within {timeout_s:g} s: {trouble}"
            ) from None
        finally:
            del self._waiting[number], self._frames[number]

    def close(self) -> None:
        """Let go of everything; requests still waiting end with BusError."""
        super().close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BusError("the bus was closed before the answer came"))

    def _ask_for(self, number: bytes) -> None:
        """Ask, or ask again: a coordinator hears each number once."""
        self._send(topics.REQUESTS, self._id, self._frames[number], {NUMBER: number, TICKET: self._ticket})

    def _answered(self, record: Record, value: bytes) -> None:
        if record.topic == "":  # we may begin
            for waiting in list(self._waiting):
                self._ask_for(waiting)
            return
        number = record.fields.get(NUMBER, b"")
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if TICKET in record.fields:
            self._ticket = record.fields[TICKET]
            self._ask_for(number)
        else:
            future.set_result(value)

    def _found(self) -> None:
        self._inbox.put((Record("", b"", {}, b""), b""), 0)

    def _wants(self, topic: str, key: bytes) -> bool:
        return key == self._id

    def _suspect(self, trouble: str) -> None:
        self._suspicion = trouble

    def _say_goodbye(self) -> None:
        """Forget what was not sent: nobody would see the answer."""
        if self._producer is not None:
            self._producer.purge()
