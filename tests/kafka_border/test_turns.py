"""Readings of one reader take turns, and it is closed after the last one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trogdor_bus.errors import HostError
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.reader import Reader


def test_the_time_of_a_reading_counts_from_its_turn() -> None:
    with Reader(Access("127.0.0.1:1")) as reader, ThreadPoolExecutor(1) as threads:  # nobody listens there
        with reader._lock:  # another reading is under way
            reading = threads.submit(reader.read, timeout_s=0.3)
            time.sleep(0.4)
            began = time.monotonic()
        with pytest.raises(HostError, match=r"no broker of .* 127.0.0.1:1 answers"):
            reading.result(20)
        assert time.monotonic() - began >= 0.2, "it asked but once, as if its time was over"


def test_a_reader_is_closed_after_the_reading_that_is_under_way() -> None:
    reader, closed = Reader(Access("127.0.0.1:1")), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with reader._lock:
            closing = threads.submit(lambda: (reader.close(), closed.set()))
            assert not closed.wait(0.1)
        closing.result(20)
