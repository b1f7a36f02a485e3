"""Which processes belong to a child: those below it, and those that carry its mark. Guard and keepers use it, too.

It imports nothing of ours and little else, so that they stay small.
"""

from __future__ import annotations

import _thread  # `threading` is larger
import contextlib
import os
import signal
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be a tenth of a guard's memory
    from collections.abc import Callable, Iterable, Iterator

    Family = dict[int, "Kin"]

KEEPER = "TROGDOR_BUS_KEEPER"
"""The variable in which a keeper carries the mark of its child."""
CHILD = "TROGDOR_BUS_CHILD"
"""The variable in which a child, and what it starts, carries its mark."""
PATIENCE_S = 0.5
"""How long a look waits, in all, for processes that do not tell their environment: one of a dead disk never does."""
STEP_S = 0.02
"""How long one of them may hold up the look at the others."""
ROUNDS = 4
"""So often is looked for new processes. Nobody new is no end: one that is just being born is in no list."""
BUSY_S = 0.25
"""How long a look goes on while there is always one that ended before it was looked at, or that it killed."""
_NONE_OF_OURS = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What is said of a process that has ended, or that is not ours to look at."""
_DEAD = (b"Z", b"X", b"x")
"""The states of what has ended (proc(5))."""

Kin = namedtuple("Kin", ("parent", "session", "group", "start", "mark", "keeper"))
"""A living process: parent, session, process group, start (ticks since boot), the mark that its session carries, "" if
none or if nobody asked, and whether it is a keeper."""


def living(*, marks: bool = True, ancestor: int = 0, strike: Callable[[Kin], bool] | None = None) -> Family:
    """Return each living process by pid, with marks only of those below the `ancestor`, if one is given.

    OSError if nobody tells. One that ends while it is looked at has left nobody unseen: what it started before is
    looked at, too. One that hangs may not tell its mark: it is waited for once. Of those below the ancestor, `strike`
    chooses who is killed in the moment when it is seen, keepers never: a chain that forks and leaves is not met later.
    """
    look = _Look(marks, ancestor, strike)
    if marks:
        _patiently(look)
    else:
        look.read([])
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
    if (kin := _kin(pid)) and not _hangs(pid, kin.start):
        _Reading(lambda _: found.append(_ask(pid, kin.start))).over(PATIENCE_S)
    return found[-1]


def folders(pid: int) -> Iterator[str]:
    """Yield where /proc tells of a process: its own folder, and those of its other threads, if its main one has ended.

    Its own tells nothing of it then, though the others live on (pthread_exit(3)).
    """
    yield f"/proc/{pid}"
    if _runs(f"/proc/{pid}"):
        return
    known = {str(pid)}
    with contextlib.suppress(*_NONE_OF_OURS):
        while new := set(os.listdir(f"/proc/{pid}/task")) - known:
            known |= new
            yield from (f"/proc/{pid}/task/{task}" for task in new)


def folder(pid: int) -> str:
    """Return the first of the folders whose thread lives; its own if the process has ended."""
    return next(filter(_runs, folders(pid)), f"/proc/{pid}")


def lives(pid: int) -> bool:
    """Return whether any thread of a process does."""
    return any(map(_runs, folders(pid)))


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
    send(signal.SIGKILL, others or keepers, family)


def send(number: int, pids: Iterable[int], family: Family) -> None:
    """Send a signal to these very processes of the family, if they live; OSError as for `kill`."""
    for pid in pids:
        _send(number, pid, family[pid].start)


def _send(number: int, pid: int, start: int) -> None:
    with contextlib.suppress(*_NONE_OF_OURS):
        fd = os.pidfd_open(pid)
        try:
            if (now := _kin(pid)) and now.start == start:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def _groups_within(pids: set[int], family: Family) -> set[int]:
    """Return the process groups of which every living member is one of these."""
    groups = {family[pid].group for pid in pids}
    return groups - {kin.group for pid, kin in family.items() if pid not in pids} - {0, 1}


class _Look:
    """One look at all processes; a thread goes on with it where the one before hangs."""

    def __init__(self, marks: bool, ancestor: int, strike: Callable[[Kin], bool] | None) -> None:
        self.seen = 0
        self._marks, self._ancestor, self._strike = marks, ancestor, strike
        self._known, self._rounds, self._until_s = set[str](), 0, time.monotonic() + BUSY_S
        self._later = False
        self._family: Family = {}
        self._sessions: dict[int, tuple[str, bool]] = {}

    def read(self, relieved: list[bool]) -> None:
        """Look at whoever was not looked at yet, the newest first, and each at once: it may not live for long."""
        while self._rounds < ROUNDS:
            new, busy = set(os.listdir("/proc")) - self._known, False
            for pid in sorted(map(int, filter(str.isdecimal, new)), reverse=True):
                self._known.add(str(pid))
                self.seen += 1
                if not (kin := _kin(pid)):
                    busy = True  # it may have left another one
                    continue
                self._family[pid] = kin
                if not self._below(kin):
                    continue
                if self._marks and kin.session not in self._sessions and not _hangs(pid, kin.start):
                    found = _ask(pid, kin.start)
                    if found[0]:
                        self._sessions[kin.session] = found
                    elif self._later and not _kin(pid):
                        busy = True
                    if relieved:
                        return
                busy |= self._struck(pid, self._marked(kin))
            self._known |= new
            self._later = True
            self._rounds += not busy or time.monotonic() > self._until_s

    def _struck(self, pid: int, kin: Kin) -> bool:
        if self._strike is None or kin.keeper or not self._strike(kin):
            return False
        _send(signal.SIGKILL, pid, kin.start)
        return True

    def _below(self, kin: Kin | None) -> bool:
        """Return whether it is below the ancestor, if there is one."""
        met = set[int]()  # a number may be given anew meanwhile, so that there is no top
        while self._ancestor and kin and kin.parent != self._ancestor:
            if kin.parent in met:
                return False
            met.add(kin.parent)
            kin = self._family.get(kin.parent) or _kin(kin.parent)
        return kin is not None

    def _marked(self, kin: Kin) -> Kin:
        mark, keeper = self._sessions.get(kin.session, ("", False))
        return kin._replace(mark=mark, keeper=keeper)

    def family(self) -> Family:
        """Return all that were seen, with the marks of their sessions."""
        return {pid: self._marked(kin) for pid, kin in list(self._family.items())}


def _patiently(look: _Look) -> None:
    """Have a thread look, and another one go on where it hangs, until all are looked at; OSError if one fails."""
    hanging: list[_Reading] = []
    relieved_s = 0.0
    while True:
        reading, at = _Reading(look.read), look.seen
        while not (over := reading.over(STEP_S)) and at != look.seen:
            at = look.seen
        if over:
            break
        reading.relieved.append(True)
        hanging.append(reading)
        relieved_s = time.monotonic()
    for reading in hanging:
        reading.over(max(0.0, relieved_s + PATIENCE_S - time.monotonic()))


class _Reading:
    """A thread that reads what may never answer; `read` is given a list that is no more empty once it is relieved."""

    def __init__(self, read: Callable[[list[bool]], object]) -> None:
        self.relieved: list[bool] = []
        self._refused: list[Exception] = []
        self._done = _thread.allocate_lock()
        self._done.acquire()
        try:
            _thread.start_new_thread(self._run, (read,))
        except RuntimeError:  # the machine refuses one
            self._run(read)

    def over(self, within_s: float) -> bool:
        """Return whether it is over within that time; what it raised is raised."""
        over = self._done.acquire(timeout=within_s)
        if self._refused:
            raise self._refused[0]
        return over

    def _run(self, read: Callable[[list[bool]], object]) -> None:
        try:
            read(self.relieved)
        except Exception as error:
            self._refused.append(error)
        finally:
            self._done.release()


_asked: dict[tuple[int, int], float] = {}
"""Who is being asked for its environment, by pid and start time, and since when: one that hangs is not asked again."""


def _hangs(pid: int, start: int) -> bool:
    since_s = _asked.get((pid, start))
    return since_s is not None and time.monotonic() - since_s > PATIENCE_S


def _ask(pid: int, start: int) -> tuple[str, bool]:
    """Return what `_mark_in` does, if it ever does."""
    _asked.setdefault((pid, start), time.monotonic())
    try:
        return _mark_in(pid)
    finally:
        _asked.pop((pid, start), None)


def _mark_in(pid: int) -> tuple[str, bool]:
    for entry in environment(pid).split(b"\0"):
        name, _, mark = entry.partition(b"=")
        if name in (KEEPER.encode(), CHILD.encode()):
            return mark.decode(errors="replace"), name == KEEPER.encode()
    return "", False


def environment(pid: int) -> bytes:
    """Return what /proc tells of the environment of a process, b"" if nothing."""
    for one in folders(pid):
        with contextlib.suppress(*_NONE_OF_OURS), open(f"{one}/environ", "rb") as file:
            if told := file.read():
                return told
    return b""


def _kin(pid: int) -> Kin | None:
    """Return who a process is, without its mark (proc(5), fields 4 to 6 and 22); None if it has ended."""
    try:
        fields = _stat(f"/proc/{pid}")
    except _NONE_OF_OURS:
        return None
    if fields[0] in _DEAD and not lives(pid):
        return None
    return Kin(int(fields[1]), int(fields[3]), int(fields[2]), int(fields[19]), "", False)


def _runs(folder: str) -> bool:
    with contextlib.suppress(*_NONE_OF_OURS):
        return _stat(folder)[0] not in _DEAD
    return False


def _stat(folder: str) -> list[bytes]:
    """Return what is told of a process or thread, from its state on; the name before may hold anything."""
    with open(f"{folder}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
