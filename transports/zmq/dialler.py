"""Dialling out to the coordinator: one connection per address and port, and what is known of each."""

from __future__ import annotations

import asyncio
import errno
import struct
from functools import partial
from pathlib import Path

import zmq

from trogdor_bus import keys as key_files
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.transports.address import address_and_port, parse, resolve
from trogdor_bus.transports.zmq.sockets import DEFAULT_PORT, OPTIONS, PORTS, End, Socket

REDIAL_S = 1.0
WATCHED = (
    zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Line:
    """One dialled connection: what is known of it, and dialling again where libzmq gives up.

    libzmq dials again by itself when a connection is refused or lost, but never after a refused key, another mechanism
    or a malformed frame. Each dialling takes the keys as they are on disk by then.
    """

    def __init__(self, sock: Socket, address: str, port: int, keys: Path | None) -> None:
        self._sock, self._keys = sock, keys
        self._where = address_and_port(address, port)
        self._ipv6 = ":" in address
        self._timer: asyncio.TimerHandle | None = None
        self._begun_s = 0.0
        self._dialled = False
        self.url = f"tcp://{self._where}"
        self.connected = False
        self.trouble = f"no answer from {self._where} yet"
        self._dial()

    def hang_up(self) -> None:
        """Do not dial again."""
        if self._timer is not None:
            self._timer.cancel()

    def see(self, event: int, value: int) -> None:
        """Take in an event of libzmq's monitor."""
        if not self._dialled:
            return  # an echo of the connection that was given up
        now_s = asyncio.get_running_loop().time()
        if event == zmq.EVENT_CONNECT_DELAYED:
            self._begun_s = now_s
        elif event == zmq.EVENT_CONNECT_RETRIED:
            self.hang_up()  # libzmq goes on by itself
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected, self.trouble = True, ""
        elif event == zmq.EVENT_CLOSED:
            late = now_s - self._begun_s > 0.9 * OPTIONS[zmq.CONNECT_TIMEOUT] / 1000
            self.connected = False
            self.trouble = f"{self._where} does not answer" if late else f"connection refused by {self._where}"
        elif event == zmq.EVENT_DISCONNECTED:
            self.connected, self.trouble = False, f"lost the connection to {self._where}"
            self._dial_later()
        else:
            self.connected, self.trouble = False, self._why_no_handshake(event, value)
            self._disconnect()
            self._dial_later()

    def _why_no_handshake(self, event: int, value: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return f"{self._where} refused our key: {key_files.GET_KEYS}"
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EAGAIN:
            return f"{self._where} does not answer"
        if self._keys is None:
            return f"{self._where} uses keys and we do not, or it is no coordinator: leave out ‹insecure›"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return f"{self._where} uses no keys and we do: start it without ‹insecure›"
        return (
            f"{self._where} has another key than the one we know, or uses no keys, or is no coordinator: "
            f"{key_files.GET_KEYS}"
        )

    def _dial_later(self) -> None:
        self.hang_up()
        self._timer = asyncio.get_running_loop().call_later(REDIAL_S, self._dial_again)

    def _dial_again(self) -> None:
        self._disconnect()
        try:
            self._dial()
        except TrogdorBusError as error:  # somebody is changing the keys
            self.trouble = str(error)
            self._dial_later()

    def _dial(self) -> None:
        if self._keys is not None:
            member = key_files.load_member(self._keys)
            self._sock.curve_serverkey = bytes.fromhex(member.coordinator)
            self._sock.curve_publickey = bytes.fromhex(member.public)
            self._sock.curve_secretkey = bytes.fromhex(member.secret)
        self._sock.ipv6 = self._ipv6
        self._sock.connect(self.url)
        self._dialled = True

    def _disconnect(self) -> None:
        self._dialled = False
        try:
            self._sock.disconnect(self.url)
        except zmq.ZMQError as error:
            if error.errno != errno.ENOENT:  # libzmq gave it up already
                raise


class Dialler(End):
    """What the ends have in common that dial out: to every address of the host, one socket per port."""

    def __init__(self, url: str, keys: Path | None) -> None:
        host, self._port = parse(url, DEFAULT_PORT, PORTS)
        self._addresses, self._keys = resolve(host), keys
        self._lines: list[dict[str, Line]] = []
        self._monitors: list[Socket] = []
        super().__init__()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Send what is queued, for at most half a second, and let go of everything."""
        for line in (line for lines in self._lines for line in lines.values()):
            line.hang_up()
        super().close()

    def _open(self) -> None:
        raise NotImplementedError

    def _dial(self, kind: int, offset: int, queue: int, topic: bytes | None = None) -> Socket:
        sock = self._socket(kind, queue)
        if topic is not None:
            sock.linger = 0  # only subscriptions could be waiting
            sock.subscribe(topic)
        else:
            sock.immediate = True
        self._monitors.append(self._monitored(sock))
        lines = [Line(sock, address, self._port + offset, self._keys) for address in self._addresses]
        self._lines.append({line.url: line for line in lines})
        return sock

    def _monitored(self, sock: Socket) -> Socket:
        """Return where the events of a socket arrive; any number may wait there, for libzmq stops while it is full."""
        address = f"inproc://monitor-{id(sock)}"
        sock.monitor(address, WATCHED)
        monitor = self._context.socket(zmq.PAIR)
        self._sockets.append(monitor)
        monitor.rcvhwm = 0
        monitor.linger = 0
        monitor.connect(address)
        return monitor

    def _watch(self) -> None:
        for monitor, lines in zip(self._monitors, self._lines, strict=True):
            self._inbox(monitor, partial(self._see, lines))

    def _see(self, lines: dict[str, Line], parts: list[bytes]) -> None:
        event, value = struct.unpack("=HI", parts[0])
        if event & WATCHED:
            lines[parts[1].decode()].see(event, value)

    def _trouble(self) -> str:
        for lines in self._lines:
            if not any(line.connected for line in lines.values()):
                return "; ".join(line.trouble for line in lines.values())
        return ""
