"""Roles: words that stand where a node's name stands, and mean whoever holds them when the fault fires. Pure.

    leader(TOPIC, P)  follower(TOPIC, P)  isr-follower(TOPIC, P)  controller  controller-follower  broker(ID)  rack(R)
    group-coordinator(NAME)  transaction-coordinator(ID)  all  not(ROLE)  one-of(ROLE)  minority(ROLE)  majority(ROLE)

`one-of`, `minority` and `majority` alone are of all brokers. A node of the very name of a word keeps it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from random import Random

import msgspec

from trogdor_bus.cluster import NOBODY, ClusterView, SeenPartition
from trogdor_bus.errors import NotNowError, RefusedError, SpecError
from trogdor_bus.names import shown
from trogdor_bus.topology import Topology

OF_PARTITION = ("leader", "follower", "isr-follower")
OF_COORDINATOR = {"group-coordinator": "group", "transaction-coordinator": "transaction"}
OF_ROLES = ("not", "one-of", "minority", "majority")
ALONE = ("controller", "controller-follower", "all", "one-of", "minority", "majority")
"""The words that are roles without parentheses."""
NAMES = tuple(sorted({*OF_PARTITION, *OF_COORDINATOR, *OF_ROLES, *ALONE, "broker", "rack"}))
STREAM = "$stream"
"""Stands for an experiment's own topic."""
MAX_DEPTH = 10
_LEADER = re.compile(r"leader\((?P<topic>[^,()]+), *(?P<number>\d+)\)")
_CALL = re.compile(r"\s*([^\s()]+)\s*\((.*)\)\s*", re.S)
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}|\$stream")


class Role(msgspec.Struct, frozen=True):
    """One role: its name, and what stands in its parentheses: words, or another role. `path` is its field."""

    name: str
    words: tuple[str, ...] = ()
    of: Role | None = None
    path: str = "$"

    def __str__(self) -> str:
        inside = str(self.of) if self.of else ", ".join(self.words)
        return f"{self.name}({inside})" if inside else self.name


class Wanted(msgspec.Struct, frozen=True):
    """What a view must hold: topics by name, coordinators as "group:NAME" and "transaction:ID"."""

    topics: tuple[str, ...] = ()
    coordinators: tuple[str, ...] = ()


class Places(msgspec.Struct, frozen=True):
    """The node of each broker and of each controller, by id."""

    brokers: Mapping[int, str] = {}
    controllers: Mapping[int, str] = {}


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a role: a broker or a controller, its id and its node; `epoch` is the leader epoch, -1 if none."""

    role: str
    kind: str = "broker"
    id: int
    node: str
    epoch: int = -1

    @property
    def led(self) -> tuple[str, int] | None:
        """Return topic and number of the partition that it was chosen for as the leader, None if for something else."""
        found = _LEADER.fullmatch(self.role)
        return (found["topic"], int(found["number"])) if found else None

    @property
    def who(self) -> str:
        """Return "broker 2"."""
        return f"{self.kind} {self.id}"

    @property
    def why(self) -> str:
        """Return "leader(orders, 0) is broker 2 on node b (leader epoch 5)"."""
        known = f" (leader epoch {self.epoch})" if self.epoch >= 0 else ""
        return f"{self.role} is {self.who} on node {self.node}{known}"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What roles are resolved against. The same `seed` makes the same choices, and so do the same words in a spec."""

    view: ClusterView
    places: Places
    topology: Topology
    seed: int = 0


# --- reading them -----------------------------------------------------------------------------------------------------


def is_role(text: str, node_names: Container[str]) -> bool:
    """Return whether a text that stands where a node's name stands is meant as a role."""
    return text not in node_names and (text.strip() in ALONE or _CALL.fullmatch(text) is not None)


