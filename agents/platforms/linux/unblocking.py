"""Taking chains of ours out, those of one namespace at once, and looking at them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from trogdor_bus.agents.platforms.linux import firewall
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_again
from trogdor_bus.agents.platforms.linux.operations import Block, NamespaceIdentity, OwnedChains, Unblock
from trogdor_bus.errors import CannotHealError, HostError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Seen

LOST = (
    "gone: no name, process, open file or mount of this machine leads to the network namespace any more; whether "
    "something else still holds it, with the rules in it, cannot be known"
)
Reach = Callable[[NamespaceIdentity], Namespace | None]


def unblock(reach: Reach, operations: Sequence[Unblock]) -> list[str | Exception]:
    """Take out chains of one namespace; return for each operation a note for people, or why its chains stay."""
    identity = operations[0].namespace
    if identity.boot_id != boot_id():
        return ["gone: the machine was booted since, and the rules went with it"] * len(operations)
    namespace = reach(identity)
    if namespace is None:
        return [LOST] * len(operations)
    with namespace:
        failures = list(filter(None, _at_once(partial(_remove, namespace), _joined(operations))))
    if failures and len(operations) > 1:  # one of them may be the reason
        return [unblock(reach, [operation])[0] for operation in operations]
    if failures:
        return [CannotHealError("; ".join(failures))]
    named = open_again(identity)
    if named is None:
        note = "gone: the network namespace has no name and no process any more; the rules were taken out of it"
        return [note] * len(operations)
    named.close()
    return [""] * len(operations)


def residue(reach: Reach, operations: Sequence[Unblock]) -> list[tuple[str, ...]]:
    """Return for each operation on one namespace what is left of its chains."""
    namespace = reach(operations[0].namespace)
    if namespace is None:
        return [()] * len(operations)
    with namespace:
        found = iter(firewall.residue(namespace, [table for operation in operations for table in operation.tables]))
    return [tuple(itertools.chain(*itertools.islice(found, len(operation.tables)))) for operation in operations]


def look(blocks: Sequence[Block]) -> list[Seen]:
    """Return for each block of one namespace whether it holds, and how many packets it dropped."""
    namespace = open_again(blocks[0].namespace)
    if namespace is None:
        return [Seen("the network namespace is gone: it has no name and no process any more")] * len(blocks)
    with namespace:
        found = iter(firewall.look(namespace, [table for block in blocks for table in block.tables]))
    return [_together(list(itertools.islice(found, len(block.tables)))) for block in blocks]


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
