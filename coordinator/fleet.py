"""The coordinator's table of nodes: who beats, under which journal, at which addresses."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from trogdor_bus.coordinator import unread
from trogdor_bus.coordinator.brokers import Seat
from trogdor_bus.coordinator.events import HostsResolved, LinksSeen, StrangerHeard
from trogdor_bus.coordinator.notes import Notes
from trogdor_bus.errors import SpecError
from trogdor_bus.messages import Beat, Echo, NodeRow, Report, Stamp
from trogdor_bus.names import check_heard_name
from trogdor_bus.printable import cut_lines
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState
from trogdor_bus.topology import Node, Topology, canonical

GRACE_MS = 5_000
"""How long past end and lease a silent worker is waited for before it is called unknown."""
SILENT_BEATS = 3
"""A node that misses this many beats is silent."""
LONG_SILENT_MS = 60_000
"""A node that is silent for so long keeps no address that a live one announces, unless it is configured."""
KEEP_SILENT_MS = 7 * 86_400_000
"""A node that is silent for so long and may hold nothing is forgotten, unless it is configured."""
KEEP_JOURNALS = 16
"""The last beats of so many journals of one node are remembered, so that a late frame is not taken for a new agent."""
KEEP_FORGOTTEN = 1_000
"""And those of so many nodes that were forgotten."""
TELL_REFUSED = 4
"""So many refused journals of one node are told so."""
ANSWER_STRANGERS_MS = 10_000
"""How often an agent of another version gets a word, which it cannot read and says so."""
MOST_CHARS = 256 << 10
"""So many characters of what is stuck or strays on a node are kept: its row must fit into a frame."""
SILENT = "its agent is silent"
AT_REST = (WorkerState.DONE, WorkerState.STUCK)
"""The states of a worker that its agent has done all it could for."""


class NodeState(msgspec.Struct, kw_only=True):
    """One node: its row, what was last heard, and what was last published. Times are ms on the coordinator's clock.

    `broker` is the id of the configuration, `announced_broker` that of its agent; the row has the one that counts. So
    of `controller`. `refused` are the journals of other agents of that name, with the time when each was heard last.
    """

    row: NodeRow
    agent: bool = True
    config: dict[str, str] = {}
    resolved: tuple[str, ...] = ()
    announced: tuple[str, ...] = ()
    broker: int | None = None
    announced_broker: int | None = None
    controller: int | None = None
    announced_controller: int | None = None
    attached: bool = False
    counters: dict[str, int] = {}
    refused: dict[str, int] = {}
    stamp: Stamp | None = None
    heard_ms: int = -1
    stranger_ms: int = -1
    """When an agent of another version of the protocol was heard last under this name, -1 if none is known of."""
    revision: int = 0
    published_ms: int = -1
    open: dict[int, str] = {}
    """Worker id to task id of every worker here that has not ended."""
    blind: dict[int, str] = {}
    """Those of them whose state could not be read when its agent told it last, and why."""

    @property
    def counter(self) -> int:
        """The newest beat of the present journal, -1 if there is none."""
        return self.counters.get(self.row.journal, -1)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return all by which others may know its packets: those that the configuration gives, and those that its agent
        announces, until it says that it ends; another may have these by now.
        """
        return self.resolved if self.row.left else self.row.addresses

    @property
    def place(self) -> tuple[str, ...]:
        """Return where it is: what the configuration gives, else what its agent announces."""
        return self.resolved or self.addresses

    @property
    def claim(self) -> int | None:
        """Return the broker that configuration or agent say that it is, None if neither does."""
        return self.announced_broker if self.broker is None else self.broker

    def seat(self) -> Seat:
        """Return what is known of its broker."""
        return Seat(
            configured=self.broker,
            announced=self.announced_broker,
            hostname=self.row.hostname,
            addresses=self.place,
        )

    def controller_seat(self) -> Seat:
        """Return what is known of its controller."""
        return Seat(
            configured=self.controller,
            announced=self.announced_controller,
            hostname=self.row.hostname,
            addresses=self.place,
        )

    def echo(self) -> Echo | None:
        """Return what a snapshot to this node answers."""
        return Echo(self.row.journal, self.counter) if self.counter >= 0 else None


class Heard(msgspec.Struct, frozen=True):
    """What a beat meant: `accepted` (else it is stale or refused), and a note for people, if any."""

    accepted: bool
    note: str = ""
    new_journal: bool = False