def parse(text: str, path: str = "$", depth: int = 0) -> Role:
    """Return the role that a text names; SpecError names the field and the remedy."""
    found = _CALL.fullmatch(text)
    name, inside = (found[1], found[2].strip()) if found else (text.strip(), None)
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the roles are {', '.join(NAMES)}"
        raise SpecError(f"there is no role {shown(name)!r}", path=path, remedy=hint)
    if inside is None:
        if name not in ALONE:
            raise SpecError(f"the role {name} says not of what", path=path, remedy=f"write {_form(name)}")
        return Role(name, path=path)
    if not inside or (name in ALONE and name not in OF_ROLES):
        raise SpecError(f"{shown(text)!r} is no role", path=path, remedy=f"write {_form(name)}")
    if name in OF_ROLES:
        if depth >= MAX_DEPTH:
            raise SpecError("the role is nested too deeply", path=path, remedy="make it flatter")
        return Role(name, of=parse(inside, path, depth + 1), path=path)
    return Role(name, _words(name, inside, path), path=path)


def wanted(roles: Iterable[Role]) -> Wanted:
    """Return what a view must hold to resolve the roles."""
    innermost = [_innermost(role) for role in roles]
    topics = {role.words[0] for role in innermost if role.name in OF_PARTITION}
    asked = {f"{OF_COORDINATOR[role.name]}:{role.words[0]}" for role in innermost if role.name in OF_COORDINATOR}
    return Wanted(tuple(sorted(topics)), tuple(sorted(asked)))


def _words(name: str, inside: str, path: str) -> tuple[str, ...]:
    if name in OF_PARTITION:
        topic, _, number = (part.strip() for part in inside.rpartition(","))
        if not _TOPIC.fullmatch(topic) or not re.fullmatch("[0-9]{1,9}", number):
            raise SpecError(f"{shown(inside)!r} is no topic and partition", path=path, remedy=f"write {_form(name)}")
        return topic, str(int(number))
    if name == "broker" and not re.fullmatch("[0-9]{1,10}", inside):
        raise SpecError(f"{shown(inside)!r} is no id of a broker", path=path, remedy="write broker(1)")
    return (str(int(inside)) if name == "broker" else inside,)


def _form(name: str) -> str:
    if name in OF_PARTITION:
        return f"{name}(orders, 0)"
    if name in OF_ROLES:
        return f"{name}(leader(orders, 0))"
    return {
        "broker": "broker(1)",
        "rack": "rack(r1)",
        "group-coordinator": "group-coordinator(my-group)",
        "transaction-coordinator": "transaction-coordinator(my-id)",
    }.get(name, name)


def _innermost(role: Role) -> Role:
    return _innermost(role.of) if role.of else role


# --- who holds them ---------------------------------------------------------------------------------------------------


def resolve(role: Role, view: ClusterView, places: Places, seed: int = 0) -> tuple[Chosen, ...]:
    """Return who holds a role, each node once, by id.

    NotNowError if nobody does at this moment, as in the middle of an election; SpecError or RefusedError if nobody
    will: no such topic, a broker on no node.
    """
    found = _holders(role, view, places, seed)
    if not found:
        raise NotNowError(f"{role} is nobody now")
    return tuple(msgspec.structs.replace(one, role=str(role)) for one in found)


def _holders(role: Role, view: ClusterView, places: Places, seed: int) -> list[Chosen]:
    if role.name in OF_ROLES:
        return _some(role, view, places, seed)
    kind, epoch = "broker", -1
    match role.name:
        case "leader" | "follower" | "isr-follower":
            partition = _partition(role, view)
            ids, epoch = _of_partition(role.name, partition), partition.epoch
        case "controller":
            if view.controller == NOBODY:
                raise NotNowError("the cluster has no active controller now")
            ids, kind = [view.controller], "controller" if view.quorum else "broker"
        case "controller-follower":
            ids, kind = _controller_followers(role, view), "controller"
        case "broker":
            ids = [_broker(role, view, places)]
        case "rack":
            ids = _rack(role, view)
        case "all":
            ids = list(view.brokers)
        case _:
            ids = [_coordinator(role, view)]
    return [_placed(role, kind, one, places, epoch) for one in sorted(ids)]


def _of_partition(name: str, partition: SeenPartition) -> list[int]:
    if partition.leader == NOBODY:
        raise NotNowError(f"partition {partition.name} has no leader now")
    if name == "leader":
        return [partition.leader]
    return [
        one for one in (partition.in_sync if name == "isr-follower" else partition.replicas) if one != partition.leader
    ]


