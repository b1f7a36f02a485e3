"""The ends of agents, clients and monitors of the ZeroMQ bus."""

from __future__ import annotations

import asyncio
from pathlib import Path

import zmq

from trogdor_bus.bus import MAX_FRAME_BYTES, OnFrame, OnTopic
from trogdor_bus.errors import BusError, NoCoordinatorError
from trogdor_bus.platform import Endpoint
from trogdor_bus.transports.address import address_and_port
from trogdor_bus.transports.zmq.dialler import Dialler
from trogdor_bus.transports.zmq.sockets import PORTS, Inbox, node_topic


class ZmqAgent(Dialler):
    """An agent's end."""

    def __init__(self, url: str, node: str, keys: Path | None) -> None:
        self._topic = node_topic(node)
        super().__init__(url, keys)

    def _open(self) -> None:
        self._control = self._dial(zmq.SUB, 0, 16, self._topic)
        self._status = self._dial(zmq.DEALER, 1, 4)

    def receive(self, on_snapshot: OnFrame) -> None:
        """Begin to deliver the frames for this node in the running loop."""

        def take(parts: list[bytes]) -> None:
            if len(parts) == 2 and parts[0] == self._topic:
                on_snapshot(parts[1])

        self._watch()
        self._inbox(self._control, take)

    def send(self, frame: bytes) -> None:
        """Send a frame to the coordinator, if it is connected."""
        self._send(self._status, [frame])

    def control(self) -> tuple[Endpoint, ...]:
        """Return the addresses of the coordinator's host, each with the four ports."""
        ports = tuple(range(self._port, self._port + PORTS))
        return tuple(Endpoint(address, ports) for address in self._addresses)

    def trouble(self) -> str:
        """Return "" while connected, else why not, as far as it can be seen (known once `receive` was called)."""
        return self._trouble()


class ZmqClient(Dialler):
    """A client's end."""

    def __init__(self, url: str, keys: Path | None) -> None:
        self._inbox_of_answers: Inbox | None = None
        self._unsent: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._number = 0
        super().__init__(url, keys)

    def _open(self) -> None:
        self._request = self._dial(zmq.DEALER, 3, 1024)
        self._request.linger = 0  # nobody would see the answer

    async def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Return the answer; NoCoordinatorError if there is none in time, BusError if the frame is too large."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BusError(f"the request has {len(frame)} bytes, the bus carries at most {MAX_FRAME_BYTES}")
        if self._closed:
            raise BusError("the bus is closed")
        if self._inbox_of_answers is None:
            self._watch()
            self._inbox_of_answers = self._inbox(self._request, self._take, self._flush)
        self._number += 1
        number = self._number.to_bytes(8, "big")
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._unsent[number] = frame
        self._inbox_of_answers.look()
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            places = " or ".join(address_and_port(address, self._port) for address in self._addresses)
            trouble = self._trouble() or "it is connected, but silent"
            raise NoCoordinatorError(f"no coordinator answered at {places} within {timeout_s:g} s: {trouble}") from None
        finally:
            del self._waiting[number]
            self._unsent.pop(number, None)

    def close(self) -> None:
        """Let go of everything; requests still waiting end with BusError."""
        super().close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BusError("the bus was closed before the answer came"))

    def _take(self, parts: list[bytes]) -> None:
        if len(parts) == 2 and (future := self._waiting.get(parts[0])) is not None and not future.done():
            future.set_result(parts[1])

    def _flush(self) -> bool:
        """Send what the connection takes, nothing whose caller has given up; True if there is something to read."""
        while True:
            events = int(self._request.getsockopt(zmq.EVENTS))
            if not (self._unsent and events & zmq.POLLOUT):
                return bool(events & zmq.POLLIN)
            number = next(iter(self._unsent))
            self._send(self._request, [number, self._unsent.pop(number)])


class ZmqMonitor(Dialler):
    """A monitor's end."""

    def _open(self) -> None:
        self._monitor = self._dial(zmq.SUB, 2, 4096, b"")

    def receive(self, on_topic: OnTopic) -> None:
        """Begin to deliver (topic, frame) of all that is announced, in the running loop."""

        def take(parts: list[bytes]) -> None:
            if len(parts) == 2:
                on_topic(parts[0].decode(errors="replace"), parts[1])

        self._watch()
        self._inbox(self._monitor, take)