class Fleet:
    """The nodes by name. `configured` None: agents announce themselves; else only the configured names may join."""

    def __init__(self, configured: Mapping[str, Node] | None, beat_ms: int) -> None:
        self.nodes: dict[str, NodeState] = {}
        self._open = configured is None
        self._silent_ms = SILENT_BEATS * beat_ms
        self._now_ms = 0
        self._notes = Notes()
        self._forgotten: dict[str, NodeState] = {}
        self._revision = 0  # above those of the nodes that nobody remembers
        self._configured = dict(configured or {})
        self._unanswered: set[str] = set()
        self.touched: set[str] = set()
        """The nodes of which something changed that may alter what they are thought to hold."""
        for name in self._configured:
            self.ensure(name)

    def ensure(self, name: str) -> NodeState:
        """Return the node of that name, made if it is new."""
        if name not in self.nodes:
            node = self._configured.get(name)
            state = NodeState(row=NodeRow(name=name)) if node is None else _configured(node)
            before = self._forgotten.pop(name, None)
            state.counters = before.counters if before else {}
            state.revision = before.revision if before else self._revision
            self.nodes[name] = state
        return self.nodes[name]

    def forget(self, name: str) -> NodeState | None:
        """Forget all that was heard of a node; return it if it goes on, as one that is configured and was never heard.

        That a frame of it is late is seen all the same, and what it is told later is newer than what it was told.
        """
        before = self._forgotten[name] = self.nodes.pop(name)
        while len(self._forgotten) > KEEP_FORGOTTEN:
            oldest = self._forgotten.pop(next(iter(self._forgotten)))
            self._revision = max(self._revision, oldest.revision)
        if name not in self._configured:
            return None
        node = self.ensure(name)
        node.resolved = before.resolved
        node.row = msgspec.structs.replace(node.row, addresses=node.resolved)
        return node

    def long_gone(self, now_ms: int, aborted: Container[str] = ()) -> list[NodeState]:
        """Return the nodes that nobody misses: silent for days, not configured or `aborted`, and holding nothing."""
        return [
            node
            for node in self.nodes.values()
            if not (node.row.alive or node.row.configured or node.open or node.row.unproven)
            and now_ms - max(node.heard_ms, node.stranger_ms) >= KEEP_SILENT_MS
            and max(node.heard_ms, node.stranger_ms) >= 0
            and node.row.name not in aborted
        ]

    def hear(self, beat: Beat, now_ms: int) -> Heard:
        """Take a beat in: a copied name, an unconfigured name or an old frame changes nothing."""
        if refusal := self._unnamed(beat.node, now_ms):
            return Heard(False, self.once(refusal))
        self.touched.add(beat.node)
        node = self.ensure(beat.node)
        if beat.counter <= node.counters.get(beat.journal, -1):
            return Heard(False)
        known = node.row.journal
        new_journal = known != beat.journal
        if known and new_journal and node.row.alive and now_ms - node.heard_ms < self._silent_ms:
            node.refused[beat.journal] = now_ms
            _trim(node.refused, TELL_REFUSED)
            text = f"two agents call themselves {beat.node}: the one with journal {beat.journal[:8]} is refused"
            return Heard(False, self.once(text))
        node.refused = {
            journal: at
            for journal, at in node.refused.items()
            if journal != beat.journal and now_ms - at < self._silent_ms
        }
        node.counters.pop(beat.journal, None)  # the newest is the last to be forgotten
        node.counters[beat.journal] = beat.counter
        _trim(node.counters, KEEP_JOURNALS)
        node.stamp, node.heard_ms, node.blind = beat.stamp, now_ms, unread.blind(beat, node.blind, node.open)
        node.announced, node.attached = beat.addresses, beat.attached
        node.announced_broker = beat.broker if beat.broker is not None and beat.broker >= 0 else None
        node.announced_controller = beat.controller if beat.controller is not None and beat.controller >= 0 else None
        unreadable = unread.note(beat)
        notes = [self.once(f"node {beat.node}: {unreadable}")] if unreadable else []
        if known and new_journal:
            notes.append(f"node {beat.node} has another state directory than before (journal {beat.journal[:8]})")
        node.row = msgspec.structs.replace(
            node.row,
            alive=not beat.leaving,
            journal=beat.journal,
            heard_ms=now_ms,
            version=beat.version,
            addresses=_together(node.resolved, node.announced),
            note="its agent ended" if beat.leaving else "; ".join(filter(None, (beat.trouble, unreadable))),
            left=beat.leaving,
            broker=node.row.broker if node.claim is None else node.claim,
            controller=node.controller_seat().claim,
            latch=beat.latch,
            at_rest=bool(beat.latch) and all(report.state in AT_REST for report in beat.reports),
            dirty=cut_lines([_dirt(one) for one in beat.reports if one.state is WorkerState.STUCK], MOST_CHARS),
            strays=cut_lines(beat.strays, MOST_CHARS),
        )
        return Heard(True, "; ".join(filter(None, notes)), new_journal)

    def hear_stranger(self, event: StrangerHeard, now_ms: int) -> tuple[NodeState | None, str]:
        """Take in a beat of another version: nothing of it is believed, but the node's row says so.

        Return the node, if its row changed, and what people should know.
        """
        if refusal := self._unnamed(event.node, now_ms):
            return None, self.once(f"{refusal} ({event.why})")
        node = self.ensure(event.node)
        if node.row.alive and now_ms - node.heard_ms < self._silent_ms:
            return None, self.once(f"a second agent that calls itself {event.node} is refused: {event.why}")
        if now_ms - node.published_ms >= ANSWER_STRANGERS_MS:
            self._unanswered.add(event.node)
        node.stranger_ms, note = now_ms, f"its agent is refused: {event.why}"
        before = node.row
        told = {"note": note, "version": event.version}
        node.row = msgspec.structs.replace(before, alive=False, left=False, at_rest=False, **told)
        self.touched.add(event.node)
        return (node, f"node {event.node}: {note}") if node.row != before else (None, "")

    def unanswered(self) -> set[str]:
        """Return once the nodes whose agents speak another version, and must have a word to say so themselves."""
        found, self._unanswered = self._unanswered, set()
        return found

    def _unnamed(self, name: str, now_ms: int) -> str:
        """Return why nobody of that name is heard, "" if somebody may be."""
        self._now_ms = max(self._now_ms, now_ms)
        try:
            check_heard_name(name, "node name")
        except SpecError as error:
            return f"a beat was refused: {error}"
        if name not in self.nodes and not self._open:
            return f"node {name} is not in the configuration, its agent is ignored"
        return ""

    def see(
        self, event: HostsResolved | LinksSeen | StrangerHeard, now_ms: int
    ) -> Sequence[tuple[NodeState | None, str]]:
        """Take over what the shell has found out; return the nodes that changed, each with what people should know.

        None in place of a node: only what people should know.
        """
        if isinstance(event, StrangerHeard):
            node, text = self.hear_stranger(event, now_ms)
            return [(node, text)] if node or text else []
        if isinstance(event, HostsResolved):
            return [(node, "") for node in self.resolve(event.addresses)]
        return self.see_links(event.links, now_ms)

    def resolve(self, addresses: Mapping[str, tuple[str, ...]]) -> list[NodeState]:
        """Take over the addresses of configured host names; return the nodes that changed."""
        changed = []
        for name, found in addresses.items():
            node = self.nodes.get(name)
            if node and node.resolved != found:
                node.resolved = found
                node.row = msgspec.structs.replace(node.row, addresses=_together(found, node.announced))
                changed.append(node)
        return changed

    def see_links(self, links: Mapping[str, Mapping[str, bool]], now_ms: int) -> list[tuple[NodeState, str]]:
        """Take over which links are alive; return the nodes that changed, each with what people should know of it.

        What is known of a node that is not heard stays as it is: there its links are no news.
        """
        changed = []
        for name, node in self.nodes.items():
            if not node.row.alive or now_ms - node.heard_ms >= self._silent_ms:
                continue
            before, found = node.row.links, links.get(name, {})
            if before != found:
                node.row = msgspec.structs.replace(node.row, links=dict(found))
                news = [
                    f"link {link} {'is back' if alive else 'is silent'}"
                    for link, alive in found.items()
                    if before.get(link, True) != alive
                ]
                changed.append((node, f"node {name}: {', '.join(news)}" if news else ""))
        return changed

    def fall_silent(self, now_ms: int) -> list[NodeState]:
        """Mark the nodes that have missed their beats; return them."""
        self._now_ms = max(self._now_ms, now_ms)
        silent = [
            node
            for node in self.nodes.values()
            if (node.row.alive or node.stranger_ms > node.heard_ms)
            and node.row.note != SILENT
            and now_ms - max(node.heard_ms, node.stranger_ms) >= self._silent_ms
        ]
        for node in silent:
            node.row = msgspec.structs.replace(node.row, alive=False, note=SILENT)
            self.touched.add(node.row.name)
        return silent

    def hopeless(
        self, node: NodeState, row: WorkerRow, task: TaskRow, now_ms: int, lease_ms: int, *, after_ms: int
    ) -> tuple[Outcome, str] | None:
        """Return how a worker of a node must be closed, of which nothing more can be hoped for; None while it can.

        Before `after_ms` none is unknown: its agent had no time yet to be heard.
        """
        if row.state is WorkerState.STUCK:
            return None  # known and loud; it stays until somebody heals the node
        if not row.journal:
            text = f"no agent of node {row.node} was heard before the task's end; nothing was done there"
            return (Outcome.FAILED, text) if now_ms > task.end_ms else None
        blind = node.blind.get(row.id, "")
        known = row.journal == node.row.journal and row.state is not WorkerState.RECEIVING and not blind
        last_ms = task.end_ms
        if task.state is TaskState.STOPPING:
            last_ms = min(last_ms, max(task.stop_ms, node.heard_ms if known else -1))
        if (known and node.row.alive) or now_ms <= max(last_ms + lease_ms, after_ms) + GRACE_MS:
            return None
        if node.row.journal not in ("", row.journal):
            return Outcome.UNKNOWN, came_back(row.node)
        if blind:
            return Outcome.UNKNOWN, unread.unknown(row.node, blind)
        text = f"node {row.node} was not heard again; an agent that runs there ends the fault by its own clock"
        return Outcome.UNKNOWN, f"outcome unknown: {text}"

    def topology(self, addresses: tuple[str, ...], ports: tuple[int, ...], machine: tuple[str, ...] = ()) -> Topology:
        """Return the nodes as a spec sees them, the coordinator's own addresses and ports, and those of its machine."""
        live = {
            address for state in self.nodes.values() if state.row.alive for address in map(canonical, state.addresses)
        }
        nodes = {
            name: Node(
                name=name,
                addresses=self._kept_addresses(state, live),
                given=state.resolved,
                hostname=state.row.hostname,
                tags=state.row.tags,
                agent=state.agent,
                config=state.config,
                broker=state.row.broker,
                controller=state.row.controller,
            )
            for name, state in self.nodes.items()
        }
        return Topology(
            nodes=nodes, coordinator_addresses=addresses, coordinator_ports=ports, coordinator_machine=machine
        )

    def _kept_addresses(self, state: NodeState, live: set[str]) -> tuple[str, ...]:
        """Return the addresses of a node, without those that a live node took over while it was silent for long."""
        if state.row.alive or self._now_ms - state.heard_ms < LONG_SILENT_MS:
            return state.addresses
        return tuple(
            address for address in state.addresses if address in state.resolved or canonical(address) not in live
        )

    def once(self, note: str) -> str:
        """Return a note for people the first time and then once an hour, "" otherwise."""
        return self._notes.once(note, self._now_ms)


def came_back(node: str) -> str:
    """Return the error of a worker whose node has an agent with another journal."""
    text = f"node {node} came back with another state directory, and nobody tells what became of the fault"
    return f"outcome unknown: {text}"


def _configured(node: Node) -> NodeState:
    row = NodeRow(
        name=node.name,
        configured=True,
        hostname=node.hostname,
        tags=node.tags,
        broker=node.broker,
        controller=node.controller,
    )
    return NodeState(row=row, agent=node.agent, config=node.config, broker=node.broker, controller=node.controller)


def _trim(kept: dict[str, int], most: int) -> None:
    """Forget the oldest beyond so many."""
    for name in list(kept)[: max(0, len(kept) - most)]:
        del kept[name]


def _together(given: tuple[str, ...], announced: tuple[str, ...]) -> tuple[str, ...]:
    """Return both, each address once, those that are given first."""
    known = set(map(canonical, given))
    return (*given, *(address for address in announced if canonical(address) not in known))


def _dirt(report: Report) -> str:
    by_hand = f"; by hand: {'; '.join(report.by_hand)}" if report.by_hand else ""
    return f"the undo of task {report.task} is stuck{by_hand}"
