"""The badge by which a process of trogdor-bus is known, whatever its command line says: an open file without a path.

A guard imports this, so it imports nothing of ours and little else.
"""

from __future__ import annotations

import contextlib
import os

NAME = "trogdor-bus"
_LINK = f"/memfd:{NAME} (deleted)"
"""How the kernel shows a descriptor of such a file (memfd_create(2))."""
_worn: list[int] = []


def wear() -> int:
    """Wear the badge until this process ends, or becomes another program; return its descriptor, -1 if there is none.

    Whoever is given that descriptor wears it, too.
    """
    if not _worn:
        with contextlib.suppress(OSError):
            _worn.append(os.memfd_create(NAME))
    return _worn[0] if _worn else -1


def handed() -> tuple[int, ...]:
    """Return the descriptors by which a child wears it as well, if we do."""
    return tuple(_worn)


def worn(pid: int) -> bool:
    """Return whether a process wears it, as far as we may look."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") == _LINK:
                    return True
    return False
