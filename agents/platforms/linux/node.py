"""The node that a Linux platform acts on: where it is, what may be run there, and what is remembered of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from trogdor_bus.agents.platforms.linux.holders import Held, open_held
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import (
    Attachment,
    Namespace,
    open_again,
    open_attached,
    parse_attachment,
    typed_prefix,
)
from trogdor_bus.agents.platforms.linux.patience import Patience
from trogdor_bus.errors import HostError

T = TypeVar("T")


class Node:
    """One network namespace of this machine, and the processes in it.

    `attachment` says whose it is, `allowed` are the only commands that a spec may have run there.
    """

    def __init__(self, attach: str, allowed: Sequence[Sequence[str]]) -> None:
        self.attachment: Attachment = parse_attachment(attach)
        self.allowed = {tuple(command) for command in allowed}
        self.patience, self.namespaces = Patience(), Held()
        self.stirred: Callable[[int], None] = lambda _: None
        """Called with a worker when something that runs for it has ended."""
        self._memories: dict[Callable[[Node], Any], Any] = {}
        self._remembering = threading.Lock()

    def memory(self, kind: Callable[[Node], T]) -> T:
        """Return what is remembered of the node in this life, of that kind; `kind` makes an empty one."""
        with self._remembering:  # lanes ask at the same time
            if kind not in self._memories:
                self._memories[kind] = kind(self)
            found: T = self._memories[kind]
        return found

    def open(self) -> Namespace:
        """Return the namespace as it is now, to be closed; HostError if there is none."""
        return open_attached(self.attachment)

    def reach(self, identity: NamespaceIdentity) -> Namespace | None:
        """Return that very namespace, however it can be reached, None if that is not known: see `open_held`."""
        return self.namespaces.open(identity) or open_again(identity) or open_held(identity)

    def typed_prefix(self) -> str:
        """Return the words before a command of the node; "" if its container is down, which the command brings back."""
        with contextlib.suppress(HostError), self.open() as namespace:
            return typed_prefix(namespace)
        return ""

    def typed_inside(self, identity: NamespaceIdentity) -> str | None:
        """Return the words before a command in that namespace; None if it is not to be found."""
        namespace = self.reach(identity)
        if namespace is None:
            return None
        with namespace:
            return typed_prefix(namespace)
