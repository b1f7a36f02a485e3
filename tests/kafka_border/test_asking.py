"""Brokers that are gone, silent or old, as the reader of a cluster meets them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.transports.old_broker import OldBroker
from trogdor_bus.cluster import NOBODY, Quorum, SeenController
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.kafka import reader as reader_module
from trogdor_bus.kafka.access import Access, Place
from trogdor_bus.kafka.brokers import Brokers
from trogdor_bus.kafka.reader import Reader


@contextlib.contextmanager
def silent_broker() -> Iterator[int]:
    """Yield a port of loopback where connections are accepted by the kernel, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_brokers_that_are_gone_or_silent_are_an_error_in_time_and_in_words() -> None:
    with silent_broker() as silent:
        gone = refusing_port()
        access = Access(f"127.0.0.1:{silent},127.0.0.1:{gone}")
        with Reader(access) as reader:
            began = time.monotonic()
            with pytest.raises(HostError) as caught:
                reader.read(timeout_s=1.5)
            assert 1.0 < time.monotonic() - began < 3.0
    assert f"no broker of {access} answers: " in str(caught.value)
    assert f"127.0.0.1:{silent}: " in str(caught.value)
    assert f"127.0.0.1:{gone}: " in str(caught.value)
    assert "ECONNREFUSED" in str(caught.value)


@pytest.mark.parametrize("first", ["we give up", "its client gives up"])
def test_a_silent_broker_delays_the_first_answer_by_its_second_and_the_next_not_at_all(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first == "its client gives up":  # which else is a matter of milliseconds
        monkeypatch.setattr(reader_module, "ANSWER_S", 1.5)
    with (
        silent_broker() as silent,
        OldBroker() as old,
        Reader(Access(f"127.0.0.1:{silent},127.0.0.1:{old.port}")) as reader,
    ):
        lasted = []
        for _ in range(3):
            began = time.monotonic()
            view = reader.read(())
            lasted.append(time.monotonic() - began)
            assert set(view.brokers) == {1}
            assert (view.quorum, view.controller) == (None, 1)
    assert 0.9 < lasted[0] < 2.0
    assert max(lasted[1:]) < 0.5


def test_controllers_are_not_asked_for_unless_they_are_wanted() -> None:
    with OldBroker() as old, Reader(Access(f"127.0.0.1:{old.port}")) as reader:
        view = reader.read((), quorum=False)
        assert (set(view.brokers), view.quorum, view.controller) == ({1}, None, NOBODY)
        reader.close()


def test_several_threads_may_read() -> None:
    with OldBroker() as old, Reader(Access(f"127.0.0.1:{old.port}")) as reader:
        seen: list[int] = []
        threads = [threading.Thread(target=lambda: seen.append(reader.read(()).controller)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [1] * 8


def test_what_has_no_coordinator_is_refused() -> None:
    reader = Reader(Access(f"127.0.0.1:{refusing_port()}"))
    with reader, pytest.raises(SpecError, match="write group:NAME or transaction:ID"):
        reader.read((), ("topic:x",))


def test_the_quorum_of_an_epoch_that_is_over_is_not_believed() -> None:
    voters = (SeenController(id=1, host="c", port=9),)
    old, new = (Quorum(leader=number, epoch=number, voters=voters) for number in (1, 2))
    brokers = Brokers(Access(f"127.0.0.1:{refusing_port()}"))
    assert brokers.learn_quorum("c1", [old]) == old
    assert brokers.learn_quorum("c1", [old, new]) == new
    assert brokers.learn_quorum("c1", [old]) is None
    assert brokers.learn_quorum("c1", []) is None
    assert brokers.learn_quorum("c2", [old]) == old
    assert brokers.controllers == (Place("c", 9),)
    brokers.close()
