"""What all ends share: the options of their sockets, and reading them in an asyncio loop."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence

import zmq
from zmq.utils import z85

from trogdor_bus.bus import MAX_FRAME_BYTES

DEFAULT_PORT = 5560
PORTS = 4
"""Control, status, monitor and request, in this order from the base port."""
LINGER_MS = 500
BATCH = 256
"""Frames read before the loop gets its turn."""

OPTIONS = {
    zmq.LINGER: LINGER_MS,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES + 4096,  # a frame and what CURVE adds to it
    zmq.HEARTBEAT_IVL: 1000,  # who dials asks (see coordinator.py); both ends then notice a dead connection
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.CONNECT_TIMEOUT: 1000,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.BACKLOG: 1024,
}

log = logging.getLogger("trogdor_bus.transports.zmq")
Socket = zmq.Socket[bytes]
Parts = list[bytes]


def new_key_pair() -> tuple[bytes, bytes]:
    """Return a new CURVE pair (public, secret) of 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


def node_topic(node: str) -> bytes:
    """Return the topic of a node: no node's topic begins with another's."""
    return b"node/" + node.encode(errors="surrogatepass") + b"/"


class Inbox:
    """Reads a socket in the loop and hands over its messages, one at a time.

    The descriptor of a zmq socket is edge-triggered, and any call on the socket may swallow an edge: whoever sends on
    the socket calls `look` afterwards. `on_empty`, called when nothing is left to read, returns True to be read again.
    """

    def __init__(
        self, sock: Socket, on_parts: Callable[[list[bytes]], None], on_empty: Callable[[], bool] = lambda: False
    ) -> None:
        self._sock, self._on_parts, self._on_empty = sock, on_parts, on_empty
        self._loop = asyncio.get_running_loop()
        self._descriptor = sock.FD
        self._looking = False
        self._closed = False
        self._loop.add_reader(self._descriptor, self._drain)
        self.look()

    def look(self) -> None:
        """Read the socket at the loop's next turn, whatever its descriptor says."""
        if not self._looking and not self._closed:
            self._looking = True
            self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Read no more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)

    def _drain(self) -> None:
        self._looking = False
        for _ in range(BATCH):
            if self._closed:
                return
            try:
                parts = self._sock.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                if self._on_empty():
                    continue
                return
            try:
                self._on_parts(parts)
            except Exception:
                log.exception("a receiver failed; the frame is lost")
            except BaseException:
                self.look()
                raise
        self.look()


class End:
    """What every end has: a context of its own, its sockets, and what reads them."""

    def __init__(self) -> None:
        self.dropped = 0
        self._context: zmq.Context[Socket] = zmq.Context()
        self._sockets: list[Socket] = []
        self._inboxes: list[Inbox] = []
        self._closed = False

    def close(self) -> None:
        """Send what is queued, for at most half a second, and let go of everything."""
        if self._closed:
            return
        self._closed = True
        for inbox in self._inboxes:
            inbox.close()
        for sock in self._sockets:
            sock.disable_monitor()  # first: a thread of libzmq would wait for ever for a monitor that is gone
        for sock in self._sockets:
            sock.close()
        self._context.term()

    def _socket(self, kind: int, queue: int) -> Socket:
        sock = self._context.socket(kind)
        self._sockets.append(sock)
        for option, value in (OPTIONS | {zmq.SNDHWM: queue, zmq.RCVHWM: queue}).items():
            sock.setsockopt(option, value)
        return sock

    def _inbox(
        self, sock: Socket, on_parts: Callable[[list[bytes]], None], on_empty: Callable[[], bool] = lambda: False
    ) -> Inbox:
        inbox = Inbox(sock, on_parts, on_empty)
        self._inboxes.append(inbox)
        return inbox

    def _send(self, sock: Socket, parts: Sequence[bytes]) -> None:
        """Queue a message, or drop it and count that."""
        if self._closed:
            return
        if len(parts[-1]) > MAX_FRAME_BYTES:
            log.warning("dropped a frame of %d bytes: the bus carries at most %d", len(parts[-1]), MAX_FRAME_BYTES)
            self.dropped += 1
            return
        try:
            sock.send_multipart(parts, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            self.dropped += 1
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):  # the queue is full; the client is gone
                log.warning("dropped a frame: %s", error)
