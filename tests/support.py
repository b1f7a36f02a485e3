"""What tests share: skips that give the remedy, and waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

LONGEST_REST_S = 0.5
_T = TypeVar("_T")


def at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns that has nothing to wait for; one that waits is an error."""
    try:
        work.send(None)
    except StopIteration as done:
        found: _T = done.value
        return found
    work.close()
    raise AssertionError("it waits")


def require(condition: bool, reason: str, remedy: str) -> None:
    """Skip the test with the reason and the remedy; with TROGDOR_REQUIRE=all it fails instead."""
    if condition:
        return
    if os.environ.get("TROGDOR_REQUIRE") == "all":
        pytest.fail(f"{reason}; {remedy} (TROGDOR_REQUIRE=all allows no skip)")
    pytest.skip(f"{reason}; {remedy}")


def require_namespaces() -> None:
    """Skip unless this process may make network namespaces and rules in them."""
    require(os.geteuid() == 0, "needs root", "run it with sudo")
    for tool, package in (("ip", "iproute2"), ("iptables", "iptables"), ("nsenter", "util-linux")):
        require(shutil.which(tool) is not None, f"{tool} is not installed", f"apt-get install {package}")


def wait_until(predicate: Callable[[], object], timeout_s: float = 10.0, what: str = "the condition") -> None:
    """Poll until `predicate()` is true; fail the test after `timeout_s`.

    Between two looks it rests as long as a look took: a look that starts a process would otherwise take the
    machine from those it waits for.
    """
    deadline = time.monotonic() + timeout_s
    while not _looked(predicate):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout_s} s")


def _looked(predicate: Callable[[], object]) -> bool:
    """Return whether it is true; if not, rest."""
    began = time.monotonic()
    if predicate():
        return True
    time.sleep(min(max(0.01, time.monotonic() - began), LONGEST_REST_S))
    return False


async def async_wait_until(
    predicate: Callable[[], object], timeout_s: float = 10.0, what: str = "the condition"
) -> None:
    """Poll in an asyncio loop until `predicate()` is true; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout_s} s")
        await asyncio.sleep(0.005)
