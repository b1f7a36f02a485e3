"""Running a client verb: one event loop, one client, one clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from trogdor_bus.cli.reach import Reach
from trogdor_bus.client import Client
from trogdor_bus.errors import NoCoordinatorError

_T = TypeVar("_T")


def ask(reach: Reach, verb: Callable[[Client], Awaitable[_T]]) -> _T:
    """Return what `verb` makes of a client; NoCoordinatorError says what to do."""

    async def run() -> _T:
        async with reach.client() as client:
            return await verb(client)

    try:
        return asyncio.run(run())
    except NoCoordinatorError as error:
        raise NoCoordinatorError(f"{error}{reach.advice()}") from None