def _some(role: Role, view: ClusterView, places: Places, seed: int) -> list[Chosen]:
    """Return not, one, less than half or more than half of those who hold a role."""
    everybody = Role("all", path=role.path)
    found = _holders(role.of or everybody, view, places, seed)
    if role.name == "not":
        nodes = {one.node for one in found}
        return [one for one in _holders(everybody, view, places, seed) if one.node not in nodes]
    size = {"one-of": 1, "minority": (len(found) - 1) // 2, "majority": len(found) // 2 + 1}[role.name]
    if found and not size:
        raise RefusedError(
            f"{role.path.removeprefix('$.')}: {role} is nobody: there {_count(len(found))} to choose from"
        )
    picked = Random(f"{seed} {role}").sample(found, min(size, len(found)))  # noqa: S311 - no secret
    return sorted(picked, key=lambda one: one.id)


def _partition(role: Role, view: ClusterView) -> SeenPartition:
    topic, number = role.words
    if found := view.partition(topic, int(number)):
        return found
    numbers = [one.number for one in view.partitions if one.topic == topic]
    if numbers:
        remedy = f"it has {_numbers(numbers)}"
        raise SpecError(f"topic {topic} has no partition {number}", path=role.path, remedy=remedy)
    if topic == STREAM:
        raise SpecError(f"{STREAM} is the topic of an experiment", path=role.path, remedy="name a topic")
    near = difflib.get_close_matches(topic, {one.topic for one in view.partitions}, n=1)
    hint = f"did you mean {near[0]}?" if near else "make it first"
    raise SpecError(f"there is no topic {topic}", path=role.path, remedy=hint)


def _controller_followers(role: Role, view: ClusterView) -> list[int]:
    if view.quorum is None:
        raise SpecError(
            "controllers follow one another in KRaft, and ZooKeeper keeps this cluster",
            path=role.path,
            remedy="name brokers: not(controller)",
        )
    if view.quorum.leader == NOBODY:
        raise NotNowError("the cluster has no active controller now")
    return [one.id for one in view.quorum.voters if one.id != view.quorum.leader]


def _broker(role: Role, view: ClusterView, places: Places) -> int:
    number = int(role.words[0])
    if number not in view.brokers and number not in places.brokers:
        remedy = f"the brokers are {', '.join(map(str, sorted(view.brokers)))}"
        raise SpecError(f"there is no broker {number}", path=role.path, remedy=remedy)
    return number


def _rack(role: Role, view: ClusterView) -> list[int]:
    found = [number for number, broker in view.brokers.items() if broker.rack == role.words[0]]
    if not found:
        racks = sorted({broker.rack for broker in view.brokers.values() if broker.rack})
        remedy = f"the racks are {', '.join(racks)}" if racks else "no broker says broker.rack"
        raise SpecError(f"no broker is in rack {shown(role.words[0])}", path=role.path, remedy=remedy)
    return found


def _coordinator(role: Role, view: ClusterView) -> int:
    number = view.coordinators.get(f"{OF_COORDINATOR[role.name]}:{role.words[0]}", NOBODY)
    if number == NOBODY:
        raise NotNowError(f"{role} is nobody now")
    return number


def _placed(role: Role, kind: str, number: int, places: Places, epoch: int) -> Chosen:
    node = (places.brokers if kind == "broker" else places.controllers).get(number)
    if node is None:
        where = role.path.removeprefix("$.")
        raise RefusedError(
            f"{where}: {kind} {number} ({role}) is on no node: start an agent there, or give its node "
            f"`{kind}: {number}` in the configuration"
        )
    return Chosen(role=str(role), kind=kind, id=number, node=node, epoch=epoch)


def _count(number: int) -> str:
    return "is one" if number == 1 else f"are {number}"


def _numbers(numbers: list[int]) -> str:
    return "partition 0 only" if len(numbers) == 1 else f"partitions {min(numbers)} to {max(numbers)}"
