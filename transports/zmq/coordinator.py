"""The coordinator's end of the ZeroMQ bus."""

from __future__ import annotations

import errno
from pathlib import Path

import zmq

from trogdor_bus import keys as key_files
from trogdor_bus.bus import OnFrame, OnRequest
from trogdor_bus.errors import BusError, TakenError
from trogdor_bus.transports.address import address_and_port, parse, resolve
from trogdor_bus.transports.zmq.sockets import DEFAULT_PORT, PORTS, End, Socket, log, new_key_pair, node_topic

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"trogdor-bus"


class ZmqCoordinator(End):
    """The coordinator's end: binds four ports."""

    def __init__(self, url: str, keys: Path | None) -> None:
        host, port = parse(url, DEFAULT_PORT, PORTS)
        addresses = (host,) if host == "*" else resolve(host)
        super().__init__()
        try:
            self._zap = None if keys is None else self._gatekeeper(keys)
            self._control = self._socket(zmq.PUB, 16)
            self._status = self._socket(zmq.ROUTER, 16)
            self._monitor = self._socket(zmq.PUB, 4096)
            self._request = self._socket(zmq.ROUTER, 1024)
            self._request.router_mandatory = True
            for offset, sock in enumerate((self._control, self._status, self._monitor, self._request)):
                self._secure(sock)
                sock.heartbeat_ivl = 0  # answering a thousand agents' questions is enough
                for address in addresses:
                    _bind(sock, address, port + offset)
        except BaseException:
            self.close()
            raise

    def receive(self, on_beat: OnFrame, on_request: OnRequest) -> None:
        """Begin to deliver in the running loop: beats, and requests with the way to answer each."""

        def take_beat(parts: list[bytes]) -> None:
            if len(parts) == 2:
                on_beat(parts[1])

        def take_request(parts: list[bytes]) -> None:
            if len(parts) == 3:
                client, number, frame = parts
                on_request(frame, lambda reply: answer([client, number, reply]))

        def answer(parts: list[bytes]) -> None:
            self._send(self._request, parts)
            inbox.look()

        if self._zap is not None:
            self._inbox(self._zap, self._admit)
        self._inbox(self._status, take_beat)
        inbox = self._inbox(self._request, take_request)

    def brokers(self) -> None:
        """Return None: no Kafka carries it."""

    def publish(self, node: str, frame: bytes) -> None:
        """Send a frame to the agents of that name that are connected."""
        self._send(self._control, [node_topic(node), frame])

    def announce(self, topic: str, frame: bytes) -> None:
        """Send a frame to every monitor that is connected."""
        self._send(self._monitor, [topic.encode(), frame])

    def links(self) -> dict[str, dict[str, bool]]:
        """Return {}: there is one link."""
        return {}

    def _gatekeeper(self, keys: Path) -> Socket:
        """Bind the socket on which libzmq asks whether a key may enter (ZAP, RFC 27), before any port is open."""
        key_files.ensure(keys, new_key_pair)
        coordinator, member = key_files.load_coordinator(keys)
        self._pair = bytes.fromhex(coordinator.public), bytes.fromhex(coordinator.secret)
        self._known = {bytes.fromhex(member.public)}
        zap = self._context.socket(zmq.REP)
        self._sockets.append(zap)
        zap.linger = 0
        zap.bind(ZAP_ADDRESS)
        return zap

    def _secure(self, sock: Socket) -> None:
        if self._zap is None:
            return
        sock.curve_server = True
        sock.curve_publickey, sock.curve_secretkey = self._pair
        sock.zap_domain = ZAP_DOMAIN
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no gatekeeper, no entry

    def _admit(self, parts: list[bytes]) -> None:
        assert self._zap is not None
        version, number, _domain, address, _identity, mechanism, *credentials = parts
        known = mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in self._known
        if not known:
            log.warning("%s has a key that we do not know: %s", address.decode(errors="replace"), key_files.GET_KEYS)
        verdict = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._zap.send_multipart([version, number, *verdict, b"", b""], zmq.DONTWAIT)


def _bind(sock: Socket, address: str, port: int) -> None:
    sock.ipv6 = address == "*" or ":" in address
    try:
        sock.bind(f"tcp://{address_and_port(address, port)}")
    except zmq.ZMQError as error:
        where = address_and_port(address, port)
        if error.errno == errno.EADDRINUSE:
            raise TakenError(
                f"{where} is taken: is another coordinator running? Stop it, or choose another ‹port›"
            ) from None
        reasons = {
            errno.EADDRNOTAVAIL: f"{address} is no address of this machine: choose one with ‹bind›",
            errno.EACCES: f"no permission to listen at {where}: choose a ‹port› above 1023",
        }
        raise BusError(reasons.get(error.errno or 0, f"cannot listen at {where}: {error.strerror}")) from None
