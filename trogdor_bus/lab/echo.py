"""The service whose reachability the lab measures: echoes TCP and UDP on one port, over IPv4 and IPv6.

`python -m trogdor_bus.lab.echo [ADDRESS [PORT [PID_FILE]]]`; the standard library only, one thread, until it is
killed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
from pathlib import Path

PORT = 9092


def listen(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return the listening TCP socket and the UDP socket on the same port; "::" means both families."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for sock in (tcp, udp):
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port or tcp.getsockname()[1]))
        sock.setblocking(False)
    tcp.listen(4096)
    return tcp, udp


def serve(tcp: socket.socket, udp: socket.socket) -> None:
    """Echo for ever."""
    with selectors.DefaultSelector() as selector:
        selector.register(tcp, selectors.EVENT_READ)
        selector.register(udp, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                with contextlib.suppress(OSError):  # a peer that vanished is no reason to end
                    if sock is tcp:
                        connection, _ = tcp.accept()
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ)
                    elif sock is udp:
                        data, peer = udp.recvfrom(65536)
                        udp.sendto(data, peer)
                    elif not _echo(sock):
                        selector.unregister(sock)
                        sock.close()


def _echo(connection: socket.socket) -> bool:
    try:
        data = connection.recv(65536)
        return bool(data) and connection.send(data) > 0
    except OSError:
        return False


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv[1:]))
    sockets = listen(arguments.get(0, "::"), int(arguments.get(1, PORT)))
    if 2 in arguments:
        Path(arguments[2]).write_text(f"{os.getpid()}\n")
    serve(*sockets)
