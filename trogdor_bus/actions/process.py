"""Freezing processes, and killing them."""

from __future__ import annotations

import shlex

import msgspec

from trogdor_bus.actions import Action, Impact, ProcessMatch

DEFAULT_ALIVE_MS = 10_000
"""How long a restarted process may take until it is found."""
MOST_GRACE_MS = 60_000
"""How long a process may be given to end by itself, at most."""
HARMLESS_SIGNALS = ("SIGQUIT",)
"""What a JVM answers with a thread dump, and runs on."""


class Suspend(Action, frozen=True, tag="suspend"):
    """Freeze the matching processes (SIGSTOP on Linux); the undo lets them run again."""

    match: ProcessMatch
    required: bool = True

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        return f"freeze {self.match.describe()}", "let the same processes run again"

    def impact(self) -> Impact:
        """Return the processes."""
        return Impact(hits=self.match)


class Restart(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a killed process is started again: exactly one of `unit`, `container`, `command` and `found` is set.

    `unit`: full name of a systemd service. `container`: its name. `command`: program and arguments. `found`: the
    container, or else the service, that the process is found in when it is killed. Nothing is started if `unless` finds
    a process (None: the match of the kill), and what was started must be found so within `alive_ms`.
    """

    unit: str = ""
    container: str = ""
    command: tuple[str, ...] = ()
    found: bool = False
    unless: ProcessMatch | None = None
    alive_ms: int = DEFAULT_ALIVE_MS

    def describe(self) -> str:
        """Return the restart in words."""
        if self.unit:
            what = f"start the unit {self.unit}"
        elif self.container:
            what = f"start the container {self.container}"
        elif self.found:
            what = "start the container or the unit that it is found in"
        else:
            what = f"run {shlex.join(self.command)}"
        return f"{what}, unless there is {self.unless.describe()}" if self.unless else what


class Kill(Action, frozen=True, tag="kill"):
    """Send `signal` (a name such as SIGKILL) to the matching processes; the undo is the `restart`, if given.

    Those that still live `grace_ms` after it get SIGKILL (0: they may live); the undo waits for that.
    """

    match: ProcessMatch
    signal: str = "SIGKILL"
    grace_ms: int = 0
    restart: Restart | None = None
    required: bool = True

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        undo = self.restart.describe() if self.restart else "nothing (no restart given)"
        rest = f", and SIGKILL to those that still live {self.grace_ms} ms later" if self.grace_ms else ""
        return f"send {self.signal} to {self.match.describe()}{rest}", undo

    def impact(self) -> Impact:
        """Return the processes, unless they live on."""
        return Impact(hits=None if self.signal in HARMLESS_SIGNALS else self.match, lasts=self.restart is None)
