"""Processes that take the place of those of a fault: somebody started them while it was in force."""

from __future__ import annotations

from collections.abc import Sequence

from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes, signals
from trogdor_bus.agents.platforms.linux.namespace import Attachment, UnseenError, open_attached
from trogdor_bus.agents.platforms.linux.operations import Deliver, Freeze, Nothing, Thaw, Watch, step
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Seen, Step, Surroundings


def look(operation: Freeze | Deliver) -> Seen:
    """Return how the process itself is; it is unsure where others may have taken its place."""
    if isinstance(operation, Freeze) and (states := processes.thread_states(operation.process)):
        return Seen(signals.frozen_disturbance(operation, states))
    if _may_be_replaced(operation):
        return Seen(unsure=True)
    return Seen(signals.frozen_disturbance(operation, {}) if isinstance(operation, Freeze) else "")


def disturbance(operation: Freeze | Deliver, attachment: Attachment) -> str:
    """Return "" while the fault holds, on those that took the place of its processes as well, else what changed."""
    if isinstance(operation, Freeze) and (states := processes.thread_states(operation.process)):
        return signals.frozen_disturbance(operation, states)
    found = _find(operation, attachment, Surroundings(force=True))
    running = _running(operation, found)
    who = ", ".join(f"pid {process.pid} ({process.name})" for process in running)
    if isinstance(operation, Deliver):
        return f"started again by somebody: {who}" if running else ""
    if running:
        return f"process {operation.process.pid} ({operation.name}) was replaced: {who} runs"
    return "" if found else signals.frozen_disturbance(operation, {})


def again(operation: Freeze | Deliver, attachment: Attachment, surroundings: Surroundings) -> tuple[Step, ...]:
    """Return the steps that do to the newcomers what was done to the process; RefusedError if none may be touched."""
    running = _running(operation, _find(operation, attachment, surroundings))
    if isinstance(operation, Deliver):
        return tuple(
            step(
                Deliver(process.identity, process.name, operation.signal, grace_ms=operation.grace_ms),
                Nothing(),
            )
            for process in running
        )
    return tuple(
        step(
            Freeze(process.identity, process.name, leave=False, watch=operation.watch),
            Thaw(process.identity, process.name, leave=False),
        )
        for process in running
    )


def _find(
    operation: Freeze | Deliver, attachment: Attachment, surroundings: Surroundings
) -> Sequence[processes.Process]:
    watch = operation.watch
    if watch is None or not _may_be_replaced(operation):
        return ()
    try:
        with open_attached(attachment) as namespace:
            found = processes.find(watch.match, namespace, surroundings).processes
    except UnseenError:
        raise
    except HostError:  # its container is down, or its pid file is gone
        return ()
    return [process for process in found if process.identity.start_ticks > watch.since_ticks]


def _may_be_replaced(operation: Freeze | Deliver) -> bool:
    """Return whether it is watched, and has ended: one that lives on starts children of its own."""
    return operation.watch is not None and not processes.thread_states(operation.process)


def _running(operation: Freeze | Deliver, found: Sequence[processes.Process]) -> Sequence[processes.Process]:
    if isinstance(operation, Deliver):
        return found
    return [process for process in found if not signals.is_stopped(process.identity)]


def watch(match: ProcessMatch) -> Watch:
    """Return a watch for what is started from now on."""
    return Watch(match, processes.now_ticks())
