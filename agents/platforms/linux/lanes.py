"""Which calls of the Linux platform wait for each other, and which lock they take: by what they touch."""

from __future__ import annotations

from trogdor_bus.actions import AnyAction, BlockFrom, BlockPorts, Kill, MoveLeader, RunCommand, Suspend
from trogdor_bus.agents.platforms.linux.operations import (
    AnyOperation,
    Block,
    Command,
    Container,
    End,
    Hold,
    Lead,
    LeadBack,
    Release,
    Restart,
    Unblock,
    Unit,
    read,
)
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Step, Verb

FIREWALL = "firewall"
PROCESSES = "processes"
SEARCH = "search"
"""Looking for processes, or for what is to be started: that asks who may not tell. No undo waits for it."""
START = "start"
PROGRAM = "program"
ENDS = "ends"
"""Whether anything is left of programs: one look at all processes is for all that are due at once.

A program is ended in its own lane: that has its thread also when the program has used up all that the machine gives.
"""
LEADERS = "leaders"
OTHERS = "others"


def lane(verb: Verb, what: Step | AnyAction | None) -> str:
    """Return the lane of a call."""
    match what:
        case None | BlockFrom() | BlockPorts():
            return FIREWALL
        case MoveLeader():
            return LEADERS
        case Kill() as kill if kill.restart is not None:
            return f"{SEARCH} {kill.restart.unit or kill.restart.container or ' '.join(kill.restart.command)}"
        case RunCommand(command=command):
            return f"{SEARCH} {' '.join(command)}"
        case Suspend() | Kill():
            return SEARCH
    return _lane_of(verb, what)


def lock_of(step: Step) -> str:
    """Return what of the namespace is locked while the step is done, or undone."""
    return _resource(_read(step.undo), _read(step.do)).partition(" ")[0]


def _lane_of(verb: Verb, step: Step) -> str:
    do, undo = _read(step.do), _read(step.undo)
    resource = _resource(undo, do)
    if verb == "by-hand":
        return verb
    if verb in ("look", "search", "again") and resource.partition(" ")[0] in (PROCESSES, START):
        return PROCESSES if verb == "look" else SEARCH
    if verb == "residue" and isinstance(undo, End):
        return ENDS
    return resource


def _resource(undo: AnyOperation | None, do: AnyOperation | None) -> str:
    match undo, do:
        case (Unblock(), _) | (_, Block()):
            return FIREWALL
        case Restart(how=Unit(name=name) | Container(name=name)), _:
            return f"{START} {name}"
        case Restart(how=Command(argv=argv)), _:
            return f"{START} {' '.join(argv)}"
        case (End(mark=mark), _) | (_, Hold(mark=mark) | Release(mark=mark)):
            return f"{PROGRAM} {mark}"
        case (LeadBack(), _) | (_, Lead()):
            return LEADERS
        case None, None:
            return OTHERS
    return PROCESSES


def _read(operation: dict[str, object]) -> AnyOperation | None:
    try:
        return read(operation)
    except HostError:  # its undo says so
        return None
