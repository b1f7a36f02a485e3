"""The Linux platform: lowers actions to steps, and performs them."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from signal import Signals
from typing import get_args

import msgspec

from trogdor_bus.actions import AnyAction, BlockFrom, BlockPorts, Kill, MoveLeader, Peer, RunCommand, Suspend
from trogdor_bus.agents.platforms.linux import (
    batches,
    endings,
    firewall,
    lanes,
    leaders,
    locking,
    newcomers,
    owners,
    processes,
    programs,
    rules,
    signals,
    strays,
    unblocking,
)
from trogdor_bus.agents.platforms.linux.holders import Held, open_held
from trogdor_bus.agents.platforms.linux.namespace import (
    Namespace,
    open_again,
    open_attached,
    parse_attachment,
    typed_prefix,
)
from trogdor_bus.agents.platforms.linux.operations import (
    Block,
    Chain,
    Command,
    Deliver,
    End,
    Finish,
    Freeze,
    Hold,
    Hook,
    Lead,
    LeadBack,
    NamespaceIdentity,
    Nothing,
    OwnedChains,
    Release,
    Restart,
    Rule,
    Signal,
    Stops,
    Table,
    Thaw,
    Unblock,
    plain,
    read,
    step,
)
from trogdor_bus.agents.platforms.linux.patience import Patience
from trogdor_bus.agents.platforms.linux.restart import Restarts, prepare, typed
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Operation, Prepared, ProcessIdentity, Seen, Step, Surroundings, Verb

FAMILIES: tuple[rules.Family, ...] = (4, 6)


class LinuxPlatform:
    """Acts on one network namespace of this machine and on the processes in it (see `trogdor_bus.platform.Platform`).

    `attach` says which: "" the agent's own, "netns:NAME", "pid:PID" or "container:NAME". `allow_commands` are the only
    commands that a spec may have run.
    """

    def __init__(self, attach: str = "", allow_commands: Sequence[Sequence[str]] = ()) -> None:
        self._attachment = parse_attachment(attach)
        self._endings = endings.Endings()
        self._restarts = Restarts(self._attachment, self._endings)
        self._leaders = leaders.Leaders()
        self._programs = programs.Programs()
        self._stops = Stops()
        self._patience = Patience()
        self._namespaces = Held()
        self._allowed = {tuple(command) for command in allow_commands}
        self._broker: int | None = None
        self._controller: int | None = None

    def addresses(self) -> tuple[str, ...]:
        """Return the node's own IP addresses, loopback and link-local excluded."""
        with open_attached(self._attachment) as namespace:
            said = namespace.said
            self._broker, self._controller = (said.broker, said.controller) if said else (None, None)
            return namespace.addresses()

    def broker(self) -> int | None:
        """Return which Kafka broker the attached container said that it is when the addresses were last read."""
        return self._broker

    def controller(self) -> int | None:
        """Return which Kafka controller the attached container said that it is when the addresses were last read."""
        return self._controller

    def call_when_stirred(self, stirred: Callable[[int], None]) -> None:
        """Have `stirred` called with a worker when a program of it has ended; from any thread."""
        self._programs.stirred = stirred

    def boot_id(self) -> str:
        """Return the id of this boot of the machine."""
        return boot_id()

    @contextlib.contextmanager
    def alone(self, steps: Sequence[Step]) -> Iterator[None]:
        """Hold the locks of what the steps act on, in the namespaces where that is; a lost one has none.

        HostError names the process that does not give one back.
        """
        kinds: dict[str, list[Step]] = {}
        for one in steps:
            kinds.setdefault(lanes.lock_of(one), []).append(one)
        with contextlib.ExitStack() as held:
            for kind, some in sorted(kinds.items()):
                held.enter_context(locking.hold(self._concerned(some), kind="" if kind == lanes.FIREWALL else kind))
            yield

    def lane(self, verb: Verb, what: Step | AnyAction | None) -> str:
        """Return the lane of a call: the firewall, the processes, what is started, and the search for processes."""
        return lanes.lane(verb, what)

    def prepare(self, worker: int, action: AnyAction, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        """Read the machine and return the steps; nothing is changed. HostError or RefusedError if it cannot be done."""
        if isinstance(action, MoveLeader):
            return Prepared((self._leaders.prepare(worker, action),))
        with open_attached(self._attachment) as namespace:
            match action:
                case BlockFrom() | BlockPorts():
                    return _prepare_block(namespace, worker, action, surroundings)
                case Suspend():
                    return _prepare_suspend(namespace, action, surroundings, self._held(held))
                case Kill():
                    return self._prepare_kill(namespace, action, surroundings)
                case RunCommand():
                    return Prepared(self._programs.prepare(worker, action, namespace, surroundings, self._allowed))

    def do(self, step: Step) -> Operation | None:
        """Perform the step and read back that it took. HostError if it did not; the caller then undoes.

        Returns the undo of a process that was told to end: before, it is not waited for, and not killed; and that of a
        program, which says who that is.
        """
        match read(step.do):
            case Block() as block:
                namespace = open_again(block.namespace)
                if namespace is None:
                    raise HostError("the network namespace is gone since the fault was prepared")
                with namespace:
                    self._namespaces.keep(block.namespace, _chains_of(block))
                    for table in block.tables:
                        firewall.install(namespace, table)
            case Freeze() as freeze:
                signals.freeze(freeze, self._patience)
            case Deliver() as deliver:
                signals.deliver(deliver, self._patience, self._endings.told)
                undo = read(step.undo)
                told = signals.told_to_end(deliver, undo)
                return plain(told) if told != undo else None
            case Lead() as lead:
                self._leaders.move(lead)
            case Hold() as hold:
                end = read(step.undo)
                assert isinstance(end, End)
                return plain(self._programs.hold(hold, end))
            case Release() as release:
                self._programs.release(release)
            case other:
                raise HostError(f"a {type(other).__name__} operation cannot be a do")
        return None

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        """Take the step back; calling it twice is harmless. Returns a note for people; CannotHealError if it stays."""
        try:
            match read(step.undo):
                case Unblock() as unblock:
                    return _or_raise(unblocking.unblock(self._reach, [unblock])[0])
                case Thaw() as thaw:
                    return signals.thaw(thaw, self._patience, wanted=self._held(held).wanted(thaw.process))
                case Finish() as finish:
                    self._endings.finish(finish)
                    return ""
                case Restart() as restart:
                    return self._restarts.undo(restart, _signal(step), note)
                case LeadBack() as back:
                    return self._leaders.restore(back)
                case End() as end:
                    return self._programs.end(end)
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
        seen = self.look(step)
        return (self.search(step) if seen.unsure else seen).disturbance

    def look(self, step: Step) -> Seen:
        """Return how the step is, what its rules dropped, and what a program says of itself; it searches nothing."""
        match read(step.do):
            case Block() as block:
                return unblocking.look([block])[0]
            case Freeze() | Deliver() as signalled:
                return newcomers.look(signalled)
            case Hold() as hold:
                return self._programs.look(hold)
            case _:
                return Seen()

    def search(self, step: Step) -> Seen:
        """Return how the step is by a search for those that took the place of its process."""
        match read(step.do):
            case Freeze() | Deliver() as signalled:
                return Seen(newcomers.disturbance(signalled, self._attachment))
            case _:
                return Seen()

    def undo_many(
        self, many: Sequence[tuple[Step, Sequence[Step], Callable[[Operation], None]]]
    ) -> Sequence[str | Exception]:
        """Take steps back, chains of one namespace at once."""
        undos = [step.undo for step, _, _ in many]
        together: batches.Together[str] = {Unblock: partial(unblocking.unblock, self._reach)}
        return batches.done(undos, together, lambda at: self.undo(*many[at]))

    def residue_many(self, many: Sequence[tuple[Step, Sequence[Step]]]) -> Sequence[tuple[str, ...] | Exception]:
        """Return what is left of undone steps; the rules of one namespace, and all processes, are read once."""
        undos = [step.undo for step, _ in many]
        together: batches.Together[tuple[str, ...]] = {Unblock: self._left, End: self._programs.residue}
        return batches.done(undos, together, lambda at: self.residue(*many[at]))

    def look_many(self, steps: Sequence[Step]) -> Sequence[Seen | Exception]:
        """Return how applied steps are; the rules of one namespace are read once."""
        return batches.done([step.do for step in steps], {Block: unblocking.look}, lambda at: self.look(steps[at]))

    def missed(self, step: Step) -> str:
        """Return "", or how a step whose time is over has not done what it is for: a process outlived its signal."""
        operation = read(step.do)
        return endings.outlived(operation) if isinstance(operation, Deliver) else ""

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        """Return the steps that make a disturbed step hold again; nothing is changed. RefusedError if that may not be.

        Rules and a process that lives are done again as they were; what took the place of a process gets new steps.
        """
        match read(step.do):
            case Freeze() as freeze if processes.thread_states(freeze.process):
                return (_stop_again(freeze),)
            case Freeze() | Deliver() as signalled:
                return newcomers.again(signalled, self._attachment, surroundings)
            case Block():
                return (step,)
            case _:
                return ()

    def strays(self, held: Sequence[Step], directory: str) -> tuple[str, ...]:
        """Return the chains of nobody in the attached namespace, a line each; HostError if it cannot be looked."""
        owners.register(directory)
        with open_attached(self._attachment) as namespace:
            return strays.find(namespace, held, directory)

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        """Return what is left of an undone step; () is what everybody wants."""
        match read(step.undo):
            case Unblock() as unblock:
                return self._left([unblock])[0]
            case Thaw(process=process, leave=False) as thaw:
                stopped = signals.is_stopped(process) and not self._held(held).wanted(process)
                return (f"process {process.pid} ({thaw.name}) is still stopped",) if stopped else ()
            case LeadBack() as back:
                return self._leaders.residue(back)
            case End() as end:
                return self._programs.residue([end])[0]
            case _:
                return ()

    def by_hand(self, step: Step) -> str:
        """Return what a person would type on this machine to undo the step, "" if there is nothing to type."""
        match read(step.do), read(step.undo):
            case Block() as block, _:
                inside = self._inside(block.namespace)
                chains = [(f"{inside}{table.tool}", chain) for table in block.tables for chain in table.chains]
                return "; ".join(
                    f"{tool} -D {chain.hook} -j {chain.name} -w; {tool} -F {chain.name} -w; {tool} -X {chain.name} -w"
                    for tool, chain in (chains if inside is not None else ())
                )
            case _, Thaw(leave=False) as thaw:
                return f"kill -CONT {thaw.process.pid}"
            case _, Finish() as finish:
                return f"kill -KILL {' '.join(str(process.pid) for process in finish.dying)}"
            case _, Restart(how=how) as restart:
                inside = self._typed_prefix() if isinstance(how, Command) else ""
                kill = endings.typed(self._endings.dying(restart.dying, _signal(step)))
                return f"{kill}{'; ' if kill else ''}{inside}{typed(how)}"
            case _, LeadBack() as back:
                return leaders.typed(back)
            case _, End() as end:
                return programs.typed(end)
            case _:
                return ""

    def _typed_prefix(self) -> str:
        """Return the words before a command of the node; "" if its container is down, which the command brings back."""
        with contextlib.suppress(HostError), open_attached(self._attachment) as namespace:
            return typed_prefix(namespace)
        return ""

    def _inside(self, identity: NamespaceIdentity) -> str | None:
        """Return the words before a command in that namespace; None if it is not to be found."""
        namespace = self._reach(identity)
        if namespace is None:
            return None
        with namespace:
            return typed_prefix(namespace)

    def _reach(self, identity: NamespaceIdentity) -> Namespace | None:
        """Return that very namespace, however it can be reached, None if that is not known: see `open_held`."""
        return self._namespaces.open(identity) or open_again(identity) or open_held(identity)

    def _left(self, operations: Sequence[Unblock]) -> list[tuple[str, ...]]:
        """Return for each operation on one namespace what is left of its chains; where nothing is, let go of it."""
        found = unblocking.residue(self._reach, operations)
        for operation, left in zip(operations, found, strict=True):
            if not left:
                self._namespaces.release(operation.namespace, _chains_of(operation))
        return found

    def _concerned(self, steps: Sequence[Step]) -> Iterator[NamespaceIdentity]:
        """Yield the namespaces that the steps act on; the attached one if a step (or no step at all) names none."""
        attached = not steps
        seen: set[str] = set()
        for one in steps:
            operation: object = None
            with contextlib.suppress(HostError):  # it cannot be read: its undo says so
                operation = read(one.undo)
            match operation:
                case object(namespace=NamespaceIdentity() as identity):
                    yield identity
                case object(process=ProcessIdentity(pid=pid)):
                    if (place := processes.network_of(pid)) not in seen:  # each is entered once, not for each process
                        seen.add(place)
                        with contextlib.suppress(HostError), Namespace(f"/proc/{pid}/ns/net") as namespace:
                            yield namespace.identity
                case _:
                    attached = True
        if attached:
            with contextlib.suppress(HostError), open_attached(self._attachment) as namespace:
                yield namespace.identity

    def _held(self, steps: Sequence[Step]) -> Stops:
        """Return the stops of other workers; within one prepare or undo they are read once."""
        stops = self._stops = self._stops.among(steps)  # lanes call this at the same time
        return stops

    def _prepare_kill(self, namespace: Namespace, action: Kill, surroundings: Surroundings) -> Prepared:
        if action.signal not in get_args(Signal):
            raise RefusedError(
                f"{action.signal} is not a signal that can be sent; use one of {', '.join(get_args(Signal))}"
            )
        watch = newcomers.watch(action.match)
        found = _find(namespace, action, surroundings)
        for process in found.processes:
            if not action.grace_ms and (why := signals.deaf_to(process.pid, Signals[action.signal])):
                raise HostError(f"process {process.pid} ({process.name}) {why}")
        undo: Restart | Nothing = Nothing()
        if action.restart and found.processes:
            undo = prepare(action, found.processes, namespace, self._allowed)
            self._endings.prepared(undo.dying)
        steps: list[Step] = []
        for process in found.processes:  # the first speaks for all: it is undone last
            watched, undone = (None, Nothing()) if steps else (watch, undo)
            do = Deliver(process.identity, process.name, action.signal, watched, action.grace_ms)  # type: ignore[arg-type]
            steps.append(step(do, undone))
        return Prepared(tuple(steps), _warnings(found))


def _or_raise(outcome: str | Exception) -> str:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _signal(step: Step) -> str:
    operation = read(step.do)
    return operation.signal if isinstance(operation, Deliver) else "SIGTERM"


def _stop_again(freeze: Freeze) -> Step:
    """Return the stop of a process that runs: its undo lets it run, whatever it did before the fault."""
    return step(msgspec.structs.replace(freeze, leave=False), Thaw(freeze.process, freeze.name, leave=False))


def _prepare_suspend(namespace: Namespace, action: Suspend, surroundings: Surroundings, stops: Stops) -> Prepared:
    watch = newcomers.watch(action.match)
    found = _find(namespace, action, surroundings)
    steps: list[Step] = []
    for process in found.processes:
        leave = signals.is_stopped(process.identity) and not stops.wanted(process.identity)
        do = Freeze(process.identity, process.name, leave, watch)
        steps.append(step(do, Thaw(process.identity, process.name, leave)))
    return Prepared(tuple(steps), _warnings(found))


def _warnings(found: processes.Found) -> tuple[str, ...]:
    return tuple(filter(None, (found.why_none or found.silent,)))


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


def _chains_of(operation: Block | Unblock) -> set[str]:
    """Return the names of the chains that it makes or removes."""
    if isinstance(operation, Block):
        return {chain.name for table in operation.tables for chain in table.chains}
    return {name for owned in operation.tables for name in owned.chains}
