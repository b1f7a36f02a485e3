"""Becomes the command that it is told to run, in a session of its own, when it is released; `starter.py` runs it.
A keeper has its child become one in the same way.

It reads one line of JSON from standard input, forks, and the child writes its pid and waits. The byte "g" releases it;
the end of the input, which is the death of whoever holds the other end, ends it. It writes why the command cannot run.
It imports nothing of ours, so that it starts fast and without the environment of the agent.
"""

import contextlib
import json
import os
import signal
from typing import Any, NoReturn

NO_INTERPRETER = "its interpreter (what a script names after #!, or the loader of a program) does not exist"


def main() -> NoReturn:
    """Fork, wait, and run; never returns."""
    with contextlib.suppress(OSError):
        os.memfd_create("trogdor-bus")  # the badge of trogdor-bus, which the command does not wear
    order = json.loads(_line())
    if os.fork():
        os._exit(0)  # the child is nobody's child
    try:
        os.setsid()
        report = os.dup(1)  # not inherited: its end says that the command runs
        os.write(report, b"%d\n" % os.getpid())
        if os.read(0, 1) != b"g":
            os._exit(0)
        try:
            null = os.open("/dev/null", os.O_RDWR)
            become(order, (null, null, null))
        except OSError as error:
            os.write(report, b"%s: %s" % (error.filename or b"the process", (error.strerror or "").encode()))
    finally:
        os._exit(127)


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            os._exit(1)
        line += part
    return line


def become(order: dict[str, Any], streams: tuple[int, ...]) -> None:
    """Replace this process by the command, with these descriptors as its standard streams; OSError says why not."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.chdir(_bytes(order["cwd"]))
    except OSError:
        os.chdir("/")
    _be(*order["who"])
    environment = dict(_bytes(entry).split(b"=", 1) for entry in order["environment"])
    program = _bytes(order["program"])
    try:
        os.execve(program, [_bytes(word) for word in order["argv"]], environment)  # noqa: S606
    except FileNotFoundError as error:
        if os.access(program, os.F_OK):  # then what is to run it is not there
            error.strerror = NO_INTERPRETER
        raise


def _be(uid: int, gid: int, groups: list[int]) -> None:
    same = os.getresuid() == (uid,) * 3 and os.getresgid() == (gid,) * 3 and sorted(os.getgroups()) == sorted(groups)
    if not same:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


if __name__ == "__main__":
    main()
