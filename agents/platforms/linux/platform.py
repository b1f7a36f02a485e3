"""The Linux platform: lowers actions to steps, and performs them."""

from __future__ import annotations

import hashlib
import shlex
import uuid
from collections.abc import Iterator, Sequence
from signal import Signals
from typing import get_args

from trogdor_bus.actions import AnyAction, BlockFrom, BlockPorts, Kill, Suspend
from trogdor_bus.agents.platforms.linux import firewall, processes, rules, signals
from trogdor_bus.agents.platforms.linux.namespace import Namespace, open_again, open_attached, parse_attachment
from trogdor_bus.agents.platforms.linux.operations import (
    Block,
    Chain,
    Deliver,
    Freeze,
    Hook,
    Nothing,
    OwnedChains,
    Restart,
    Rule,
    Signal,
    Table,
    Thaw,
    Unblock,
    freezes,
    read,
    step,
)
from trogdor_bus.agents.platforms.linux.restart import check_command, restart
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Prepared, Step, Surroundings

FAMILIES: tuple[rules.Family, ...] = (4, 6)


class LinuxPlatform:
    """Acts on one network namespace of this machine and on the processes in it (see `trogdor_bus.platform.Platform`).

    `attach` says which: "" the agent's own, "netns:NAME", "pid:PID" or "container:NAME". `allow_commands` are the only
    commands that a spec may have run.
    """

    def __init__(self, attach: str = "", allow_commands: Sequence[Sequence[str]] = ()) -> None:
        self._attachment = parse_attachment(attach)
        self._allowed = {tuple(command) for command in allow_commands}

    def addresses(self) -> tuple[str, ...]:
        """Return the node's own IP addresses, loopback and link-local excluded."""
        with open_attached(self._attachment) as namespace:
            return namespace.addresses()

    def boot_id(self) -> str:
        """Return the id of this boot of the machine."""
        return boot_id()

    def prepare(self, worker: int, action: AnyAction, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        """Read the machine and return the steps; nothing is changed. HostError or RefusedError if it cannot be done."""
        with open_attached(self._attachment) as namespace:
            match action:
                case BlockFrom() | BlockPorts():
                    return _prepare_block(namespace, worker, action, surroundings)
                case Suspend():
                    return _prepare_suspend(namespace, action, surroundings, held)
                case Kill():
                    return self._prepare_kill(namespace, action, surroundings)

    def do(self, step: Step) -> None:
        """Perform the step and read back that it took. HostError if it did not; the caller then undoes."""
        match read(step.do):
            case Block() as block:
                namespace = open_again(block.namespace)
                if namespace is None:
                    raise HostError("the network namespace is gone since the fault was prepared")
                with namespace:
                    for table in block.tables:
                        firewall.install(namespace, table)
            case Freeze() as freeze:
                signals.freeze(freeze)
            case Deliver() as deliver:
                signals.deliver(deliver)
            case other:
                raise HostError(f"a {type(other).__name__} operation cannot be a do")

    def undo(self, step: Step, held: Sequence[Step]) -> str:
        """Take the step back; calling it twice is harmless. Returns a note for people; CannotHealError if it stays."""
        try:
            match read(step.undo):
                case Unblock() as unblock:
                    return _unblock(unblock)
                case Thaw() as thaw:
                    return signals.thaw(thaw, freezes(thaw.process, held))
                case Restart() as command:
                    return restart(command, self._attachment)
                case Nothing():
                    return ""
                case other:
                    raise HostError(f"a {type(other).__name__} operation cannot be an undo")
        except CannotHealError:
            raise
        except HostError as error:
            raise CannotHealError(str(error)) from error

    def disturbance(self, step: Step) -> str:
        """Return "" while the step still holds, else what changed it."""
        match read(step.do):
            case Block() as block:
                namespace = open_again(block.namespace)
                if namespace is None:
                    return "the network namespace is gone"
                with namespace:
                    found = (firewall.disturbance(namespace, table) for table in block.tables)
                    return next(filter(None, found), "")
            case Freeze() as freeze:
                return signals.frozen_disturbance(freeze)
            case _:
                return ""

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left of an undone step; () is what everybody wants."""
        match read(step.undo):
            case Unblock() as unblock:
                namespace = open_again(unblock.namespace)
                if namespace is None:
                    return ()
                with namespace:
                    return tuple(left for table in unblock.tables for left in firewall.residue(namespace, table))
            case Thaw(leave=False) as thaw if not freezes(thaw.process, held) and signals.is_stopped(thaw.process):
                return (f"process {thaw.process.pid} ({thaw.name}) is still stopped",)
            case _:
                return ()

    def by_hand(self, step: Step) -> str:
        """Return what a person would type to undo the step, in the node's namespace; "" if there is nothing to type."""
        match read(step.do), read(step.undo):
            case Block() as block, _:
                chains = [(table.tool, chain) for table in block.tables for chain in table.chains]
                return "; ".join(
                    f"{tool} -D {chain.hook} -j {chain.name}; {tool} -F {chain.name}; {tool} -X {chain.name}"
                    for tool, chain in chains
                )
            case _, Thaw(leave=False) as thaw:
                return f"kill -CONT {thaw.process.pid}"
            case _, Restart() as command:
                return shlex.join(command.argv)
            case _:
                return ""

    def _prepare_kill(self, namespace: Namespace, action: Kill, surroundings: Surroundings) -> Prepared:
        if action.signal not in get_args(Signal):
            raise RefusedError(
                f"{action.signal} is not a signal that can be sent; use one of {', '.join(get_args(Signal))}"
            )
        if action.restart:
            if action.restart not in self._allowed:
                raise RefusedError(
                    f"this agent may not run the command {list(action.restart)}; "
                    "list exactly that under allowCommands in the agent's own configuration"
                )
            check_command(action.restart)
        found = _find(namespace, action, surroundings)
        for process in found.processes:
            if why := signals.deaf_to(process.pid, Signals[action.signal]):
                raise HostError(f"process {process.pid} ({process.name}) {why}")
        undo = Restart(boot_id(), action.match, action.restart) if action.restart else Nothing()
        return Prepared(
            tuple(
                step(Deliver(process.identity, process.name, action.signal), undo)  # type: ignore[arg-type]
                for process in found.processes
            ),
            (found.why_none,) if found.why_none else (),
        )


def _prepare_suspend(
    namespace: Namespace, action: Suspend, surroundings: Surroundings, held: Sequence[Step]
) -> Prepared:
    found = _find(namespace, action, surroundings)
    steps: list[Step] = []
    for process in found.processes:
        others = freezes(process.identity, held)
        already = signals.is_stopped(process.identity)
        leave = already and (not others or any(other.leave for other in others))
        steps.append(step(Freeze(process.identity, process.name, leave), Thaw(process.identity, process.name, leave)))
    return Prepared(tuple(steps), (found.why_none,) if found.why_none else ())


def _find(namespace: Namespace, action: Suspend | Kill, surroundings: Surroundings) -> processes.Found:
    found = processes.find(action.match, namespace, surroundings)
    if found.why_none and action.required:
        raise HostError(found.why_none)
    return found


def _prepare_block(
    namespace: Namespace, worker: int, action: BlockFrom | BlockPorts, surroundings: Surroundings
) -> Prepared:
    if isinstance(action, BlockFrom) and not any(peer.addresses for peer in action.peers):
        raise HostError("there is no address to block: no peer has any")
    if isinstance(action, BlockPorts) and not action.ports:
        raise HostError("there is no port to block")
    names = {hook: _chain_name(worker, hook) for hook in _hooks(action)}
    own = namespace.addresses()
    warnings: list[str] = []
    tables: list[Table] = []
    for family in FAMILIES:
        chains = tuple(_chains(action, names, own, surroundings, family, local=namespace.own))
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
) -> Iterator[Chain]:
    for hook, name in names.items():
        drops: tuple[Rule, ...]
        if isinstance(action, BlockFrom):
            drops = rules.drop_sources(action.peers, family)
        else:
            drops = rules.drop_ports(action, hook)
        spared: tuple[Rule, ...] = ()
        if isinstance(action, BlockFrom) or not surroundings.force:
            spared = rules.spare_control(surroundings.control, own, local=local, hook=hook, family=family)
        if drops:
            yield Chain(name, hook, spared + drops)


def _chain_name(worker: int, hook: Hook) -> str:
    return "TB-" + hashlib.sha256(f"{worker}/{hook}/{uuid.uuid4()}".encode()).hexdigest()[:16]


def _unblock(operation: Unblock) -> str:
    namespace = open_again(operation.namespace)
    if namespace is None:
        return "gone: the network namespace is no more, and the rules went with it"
    with namespace:
        for table in operation.tables:
            firewall.remove(namespace, table)
    return ""
