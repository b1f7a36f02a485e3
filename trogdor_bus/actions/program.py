"""Running programs."""

from __future__ import annotations

import shlex

import msgspec

from trogdor_bus.actions import Action

DEFAULT_GRACE_MS = 5_000
"""How long a program that ran for a task may take to end, as Trogdor has it."""


class RunCommand(Action, frozen=True, tag="run-command"):
    """Run a program until the undo, or until it ends by itself; what it says on standard output is its status.

    Its standard input begins with the line {"id": the task, "workload": `workload`}. To end it, it is asked to, and
    whatever is left of it `grace_ms` later is killed.
    """

    command: tuple[str, ...]
    workload: msgspec.Raw = msgspec.Raw(b"null")
    grace_ms: int = DEFAULT_GRACE_MS

    def describe(self) -> tuple[str, str]:
        """Return do and undo as text."""
        undo = f"send SIGTERM to it, and SIGKILL to what is left of it {self.grace_ms} ms later"
        return f"run {shlex.join(self.command)} while the task lasts", undo
