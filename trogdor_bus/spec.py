"""What a task asks for: the base of every spec.

A spec is a frozen msgspec Struct whose JSON is its identity. Its class tag is the `class` field; Trogdor's specs keep
Trogdor's tags. Fields are snake_case here and camelCase on the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from trogdor_bus.actions import Action
from trogdor_bus.errors import SpecError, TrogdorBusError
from trogdor_bus.roles import Chosen, Scene, Wanted, is_role, parse, resolve, wanted
from trogdor_bus.topology import Topology

MAX_DURATION_MS = 1_000_000_000_000_000
"""Trogdor's own limit; longer durations are clamped to it."""
Long = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What Java's long holds: every other time is refused."""
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
"""A TCP or UDP port."""
Evidence = Literal["process-stopped", "leader-moved", "controller-moved", "isr-shrank", "cut-off"]
"""What may show in an experiment that a fault took effect; `cut-off`: its rules stood and dropped packets."""


class Texts(msgspec.Struct, frozen=True):
    """The status of a worker in each phase, as Trogdor words it where Trogdor has the spec."""

    starting: str
    running: str
    stopping: str
    done: str


class TaskSpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="class", forbid_unknown_fields=True
):
    """The base of every spec: when it starts (epoch ms, 0 = now) and for how long (ms).

    `node_fields` are the attributes that hold names of nodes, or groups of them: there roles may stand, too.
    """

    start_ms: Long = 0
    duration_ms: int = 0

    aliases: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    example: ClassVar[dict[str, Any]] = {}
    is_experiment: ClassVar[bool] = False
    """Whether it is performed by a program beside the coordinator, and by no node."""
    node_fields: ClassVar[tuple[str, ...]] = ()
    as_given: ClassVar[tuple[str, ...]] = ()
    """The fields that hold any JSON: it goes on the wire as it is, null included."""
    proven_by: ClassVar[tuple[Evidence, ...]] = ()
    """What must be seen in an experiment for it to count as effective; (): nothing is known that would show it."""

    def check(self) -> None:
        """Raise SpecError for what the types cannot express; needs no cluster."""

    def performed(self) -> TaskSpec:
        """Return the spec that is performed in the place of this one; by default itself."""
        return self

    def longest_ms(self) -> int:
        """Return how long (ms) it lasts at most."""
        return self.duration_ms

    def needs_cluster(self, node_names: Container[str]) -> bool:
        """Return whether the cluster under test must be looked at before anybody knows whom this concerns."""
        return any(is_role(name, node_names) for _, name in _named(self))

    def cluster_wanted(self, node_names: Container[str]) -> Wanted:
        """Return what must be seen of it; SpecError for a role that is none."""
        return wanted(parse(name, path) for path, name in _named(self) if is_role(name, node_names))

    def resolved(self, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
        """Return the spec with nodes in place of roles, and who was chosen; errors as `roles.resolve` and `check`."""
        chosen: dict[Chosen, None] = {}
        fields: dict[str, Any] = {}
        for field in self.node_fields:
            given, path = getattr(self, field), f"$.{_on_the_wire(type(self), field)}"
            if any(isinstance(one, tuple) for one in given):
                groups = enumerate(given)
                fields[field] = tuple(_nodes(group, f"{path}[{index}]", scene, chosen) for index, group in groups)
            else:
                fields[field] = _nodes(given, path, scene, chosen)
        spec = msgspec.structs.replace(self, **fields)
        spec.check()
        return spec, tuple(chosen)

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the names of the nodes that get a worker; they may be unknown, the coordinator checks."""
        raise NotImplementedError

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return what `node` is asked to do; SpecError if that is impossible in this topology."""
        return ()

    def peers_of(self, node: str) -> tuple[str, ...]:
        """Return the nodes whose packets `node` is asked to tell apart (for the list of addresses left out)."""
        return ()

    def texts(self, task_id: str) -> Texts:
        """Return the status texts of this spec's workers."""
        return Texts("starting", "active", "stopping", "done")


class FaultSpec(TaskSpec, frozen=True, kw_only=True):
    """The base of every fault: something is broken from start to end, and whole again after.

    `on_disturbed` "reapply": what somebody undoes of it before its end is done again; by default that is only told.
    """

    on_disturbed: Literal["", "reapply"] = ""

    def actions(self, node: str, topology: Topology) -> tuple[Action, ...]:
        """Return what `node` is asked to do; SpecError if that is impossible in this topology."""
        raise NotImplementedError


class NodeFaultSpec(FaultSpec, frozen=True, kw_only=True):
    """The base of faults that do something on each of some nodes."""

    nodes: tuple[str, ...] = ()

    node_fields = ("nodes",)

    def check(self) -> None:
        """Raise SpecError if there is no node, or one is named twice; a subclass that checks more calls this first."""
        require_nodes(self.nodes, "$.nodes")

    def targets(self, topology: Topology) -> frozenset[str]:
        """Return the nodes."""
        return frozenset(self.nodes)


def _named(spec: TaskSpec) -> Iterator[tuple[str, str]]:
    """Yield each text that stands where a node's name stands, with its path."""
    for field in spec.node_fields:
        path = f"$.{_on_the_wire(type(spec), field)}"
        for index, one in enumerate(getattr(spec, field)):
            if isinstance(one, tuple):
                yield from ((f"{path}[{index}][{inner}]", name) for inner, name in enumerate(one))
            else:
                yield f"{path}[{index}]", one


def _nodes(names: tuple[str, ...], path: str, scene: Scene, chosen: dict[Chosen, None]) -> tuple[str, ...]:
    """Return the nodes that are meant, each once; who was chosen is added."""
    found: dict[str, None] = {}
    for index, name in enumerate(names):
        if is_role(name, scene.topology.nodes):
            holders = resolve(parse(name, f"{path}[{index}]"), scene.view, scene.places, scene.seed)
            chosen.update(dict.fromkeys(holders))
            found.update(dict.fromkeys(one.node for one in holders))
        else:
            found[name] = None
    return tuple(found)


def _on_the_wire(cls: type[TaskSpec], field: str) -> str:
    return next(info.encode_name for info in msgspec.structs.fields(cls) if info.name == field)


@contextlib.contextmanager
def guarded(cls: type[TaskSpec]) -> Iterator[None]:
    """Run the code of a spec class inside the `with`: what it raises that is not ours is a SpecError that names it."""
    try:
        yield
    except TrogdorBusError:
        raise
    except (Exception, SystemExit) as error:
        why = f"the class {cls.__struct_config__.tag} fails: {error!r}"
        raise SpecError(why, path="$.class", remedy="mend the package that brings it") from error


def require_nodes(names: tuple[str, ...], path: str) -> None:
    """Raise SpecError if `names` is empty or names a node twice."""
    if not names:
        raise SpecError("names no node", path=path, remedy="list at least one node")
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"names node {name} twice", path=path, remedy="list each node once")


def wire(spec: TaskSpec) -> bytes:
    """Return the spec as it goes on the wire, byte for byte what Trogdor writes for Trogdor's specs.

    Empty strings, lists and maps and nulls are dropped (Jackson's NON_EMPTY), but not in a field that is any JSON; zero
    and false stay.
    """
    given = msgspec.to_builtins(spec)
    kept = {field: given[field] for field in spec.as_given}
    pruned = _non_empty({**given, **dict.fromkeys(kept, True)})
    return msgspec.json.encode({**pruned, **kept})


def _non_empty(value: Any) -> Any:
    if isinstance(value, dict):
        pruned = {key: _non_empty(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if item is not None and item not in ("", [], {})}
    if isinstance(value, list | tuple):
        return [_non_empty(item) for item in value]
    return value
