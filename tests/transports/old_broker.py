"""A broker as old as Kafka 0.10.0: it knows no topics, and has no request that makes them."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

METADATA, VERSIONS = 3, 18
REQUESTS = ((0, 0, 2), (1, 0, 2), (2, 0, 0), (METADATA, 0, 1), (VERSIONS, 0, 0))
"""Of each request that it answers, the oldest and the newest version."""
UNSUPPORTED_VERSION, UNKNOWN_TOPIC = 35, 3


class OldBroker:
    """Answers on a port of loopback, as a context manager."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._served: list[threading.Thread] = []

    def __enter__(self) -> OldBroker:
        self._thread.start()
        return self

    def __exit__(self, *exit: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in (self._thread, *self._served):
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._served.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._served[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(ConnectionError), connection, connection.makefile("rb") as stream:  # who asks may hang up
            while len(size := stream.read(4)) == 4:
                request = stream.read(struct.unpack(">i", size)[0])
                kind, version, number, client = struct.unpack(">hhih", request[:10])
                if kind == VERSIONS:
                    reply = self._versions(version)
                elif kind == METADATA:
                    reply = self._metadata(request[10 + client :])
                else:
                    return
                connection.sendall(struct.pack(">ii", len(reply) + 4, number) + reply)

    def _versions(self, version: int) -> bytes:
        head = struct.pack(">hi", UNSUPPORTED_VERSION if version else 0, len(REQUESTS))
        return head + b"".join(struct.pack(">hhh", *one) for one in REQUESTS)

    def _metadata(self, asked: bytes) -> bytes:
        """Return this broker, which is the controller, and that no topic is known."""
        names, at = [], 4
        for _ in range(max(0, struct.unpack(">i", asked[:4])[0])):
            size = struct.unpack(">h", asked[at : at + 2])[0]
            names.append(asked[at + 2 : at + 2 + size])
            at += 2 + size
        host = b"127.0.0.1"
        broker = struct.pack(">iih", 1, 1, len(host)) + host + struct.pack(">ih", self.port, -1)
        unknown = (struct.pack(">hh", UNKNOWN_TOPIC, len(name)) + name + bytes(5) for name in names)
        return broker + struct.pack(">ii", 1, len(names)) + b"".join(unknown)
