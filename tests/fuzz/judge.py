"""What every decoder owes to whoever feeds it: our own errors only, an answer in time, and no memory kept."""

from __future__ import annotations

import gc
import itertools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from trogdor_bus.errors import SpecError, TrogdorBusError

LIMIT_S = 5.0
"""Seconds of CPU that one small input may cost; what is there takes milliseconds."""
MAX_WORDS = 2000
"""Characters of an error; longer ones only repeat the input."""
KEPT_BYTES = 500
"""What one call may keep on average: less than an error with its traceback; Python keeps some memory for reuse."""
ROUNDS = 4
"""Caches of Python and of the libraries fill up in the first ones."""


def decoded(call: Callable[[], Any], limit_s: float = LIMIT_S, *, readable: bool = True) -> Any:
    """Return what the decoder returns, or its error if that is one of ours and (if asked) fit to be read; else fail."""
    start_s = time.process_time()
    try:
        result = call()
    except TrogdorBusError as error:
        words = str(error)
        assert words.strip(), f"{type(error).__name__} says nothing"
        assert not readable or len(words) <= MAX_WORDS, f"an error of {len(words)} characters: {words[:200]}"
        assert not readable or _harmless(words), f"could steer a terminal: {words!r}"
        if isinstance(error, SpecError):
            assert error.path.startswith("$") and error.message.strip()
        result = error
    spent_s = time.process_time() - start_s
    assert spent_s <= limit_s, f"took {spent_s:.1f} s"
    return result


def _harmless(words: str) -> bool:
    words.encode()
    return all(char.isprintable() or char == "\n" for char in words)


def keeps_nothing(call: Callable[[], Any], calls: int = 20) -> None:
    """Fail if repeating a call makes the process keep more and more: some round of calls must leave nothing behind."""
    gc.collect()
    gc.freeze()  # what was there before is not looked at again and again
    tracemalloc.start()
    try:
        levels = [_level_after(call, calls) for _ in range(ROUNDS)]
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    kept = [after - before for before, after in itertools.pairwise(levels)]
    assert min(kept) < KEPT_BYTES * calls, f"{calls} calls keep {kept} bytes"


def _level_after(call: Callable[[], Any], calls: int) -> int:
    for _ in range(calls):
        decoded(call)
    for _ in range(2):  # a generator that was left in the middle goes with the second collection
        gc.collect()
    return tracemalloc.get_traced_memory()[0]
