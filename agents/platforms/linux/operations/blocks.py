"""Blocks: chains of ours in the firewall; those of one namespace are looked at, and taken out, at once."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Self, get_args

from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.agents.platforms.linux import firewall, rules
from trogdor_bus.agents.platforms.linux.chains import Chain, Hook, OwnedChains, Rule, Table
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_again
from trogdor_bus.agents.platforms.linux.operations import FIREWALL, Note, Operation, step
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Prepared, Seen, Step, Surroundings, Verb

if TYPE_CHECKING:
    from trogdor_bus.agents.platforms.linux.node import Node

FAMILIES: tuple[rules.Family, ...] = (4, 6)
LOST = (
    "gone: no name, process, open file or mount of this machine leads to the network namespace any more; whether "
    "something else still holds it, with the rules in it, cannot be known"
)
Reach = Callable[[NamespaceIdentity], Namespace | None]


class Block(Operation, frozen=True, tag="block"):
    """Install chains."""

    namespace: NamespaceIdentity
    tables: tuple[Table, ...]

    performs = (BlockFrom, BlockPorts)

    @classmethod
    def prepares_in(cls, action: BlockFrom | BlockPorts) -> str:
        """Return the firewall's lane."""
        return FIREWALL

    @classmethod
    def prepare(
        cls, on: Node, worker: int, action: BlockFrom | BlockPorts, around: Surroundings, held: Sequence[Step]
    ) -> Prepared:
        """Return one step; HostError if there is nothing to block."""
        with on.open() as namespace:
            return _prepared(namespace, worker, action, around)

    def do(self, on: Node, undo: Operation) -> None:
        """Install the chains and read them back."""
        namespace = open_again(self.namespace)
        if namespace is None:
            raise HostError("the network namespace is gone since the fault was prepared")
        with namespace:
            on.namespaces.keep(self.namespace, {chain.name for table in self.tables for chain in table.chains})
            for table in self.tables:
                firewall.install(namespace, table)

    def holds(self, on: Node) -> Seen:
        """Return whether the chains are there as they were made, and how many packets they dropped."""
        return self.hold_together(on, [self])[0]

    def again(self, on: Node, step: Step, around: Surroundings) -> tuple[Step, ...]:
        """Return the same step."""
        return (step,)

    def resource(self) -> str:
        """Return the firewall."""
        return FIREWALL

    def batch(self, verb: Verb) -> Hashable:
        """Return the namespace."""
        return (self.namespace.boot_id, self.namespace.cookie)

    @classmethod
    def hold_together(cls, on: Node, many: Sequence[Self]) -> Sequence[Seen]:
        """Return what `holds` would for each block of one namespace; its rules are read once."""
        namespace = open_again(many[0].namespace)
        if namespace is None:
            return [Seen("the network namespace is gone: it has no name and no process any more")] * len(many)
        with namespace:
            found = iter(firewall.look(namespace, [table for block in many for table in block.tables]))
        return [_together(list(itertools.islice(found, len(block.tables)))) for block in many]


