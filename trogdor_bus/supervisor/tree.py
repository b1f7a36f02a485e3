"""Which processes belong to a child: those below it, and those that carry its mark. Guard and keepers use it, too.

It imports nothing of ours and little else, so that they stay small.
"""

from __future__ import annotations

import _thread  # `threading` is larger
import contextlib
import os
import signal
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be a tenth of a guard's memory
    from collections.abc import Callable, Iterable

    Family = dict[int, "Kin"]

KEEPER = "TROGDOR_BUS_KEEPER"
"""The variable in which a keeper carries the mark of its child."""
CHILD = "TROGDOR_BUS_CHILD"
"""The variable in which a child, and what it starts, carries its mark."""
PATIENCE_S = 1.0
"""How long a process may take to tell its environment: one that waits for a dead disk never does."""
_NONE_OF_OURS = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What is said of a process that has ended, or that is not ours to look at."""

Kin = namedtuple("Kin", ("parent", "session", "group", "start", "mark", "keeper"))
"""A living process: parent, session, process group, start (ticks since boot), the mark that its session carries, "" if
none or if nobody asked, and whether it is a keeper."""


def living(*, marks: bool = True) -> Family:
    """Return each living process by pid; OSError if nobody tells.

    One that ends while it is looked at has left nobody unseen: what it started before is looked at, too. One that hangs
    may not tell its mark: it is not waited for.
    """
    look = _Look(marks)
    _patiently(look.read, lambda: look.seen)
    return look.family()


def below(roots: Iterable[int], family: Family) -> set[int]:
    """Return the descendants of the roots."""
    children: dict[int, list[int]] = {}
    for pid, kin in family.items():
        children.setdefault(kin.parent, []).append(pid)
    found: set[int] = set()
    left = list(roots)
    while left:
        new = set(children.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


def mark_of(pid: int) -> tuple[str, bool]:
    """Return the mark that a process carries, "" if none or if it hangs, and whether it is a keeper."""
    found = [("", False)]
    _patiently(lambda _: found.append(_mark_in(pid)), lambda: len(found), again=False)
    return found[-1]


def of_child(mark: str, session: int, family: Family) -> list[int]:
    """Return whatever belongs to the child with that mark: who carries it, is of its session (0: unknown), or below."""
    roots = {pid for pid, kin in family.items() if (session and kin.session == session) or kin.mark == mark}
    return sorted(roots | below(roots, family))


def of_children(ancestor: int, family: Family, *, but: str = "") -> list[int]:
    """Return whatever belongs to any child below the ancestor; those that carry the mark `but` are none."""
    roots = {pid for pid in below([ancestor], family) if family[pid].mark not in ("", but)}
    return sorted(roots | below(roots, family))


def kill(pids: Iterable[int], family: Family) -> None:
    """Kill these processes of the family, keepers only when nobody else is left: what is below them stays so.

    OSError if the machine refuses what that takes.
    """
    keepers = {pid for pid in pids if family[pid].keeper}
    others = {pid for pid in pids if pid not in keepers}
    for group in _groups_within(others, family):  # at once, whoever is in it by now
        with contextlib.suppress(*_NONE_OF_OURS):
            os.killpg(group, signal.SIGKILL)
    for pid in others or keepers:
        with contextlib.suppress(*_NONE_OF_OURS):
            fd = os.pidfd_open(pid)
            try:
                if (now := _kin(pid)) and now.start == family[pid].start:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def _groups_within(pids: set[int], family: Family) -> set[int]:
    """Return the process groups of which every living member is one of these."""
    groups = {family[pid].group for pid in pids}
    return groups - {kin.group for pid, kin in family.items() if pid not in pids} - {0, 1}


class _Look:
    """One look at all processes; several threads may go on with it, if the one before was given up."""

    def __init__(self, marks: bool) -> None:
        self.seen = 0
        self._marks, self._known = marks, set[str]()
        self._family: Family = {}
        self._sessions: dict[int, tuple[str, bool]] = {}

    def read(self, given_up: Callable[[], bool]) -> None:
        """Look at whoever was not looked at yet; each at once as it is found: it may not live for long."""
        while new := set(os.listdir("/proc")) - self._known:
            for name in new:
                self._known.add(name)
                self.seen += 1
                if not name.isdecimal() or not (kin := _kin(int(name))):
                    continue
                self._family[int(name)] = kin
                if self._marks and kin.session not in self._sessions:
                    found = _mark_in(int(name))
                    if given_up():
                        return
                    if found[0]:
                        self._sessions[kin.session] = found

    def family(self) -> Family:
        """Return all that were seen, with the marks of their sessions."""
        unmarked = ("", False)
        marks = ((pid, kin, self._sessions.get(kin.session, unmarked)) for pid, kin in self._family.items())
        return {pid: kin._replace(mark=mark, keeper=keeper) for pid, kin, (mark, keeper) in marks}


def _patiently(read: Callable[[Callable[[], bool]], object], seen: Callable[[], int], *, again: bool = True) -> None:
    """Have a thread read, and, where it hangs, another one go on (unless not `again`); OSError if either fails.

    `read` is given what tells it that it was given up, `seen` tells how far it is.
    """
    while True:
        done, given_up, refused = _thread.allocate_lock(), list[bool](), list[Exception]()
        done.acquire()

        def run(
            done: _thread.LockType = done, given_up: list[bool] = given_up, refused: list[Exception] = refused
        ) -> None:
            try:
                read(lambda: bool(given_up))
            except Exception as error:
                refused.append(error)
            finally:
                done.release()

        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:  # the machine refuses one
            run()
        at = seen()
        while not done.acquire(timeout=PATIENCE_S):
            if at == seen():
                given_up.append(True)
                break
            at = seen()
        if refused:
            raise refused[0]
        if not given_up or not again:
            return


def _mark_in(pid: int) -> tuple[str, bool]:
    with contextlib.suppress(*_NONE_OF_OURS), open(f"/proc/{pid}/environ", "rb") as file:
        for entry in file.read().split(b"\0"):
            name, _, mark = entry.partition(b"=")
            if name in (KEEPER.encode(), CHILD.encode()):
                return mark.decode(errors="replace"), name == KEEPER.encode()
    return "", False


def _kin(pid: int) -> Kin | None:
    """Return who a process is, without its mark (proc(5), fields 4 to 6 and 22); None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except _NONE_OF_OURS:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return Kin(int(fields[1]), int(fields[3]), int(fields[2]), int(fields[19]), "", False)
