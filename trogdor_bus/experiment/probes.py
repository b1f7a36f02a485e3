"""Probes: one look at something beside the stream, and what came of all looks of each probe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

from trogdor_bus.errors import RefusedError
from trogdor_bus.experiment.destinations import Destinations, parsed
from trogdor_bus.experiment.result import ProbeResult
from trogdor_bus.faults.stream import ProbeSpec
from trogdor_bus.printable import escape

MOST_BODY = 1 << 20
"""So much of a page, or of what a program prints, is looked at."""
REFUSED = (
    "commands of probes run on the coordinator's host as its user, and it was started without ‹allow-probe-commands›; "
    "add that, or use a probe of type http, tcp or kafka"
)

KafkaLook = Callable[[ProbeSpec], Awaitable[str]]
"""Looks at the cluster: "" or what is wrong."""


class Looks:
    """The probes of one experiment.

    `kafka` looks at the cluster; `commands`: programs may be started; `to`: where the others may connect.
    """

    def __init__(
        self, probes: tuple[ProbeSpec, ...], kafka: KafkaLook, *, commands: bool, to: Destinations | None = None
    ) -> None:
        self._probes, self._kafka, self._commands, self._to = probes, kafka, commands, to or Destinations()
        self._counts: dict[str, tuple[int, int]] = {}
        self._first_wrong: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """What a probe with `halt` found wrong, once it did."""

    async def before(self) -> None:
        """Look with the probes that look before the faults, and begin with those that go on all the time."""
        await self._all("before", "edge")
        self._begin("continuous")

    def during(self) -> None:
        """Begin with the probes that look while faults are injected."""
        self._begin("during")

    async def after(self) -> None:
        """End those that go on, and look with the probes that look after the faults."""
        await self.end()
        await self._all("after", "edge")

    async def end(self) -> None:
        """End those that go on."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def results(self) -> tuple[ProbeResult, ...]:
        """Return what came of each; `passed` is None for one that never looked, or not at both ends."""
        return tuple(self._result(probe) for probe in self._probes)

    def _result(self, probe: ProbeSpec) -> ProbeResult:
        good, all_ = self._counts.get(probe.name, (0, 0))
        wrong = self._first_wrong.get(probe.name, "")
        owed = 2 if probe.mode == "edge" else 1
        passed = False if wrong else None if all_ < owed else True
        told = f"{good} of {all_} looks were good" if all_ else "it never looked"
        text = f"{told}; the first wrong one: {wrong}" if wrong else told
        return ProbeResult(name=probe.name, type=probe.type, mode=probe.mode, passed=passed, text=text)

    async def _all(self, *modes: str) -> None:
        for probe in self._probes:
            if probe.mode in modes:
                await self._tried(probe)

    def _begin(self, mode: str) -> None:
        self._tasks += [asyncio.create_task(self._go_on(probe)) for probe in self._probes if probe.mode == mode]

    async def _go_on(self, probe: ProbeSpec) -> None:
        while True:
            wrong = await self._tried(probe)
            if wrong and probe.halt and not self.broken.done():
                self.broken.set_result(f"probe {probe.name}: {wrong}")
            await asyncio.sleep(probe.interval_ms / 1000)

    async def _tried(self, probe: ProbeSpec) -> str:
        """Look up to `attempts` times, and return "" or what was wrong the last time."""
        wrong = ""
        for attempt in range(probe.attempts):
            if attempt:
                await asyncio.sleep(probe.interval_ms / 1000)
            if not (wrong := await self.look(probe)):
                break
        good, all_ = self._counts.get(probe.name, (0, 0))
        self._counts[probe.name] = (good + (not wrong), all_ + 1)
        if wrong:
            self._first_wrong.setdefault(probe.name, wrong)
        return wrong

    async def look(self, probe: ProbeSpec) -> str:
        """Look once: "" or what is wrong."""
        kinds = {"http": self._http, "tcp": self._tcp, "command": self._command, "kafka": self._kafka}
        limit_s = probe.timeout_ms / 1000
        try:
            async with asyncio.timeout(limit_s):
                return await kinds[probe.type](probe)
        except TimeoutError:
            return f"nothing came of it within {limit_s:g} s"
        except RefusedError as error:
            return str(error)
        except OSError as error:
            return escape(str(error.strerror or error))

    async def _http(self, probe: ProbeSpec) -> str:
        status, body = await asyncio.to_thread(_fetched, probe.url, probe.timeout_ms / 1000, self._to)
        if status == 0:
            return escape(body)
        if status != probe.status:
            return f"{probe.url} answered with status {status}, not {probe.status}"
        return _contains(probe, body, "the page")

    async def _tcp(self, probe: ProbeSpec) -> str:
        host, port = parsed(probe.address)
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        wrong = OSError(f"{host} has no address")
        for address in self._to.usable(host, port, dict.fromkeys(str(info[4][0]) for info in infos)):
            try:
                _, writer = await asyncio.open_connection(address, port)
            except OSError as error:
                wrong = error
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return ""
        raise wrong

    async def _command(self, probe: ProbeSpec) -> str:
        if not self._commands:
            return REFUSED
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *probe.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert child.stdout is not None
        reading = asyncio.create_task(_read(child.stdout))
        try:
            status = await child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # and whatever it started
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
            await asyncio.wait([reading], timeout=1)
            reading.cancel()
        text = reading.result().decode(errors="replace") if reading.done() and not reading.cancelled() else ""
        if status:
            last = text.strip().splitlines()[-1:] or ["nothing"]
            return f"{probe.command[0]} ended with exit status {status}, and said last: {escape(last[0])[:200]}"
        return _contains(probe, text, "what it printed")


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Return the end of what is printed."""
    printed = b""
    while chunk := await stream.read(1 << 16):
        printed = (printed + chunk)[-MOST_BODY:]
    return printed


def _contains(probe: ProbeSpec, text: str, what: str) -> str:
    return "" if probe.contains in text else f"{what} does not contain {probe.contains!r}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def _dialled(to: Destinations, host: str, port: int, timeout_s: Any) -> socket.socket:
    """Return a connection to one of the addresses of a host that may be reached; what is checked is what is dialled."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    wrong = OSError(f"{host} has no address")
    for address in to.usable(host, port, dict.fromkeys(str(info[4][0]) for info in infos)):
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            wrong = error
    raise wrong


class _Plain(HTTPConnection):
    def __init__(self, *args: Any, to: Destinations, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._to = to

    def connect(self) -> None:
        self.sock = _dialled(self._to, self.host, self.port, self.timeout)


class _Secure(HTTPSConnection):
    def __init__(self, *args: Any, to: Destinations, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._to = to

    def connect(self) -> None:
        plain = _dialled(self._to, self.host, self.port, self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class _Checked(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, to: Destinations) -> None:
        super().__init__()
        self._to = to

    def http_open(self, request: Any) -> Any:
        return self.do_open(partial(_Plain, to=self._to), request)

    def https_open(self, request: Any) -> Any:
        return self.do_open(partial(_Secure, to=self._to), request)


def _fetched(url: str, timeout_s: float, to: Destinations) -> tuple[int, str]:
    """Return status and body of a page, 0 and the reason if there is none; never through a proxy, nor elsewhere."""
    opener = urllib.request.build_opener(_Checked(to), urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(url, timeout=timeout_s) as answer:  # only http and https: ProbeSpec checks it
            return int(answer.status), answer.read(MOST_BODY).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MOST_BODY).decode(errors="replace")
    except urllib.error.URLError as error:
        return 0, f"{url}: {error.reason}"
    except (OSError, ValueError) as error:
        return 0, f"{url}: {error}"
