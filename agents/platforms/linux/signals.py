"""Signals to processes whose identity was checked, with the effect read back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from trogdor_bus.agents.platforms.linux import privileges
from trogdor_bus.agents.platforms.linux.patience import Patience
from trogdor_bus.agents.platforms.linux.processes import (
    identify,
    is_init_of_namespace,
    signal_mask,
    thread_states,
)
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.platform import ProcessIdentity

FREEZE_S = 2.0
KILL_S = 5.0
STOPPED = frozenset("Tt")


class ProcessGoneError(HostError):
    """The process ended, or its pid belongs to another one now."""


def is_stopped(process: ProcessIdentity) -> bool:
    """Return whether every thread of the process is stopped; False if it is gone."""
    states = thread_states(process)
    return bool(states) and STOPPED.issuperset(states.values())


class Target(Protocol):
    """Whom a signal is for: who it is, and what people call it."""

    @property
    def process(self) -> ProcessIdentity:
        """Return who it is."""
        ...

    @property
    def name(self) -> str:
        """Return what people call it."""
        ...


def freeze(target: Target, patience: Patience) -> None:
    """Stop the process until every thread stands; NotYetError while one does not, then HostError says why."""
    process = target.process
    with _opened(target) as pidfd:
        _send(pidfd, signal.SIGSTOP, target)
        stands = partial(_stands_or_ended, process)
        if patience.await_(("freeze", process), stands, FREEZE_S, f"{called(target)} does not stand still yet"):
            if not thread_states(process):
                raise ProcessGoneError(f"{called(target)} ended while it was being stopped")
            return
    raise HostError(f"{called(target)} did not stop within {FREEZE_S:g} s: {_why_running(process)}")


def thaw(target: Target, patience: Patience, *, leave: bool, wanted: bool) -> str:
    """Let the process run again and see that it does, unless it is to be left, or is `wanted` stopped by others.

    NotYetError while it does not.
    """
    process = target.process
    try:
        with _opened(target) as pidfd:
            if wanted:
                return f"{called(target)} stays stopped: another fault holds it"
            if leave:
                return f"{called(target)} was already stopped before the fault, and is left so"
            _send(pidfd, signal.SIGCONT, target)
            runs = partial(_runs_or_ended, process)
            if not patience.await_(("thaw", process), runs, FREEZE_S, f"{called(target)} does not run yet"):
                raise CannotHealError(f"{called(target)} is still stopped {FREEZE_S:g} s after SIGCONT")
            return ""
    except ProcessGoneError:
        return f"gone: {called(target)} ended"


def frozen_disturbance(target: Target, states: Mapping[int, str]) -> str:
    """Return "" if the process stands still, by the states of its threads ({} if it ended), else what changed."""
    if not states:
        return f"{called(target)} ended"
    return "" if STOPPED.issuperset(states.values()) else f"{called(target)} runs again: somebody else let it"


def deliver(
    target: Target, name: str, grace_ms: int, patience: Patience, told: Callable[[ProcessIdentity], None]
) -> None:
    """Send the signal of that name and call `told`; of SIGKILL the end is waited for, by NotYetError.

    HostError if it is deaf to it; if it ended, all is well.

    With a grace, a thread of this life sends the SIGKILL when it is over. If we do not live until then, the undo does.
    Both know the process beyond its pid, and a second SIGKILL changes nothing.
    """
    number = signal.Signals[name]
    with contextlib.suppress(ProcessGoneError), _opened(target) as pidfd:
        if not grace_ms and (why := deaf_to(target.process.pid, number)):
            raise HostError(f"{called(target)} {why}")
        _send(pidfd, number, target)
        told(target.process)
        why = f"{called(target)} was killed, and is not gone yet"
        ends = partial(_ends, pidfd, 0)
        if number == signal.SIGKILL and not patience.await_(("kill", target.process), ends, KILL_S, why):
            raise HostError(f"{called(target)} is still there {KILL_S:g} s after SIGKILL")
        if grace_ms:
            argv = (os.dup(pidfd), grace_ms / 1000)
            try:
                threading.Thread(target=_kill_later, args=argv, name="grace", daemon=True).start()
            except RuntimeError:  # the machine refuses one: the undo does it
                os.close(argv[0])


def _kill_later(pidfd: int, grace_s: float) -> None:
    with contextlib.suppress(OSError):  # it ended
        if not _ends(pidfd, grace_s):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def deaf_to(pid: int, number: signal.Signals) -> str:
    """Return "" or why the signal would have no effect on the process."""
    bit = 1 << (number - 1)
    if number == signal.SIGKILL:
        return ""
    if signal_mask(pid, "SigIgn") & bit:
        return f"ignores {number.name}, which would have no effect; use SIGKILL"
    if is_init_of_namespace(pid) and not signal_mask(pid, "SigCgt") & bit:
        return (
            f"is the init of its own pid namespace and does not handle {number.name}, so that the kernel drops it; "
            "use SIGKILL"
        )
    return ""


def send(target: Target, number: signal.Signals) -> None:
    """Send the signal and wait for nothing; ProcessGoneError if it ended, HostError says why it cannot be sent."""
    with _opened(target) as pidfd:
        _send(pidfd, number, target)


def called(target: Target) -> str:
    """Return who it is, for people."""
    return f"process {target.process.pid} ({target.name})"


@contextlib.contextmanager
def _opened(target: Target) -> Iterator[int]:
    """Hold a descriptor of the process and check afterwards that it is the one that is meant."""
    process, name = target.process, target.name
    gone = ProcessGoneError(f"process {process.pid} ({name}) ended, or its pid belongs to another one now")
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise gone from None
    except OSError as error:
        raise HostError(f"process {process.pid} ({name}) cannot be opened: {error.strerror}") from None
    try:
        if identify(process.pid) != process or _ends(pidfd, 0):
            raise gone
        yield pidfd
    finally:
        os.close(pidfd)


def _send(pidfd: int, number: signal.Signals, target: Target) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise ProcessGoneError(f"{called(target)} ended before {number.name} reached it") from None
    except OSError as error:
        why = f"; {privileges.missing('CAP_KILL')}" if isinstance(error, PermissionError) else ""
        raise HostError(f"{number.name} to {called(target)}: {error.strerror}{why}") from None


def _ends(pidfd: int, within_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _stands_or_ended(process: ProcessIdentity) -> bool:
    return is_stopped(process) or not thread_states(process)


def _runs_or_ended(process: ProcessIdentity) -> bool:
    return "T" not in thread_states(process).values()


def _why_running(process: ProcessIdentity) -> str:
    running = {task: state for task, state in thread_states(process).items() if state not in STOPPED}
    task, state = next(iter(running.items()), (process.pid, "?"))
    if is_init_of_namespace(process.pid):
        return "it is the init of its own pid namespace, which signals from inside it do not stop"
    because = ", waiting for a disk or another device" if state == "D" else ""
    return f"thread {task} is in state {state}{because}"
