"""Who a network namespace is, beyond the path by which it was found."""

from __future__ import annotations

import msgspec


class NamespaceIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A network namespace that cannot be confused with a later one: boot and cookie; `path` is where it was found."""

    boot_id: str
    cookie: str
    path: str
    container: str = ""
