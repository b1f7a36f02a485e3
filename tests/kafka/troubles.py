"""What can be done to the Kafka that is the bus, and undone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

from trogdor_bus.lab.kafka import KafkaCluster


class Trouble(NamedTuple):
    """How it begins, and how it is ended, without waiting until the brokers are themselves again."""

    begin: Callable[[], None]
    end: Callable[[], None]


def stopped(cluster: KafkaCluster) -> Trouble:
    """All brokers are stopped by a signal: their connections stay, and nobody answers."""

    def send(number: signal.Signals) -> None:
        for node in cluster.nodes:
            os.kill(cluster.pid(node), number)

    return Trouble(lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))


def killed(cluster: KafkaCluster) -> Trouble:
    """All brokers are killed, and started again."""

    def each(act: Callable[[str], None]) -> None:
        for node in cluster.nodes:
            act(node)

    return Trouble(lambda: each(cluster.kill), lambda: each(cluster.start))


def cut(cluster: KafkaCluster, seat: str) -> Trouble:
    """No packet goes between a seat and any broker, and nobody is told."""

    def change(*commands: str) -> None:
        for command in commands:
            argv = ["nsenter", f"--net=/proc/{cluster.pid(seat)}/ns/net", "iptables", "-w", *command.split()]
            subprocess.run(argv, check=True)

    def begin() -> None:
        drops = [f"-A CUT -{way} {cluster.addresses[node]} -j DROP" for node in cluster.nodes for way in "sd"]
        change("-N CUT", *drops, "-I INPUT -j CUT", "-I OUTPUT -j CUT")

    return Trouble(begin, lambda: change("-D INPUT -j CUT", "-D OUTPUT -j CUT", "-F CUT", "-X CUT"))


@contextlib.contextmanager
def during(trouble: Trouble) -> Iterator[Callable[[], None]]:
    """Begin the trouble and yield how to end it; it is ended in any case, once."""
    with contextlib.ExitStack() as stack:
        stack.callback(trouble.end)
        trouble.begin()
        yield stack.close
