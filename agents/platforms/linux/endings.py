"""The end of processes that were told to end: seen to in short looks, and judged by what /proc says of each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from signal import Signals
from typing import NamedTuple

from trogdor_bus.actions.process import MOST_GRACE_MS
from trogdor_bus.agents.platforms.linux import signals
from trogdor_bus.agents.platforms.linux.patience import LOOK_S, wait
from trogdor_bus.agents.platforms.linux.processes import signal_mask, status, thread_states
from trogdor_bus.errors import HostError, NotYetError
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.supervisor import tree

DYING_MS = MOST_GRACE_MS
"""How long who was told to end is waited for, counted from then."""
CATCHABLE = ("SIGHUP", "SIGUSR1", "SIGUSR2")
"""Signals by which a process that handles them is told something else than to end."""
MOST_NAMED = 5


class _Told(NamedTuple):
    process: ProcessIdentity
    name: str = "told to end"


class Endings:
    """Sees to the end of processes, and remembers in this life who was told to."""

    def __init__(self, _: object = None) -> None:
        self._told: set[ProcessIdentity] = set()
        self._prepared: set[tuple[ProcessIdentity, ...]] = set()
        self._since: dict[tuple[ProcessIdentity, ...], float] = {}

    def prepared(self, dying: tuple[ProcessIdentity, ...]) -> None:
        """Remember that none of them was told yet, whatever is written down of them."""
        self._prepared.add(dying)

    def told(self, process: ProcessIdentity) -> None:
        """Remember that the process was told to end."""
        self._told.add(process)

    def dying(self, dying: tuple[ProcessIdentity, ...], signal: str) -> list[ProcessIdentity]:
        """Return those who live, and were told to end by that signal, or may have been by an earlier life."""
        return [process for process in dying if self._may_be_dying(process, dying, signal) and thread_states(process)]

    def finish(self, dying: tuple[ProcessIdentity, ...], kill_ms: int) -> None:
        """Kill those who still live at `kill_ms` (CLOCK_BOOTTIME).

        NotYetError while one has time to end, HostError if one survives SIGKILL.
        """
        living = self.dying(dying, "SIGTERM")
        if not living:
            self._since.pop(dying, None)
            return
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 < kill_ms:
            raise NotYetError(f"{named(living)} may take its time to end, then it is killed")
        began_s = self._since.setdefault(dying, time.monotonic())
        for process in living:
            with contextlib.suppress(signals.ProcessGoneError):
                signals.send(_Told(process), Signals.SIGKILL)
        if wait(lambda: not any(map(thread_states, living)), LOOK_S):
            self._since.pop(dying, None)
        elif time.monotonic() - began_s < signals.KILL_S:
            raise NotYetError(f"{named(living)} was killed, and is not gone yet", overdue=True)
        else:
            raise HostError(f"{named(living)} is still there {signals.KILL_S:g} s after SIGKILL")

    def wait(self, dying: tuple[ProcessIdentity, ...], told_ms: int, signal: str) -> None:
        """Return when nobody is dying who was told to at `told_ms` (CLOCK_BOOTTIME; 0: perhaps, by an earlier life).

        NotYetError for a minute after that, HostError names one left then.
        """
        living = self.dying(dying, signal)
        if living and wait(lambda: not any(map(thread_states, living)), LOOK_S):
            living = []
        if not living:
            self._since.pop(dying, None)
            return
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        began_s = told_ms / 1000 or self._since.setdefault(dying, now_s)
        if now_s - began_s < DYING_MS / 1000:
            raise NotYetError(f"{named(living)} was told to end, and is waited for")
        told = "was told" if told_ms or living[0] in self._told else "may have been told"
        why = undelivered(living[0], Signals[signal])
        raise HostError(
            f"{named(living)} {told} to end by {signal}, and is still there after {now_s - began_s:.0f} s"
            f"{f' ({why})' if why else ''}; only when that is gone, what was killed is started again"
        )

    def _may_be_dying(self, process: ProcessIdentity, dying: tuple[ProcessIdentity, ...], signal: str) -> bool:
        if process in self._told:
            return True
        if dying in self._prepared:
            return False
        return signal != "SIGKILL" or bool(undelivered(process, Signals.SIGKILL))  # else who knows


def ends(pid: int, signal: str) -> bool:
    """Return whether a process is meant to end by the signal: some handle it to do something else."""
    number = Signals[signal]
    if signal in CATCHABLE or (signal == "SIGQUIT" and _is_jvm(pid)):  # SIGQUIT has a JVM print its threads
        return not signal_mask(pid, "SigCgt") & 1 << number - 1
    return True


def outlived(target: signals.Target, signal: str) -> str:
    """Return "", or how a process that is meant to end by a signal has not, now that the time of the fault is over."""
    process = target.process
    if not thread_states(process):
        return ""
    if why := undelivered(process, Signals[signal]):
        return f"{signals.called(target)} lives: {why}"
    return f"{signals.called(target)} has not ended by {signal}" if ends(process.pid, signal) else ""


def undelivered(process: ProcessIdentity, number: Signals) -> str:
    """Return "", or that the signal waits for the process, and why."""
    pending = {mask: int(status(process.pid).get(mask, "0"), 16) for mask in ("SigPnd", "ShdPnd")}
    if not any(mask & 1 << number - 1 for mask in pending.values()):
        return ""
    if signal_mask(process.pid, "SigBlk") & 1 << number - 1:
        return f"{number.name} is pending, for it blocks that signal"
    return f"{number.name} is pending: it is stopped, frozen, or waits for a device"


def named(living: Sequence[ProcessIdentity]) -> str:
    """Return the processes for people, the first ones by pid."""
    pids = ", ".join(str(process.pid) for process in living[:MOST_NAMED])
    more = f" and {len(living) - MOST_NAMED} more" if len(living) > MOST_NAMED else ""
    return f"process {pids}{more}"


def typed(living: Iterable[ProcessIdentity]) -> str:
    """Return what a person would type to end them, "" for nobody."""
    pids = " ".join(str(process.pid) for process in living)
    return f"kill -KILL {pids}" if pids else ""


def _is_jvm(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"{tree.folder(pid)}/exe").removesuffix(" (deleted)").rpartition("/")[2] == "java"  # noqa: PTH115
    return False