class Unblock(Operation, frozen=True, tag="unblock"):
    """Remove chains."""

    namespace: NamespaceIdentity
    tables: tuple[OwnedChains, ...]

    def undo(self, on: Node, do: Operation, held: Sequence[Step], note: Note) -> str:
        """Take the chains out; returns a note if the namespace is gone. CannotHealError says why they stay."""
        outcome = self.undo_together(on, [self])[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def leftovers(self, on: Node, held: Sequence[Step]) -> tuple[str, ...]:
        """Return the chains that are still there."""
        return self.left_together(on, [self])[0]

    def manual(self, on: Node, do: Operation) -> str:
        """Return the commands that remove the chains, wherever they may be jumped to from."""
        inside = on.typed_inside(self.namespace)
        if inside is None:
            return ""
        made = do.tables if isinstance(do, Block) else ()
        hooks = {chain.name: (chain.hook,) for table in made for chain in table.chains}
        typed: list[str] = []
        for table in self.tables:
            tool = f"{inside}{table.tool}"
            for name in table.chains:
                typed += [f"{tool} -D {hook} -j {name} -w" for hook in hooks.get(name, get_args(Hook))]
                typed += [f"{tool} -F {name} -w", f"{tool} -X {name} -w"]
        return "; ".join(typed)

    def resource(self) -> str:
        """Return the firewall."""
        return FIREWALL

    def batch(self, verb: Verb) -> Hashable:
        """Return the namespace."""
        return (self.namespace.boot_id, self.namespace.cookie)

    @classmethod
    def undo_together(cls, on: Node, many: Sequence[Self]) -> Sequence[str | Exception]:
        """Take out the chains of one namespace; return for each a note for people, or why its chains stay."""
        return _unblocked(on.reach, many)

    @classmethod
    def left_together(cls, on: Node, many: Sequence[Self]) -> Sequence[tuple[str, ...]]:
        """Return for each what is left of its chains; where nothing is, the namespace is let go of."""
        found = _left(on.reach, many)
        for operation, left in zip(many, found, strict=True):
            if not left:
                chains = {name for owned in operation.tables for name in owned.chains}
                on.namespaces.release(operation.namespace, chains)
        return found


def _unblocked(reach: Reach, operations: Sequence[Unblock]) -> list[str | Exception]:
    identity = operations[0].namespace
    if identity.boot_id != boot_id():
        return ["gone: the machine was booted since, and the rules went with it"] * len(operations)
    namespace = reach(identity)
    if namespace is None:
        return [LOST] * len(operations)
    with namespace:
        failures = list(filter(None, _at_once(partial(_remove, namespace), _joined(operations))))
    if failures and len(operations) > 1:  # one of them may be the reason
        return [_unblocked(reach, [operation])[0] for operation in operations]
    if failures:
        return [CannotHealError("; ".join(failures))]
    named = open_again(identity)
    if named is None:
        note = "gone: the network namespace has no name and no process any more; the rules were taken out of it"
        return [note] * len(operations)
    named.close()
    return [""] * len(operations)


def _left(reach: Reach, operations: Sequence[Unblock]) -> list[tuple[str, ...]]:
    namespace = reach(operations[0].namespace)
    if namespace is None:
        return [()] * len(operations)
    with namespace:
        found = iter(firewall.residue(namespace, [table for operation in operations for table in operation.tables]))
    return [tuple(itertools.chain(*itertools.islice(found, len(operation.tables)))) for operation in operations]


def _together(found: Sequence[Seen]) -> Seen:
    """Return what a look at the tables of one block found."""
    return Seen(next(filter(None, (one.disturbance for one in found)), ""), sum(one.dropped or 0 for one in found))


def _joined(operations: Iterable[Unblock]) -> list[OwnedChains]:
    """Return all the chains of the operations, by tool."""
    chains: dict[str, list[str]] = {}
    for operation in operations:
        for table in operation.tables:
            chains.setdefault(table.tool, []).extend(table.chains)
    return [OwnedChains(tool, tuple(names)) for tool, names in chains.items()]


def _at_once(remove: Callable[[OwnedChains], str], tables: Sequence[OwnedChains]) -> list[str]:
    """Return what comes of both families, which are done at once: each waits for the kernel to let go of the rules."""
    try:
        with ThreadPoolExecutor() as families:
            return list(families.map(remove, tables))
    except RuntimeError:  # the machine refuses a thread
        return list(map(remove, tables))


def _remove(namespace: Namespace, table: OwnedChains) -> str:
    """Remove our chains of one family; return why that failed, so that the other family is healed all the same."""
    try:
        firewall.remove(namespace, table)
    except HostError as error:
        return str(error)
    return ""


def _prepared(
    namespace: Namespace, worker: int, action: BlockFrom | BlockPorts, surroundings: Surroundings
) -> Prepared:
    if isinstance(action, BlockFrom) and not any(peer.addresses for peer in action.peers):
        raise HostError("there is no address to block: no peer has any")
    if isinstance(action, BlockPorts) and not action.ports:
        raise HostError("there is no port to block")
    names = {hook: _chain_name(worker, hook) for hook in _hooks(action)}
    own = namespace.addresses()
    warnings: list[str] = []
    if isinstance(action, BlockFrom):
        action = _but_own(action, own, warnings)
    tables: list[Table] = []
    for family in FAMILIES:
        tracked = firewall.tracks(namespace, family)
        chains = tuple(_chains(action, names, own, surroundings, family, local=namespace.own, tracked=tracked))
        if not chains:
            continue
        if family == 6 and not firewall.knows_ipv6(namespace):
            warnings.append("nothing is blocked in IPv6: the kernel does not speak it here")
            continue
        try:
            tables.append(Table(firewall.choose_tool(namespace, family), chains))
        except HostError as error:
            if family == 4 or isinstance(action, BlockFrom):
                raise
            warnings.append(f"the ports are not blocked in IPv6: {error}")
    if not tables:
        raise HostError(f"there is nothing to block: {'; '.join(warnings)}")
    undo = Unblock(
        namespace.identity,
        tuple(OwnedChains(table.tool, tuple(chain.name for chain in table.chains)) for table in tables),
    )
    return Prepared((step(Block(namespace.identity, tuple(tables)), undo),), tuple(warnings))


def _but_own(action: BlockFrom, own: Sequence[str], warnings: list[str]) -> BlockFrom:
    """Return the block without addresses that this node has itself by now: it would cut itself off."""
    mine = set(map(rules.address, own))
    kept = []
    for peer in action.peers:
        held = [text for text in peer.addresses if rules.address(text) in mine]
        warnings += [f"{text} of {peer.node} is left out: this node has it itself" for text in held]
        kept.append(Peer(peer.node, tuple(text for text in peer.addresses if text not in held)))
    return BlockFrom(peers=tuple(kept))


def _hooks(action: BlockFrom | BlockPorts) -> tuple[Hook, ...]:
    if isinstance(action, BlockFrom):
        return ("INPUT",)
    both: dict[str, tuple[Hook, ...]] = {"in": ("INPUT",), "out": ("OUTPUT",), "both": ("INPUT", "OUTPUT")}
    return both[action.direction]


def _chains(
    action: BlockFrom | BlockPorts,
    names: dict[Hook, str],
    own: Sequence[str],
    surroundings: Surroundings,
    family: rules.Family,
    *,
    local: bool,
    tracked: bool,
) -> Iterator[Chain]:
    for hook, name in names.items():
        drops: tuple[Rule, ...]
        if isinstance(action, BlockFrom):
            drops = rules.drop_sources(action.peers, family, tracked=tracked)
        else:
            drops = rules.drop_ports(action, hook, tracked=tracked)
        spared: tuple[Rule, ...] = ()
        if isinstance(action, BlockFrom) or not surroundings.force:
            spared = rules.spare_control(surroundings.control, own, local=local, hook=hook, family=family)
        if drops:
            yield Chain(name, hook, spared + drops)


def _chain_name(worker: int, hook: Hook) -> str:
    return "TB-" + hashlib.sha256(f"{worker}/{hook}/{uuid.uuid4()}".encode()).hexdigest()[:16]
