"""The floor of the bus benchmark: bare pyzmq, one PUB to N SUB, each of which answers over PUSH to one PULL.

Run as a program it is one of the processes that hold the SUBs; it ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import zmq

from benchmarks.results import environment

MESSAGE_BYTES = 300
ACK_BYTES = 16
PROCESSES = 2
ROUND_S = 20.0


class Hub:
    """The one PUB, and the PULL that takes in the acknowledgements."""

    def __init__(self, pub: zmq.Socket[bytes], pull: zmq.Socket[bytes], subscribers: int) -> None:
        self._pub, self._pull, self._subscribers = pub, pull, subscribers
        self._number = 0

    def round(self, timeout_s: float = ROUND_S) -> float | None:
        """Publish one message and return the seconds until all have acknowledged it, None if some did not in time."""
        self._number += 1
        number = self._number.to_bytes(8, "big")
        message = number + bytes(MESSAGE_BYTES - len(number))
        self._pull.rcvtimeo = int(timeout_s * 1000)
        missing = self._subscribers
        begun = time.perf_counter()
        self._pub.send(message)
        while missing:
            try:
                ack = self._pull.recv()
            except zmq.Again:
                return None
            missing -= ack.startswith(number)
        return time.perf_counter() - begun


@contextlib.contextmanager
def hub(subscribers: int, *, curve: bool) -> Iterator[Hub]:
    """Yield a hub to which all subscribers are connected, spread over `PROCESSES` processes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = zmq.curve_keypair() if curve else None
    with contextlib.ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        ends = []
        for kind in (zmq.PUB, zmq.PULL):
            sock = context.socket(kind)
            if keys:
                sock.curve_publickey, sock.curve_secretkey = keys
                sock.curve_server = True
            sock.backlog = 1024
            sock.bind("tcp://127.0.0.1:*")
            ends.append(sock)
        urls = [str(sock.getsockopt_string(zmq.LAST_ENDPOINT)) for sock in ends]
        for index in range(PROCESSES):
            share = len(range(index, subscribers, PROCESSES))
            given = json.dumps({"urls": urls, "count": share, "server": keys[0].decode() if keys else ""})
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.floor", given], stdin=subprocess.PIPE, env=environment()
            )
            stack.callback(hang_up, child)
        made = Hub(ends[0], ends[1], subscribers)
        deadline = time.monotonic() + 60
        while made.round(timeout_s=0.5) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{subscribers} bare subscribers did not connect within 60 s")
        yield made


def hang_up(child: subprocess.Popen[bytes]) -> None:
    """Close the standard input of a child, at which it ends, and wait for it."""
    assert child.stdin
    child.stdin.close()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _serve(urls: list[str], count: int, server: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.max_sockets = 4 * count + 16
    poll = select.epoll()
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    by_descriptor = {}
    for _ in range(count):
        sub, push = context.socket(zmq.SUB), context.socket(zmq.PUSH)
        for sock, url in zip((sub, push), urls, strict=True):
            if server:
                sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
                sock.curve_serverkey = server.encode()
            sock.linger = 0
            if sock is sub:
                sub.subscribe(b"")
            sock.connect(url)
        poll.register(sub.FD, select.EPOLLIN)
        by_descriptor[sub.FD] = (sub, push)
    ready = list(by_descriptor)
    while True:
        for descriptor in ready:
            if descriptor == sys.stdin.fileno():
                context.destroy(linger=0)
                return
            sub, push = by_descriptor[descriptor]
            with contextlib.suppress(zmq.Again):
                while True:
                    push.send(sub.recv(zmq.DONTWAIT)[:ACK_BYTES])
        ready = [descriptor for descriptor, _ in poll.poll()]


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
