"""The agent's end of the socket to its guard: it says "alive" each second, and hears when the guard is gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from trogdor_bus.agents.guard import FAREWELL, HOPELESS

BEAT_S = 0.5


class Leash:
    """A leash on file descriptor `fd`; -1: there is no guard, and every call does nothing."""

    def __init__(self, fd: int = -1) -> None:
        self._socket = socket.socket(fileno=fd) if fd >= 0 else None
        self._served = False
        if self._socket is not None:
            self._socket.setblocking(False)
            self._socket.set_inheritable(False)

    async def hold(self, lost: Callable[[], None]) -> None:
        """Beat until cancelled, from the loop, so that a hanging loop falls silent; call `lost` if the guard dies."""
        if self._socket is None:
            return
        asyncio.get_running_loop().add_reader(self._socket, self._hear, lost)
        while True:
            self._say(b".")
            await asyncio.sleep(BEAT_S)

    def serve(self) -> None:
        """From now on what ends this agent is for the guard to repair: the settings were good enough to begin."""
        self._served = True

    def farewell(self) -> None:
        """Say that this end is the one that was asked for."""
        self._say(FAREWELL)

    def hopeless(self) -> None:
        """Say that this agent could not start, unless it serves already."""
        if not self._served:
            self._say(HOPELESS)

    def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()

    def _hear(self, lost: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            if self._socket is not None and self._socket.recv(64) == b"":
                asyncio.get_running_loop().remove_reader(self._socket)
                lost()

    def _say(self, word: bytes) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(word)
