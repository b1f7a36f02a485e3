"""What travels on the bus, and what clients ask: msgspec Structs, encoded as JSON.

Peers are read leniently: unknown fields are ignored, and of what cannot be read whatever is one worker's fails alone
(see `trogdor_bus.late`). Every frame carries the version of the protocol. Durations are ms; ends travel as
`remaining_ms`, counted from the moment the echoed beat was sent, so that nobody compares wall clocks.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Self

import msgspec

from trogdor_bus import late
from trogdor_bus.actions import Action, Peer, decode_action
from trogdor_bus.errors import BusError, SpecError, TrogdorBusError, VersionError
from trogdor_bus.limits import flaw
from trogdor_bus.names import shown
from trogdor_bus.platform import ProcessIdentity
from trogdor_bus.remedies import Remedy
from trogdor_bus.roles import Chosen
from trogdor_bus.spec import Texts
from trogdor_bus.states import Disturbance, Outcome, TaskRow, WorkerRow, WorkerState

VERSION = 2
"""Whoever speaks another one is refused in words. From this one on, old and new read each other."""
Number = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""What every implementation can hold, add one to, and write."""
MAX_EPOCH = 2**53
"""No agent obeys an epoch above this: nobody starts a coordinator so often. Coordinators believe half of it."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of everything that travels."""

    v: int = msgspec.field(default_factory=lambda: VERSION)  # a factory: never omitted from the frame


class Stamp(msgspec.Struct, frozen=True):
    """Which word of which coordinator: epochs grow with each start, revisions with each change of a node's state."""

    epoch: Number
    coordinator: str
    revision: Number


class Echo(msgspec.Struct, frozen=True):
    """The last beat that a snapshot answers."""

    journal: str
    counter: Number


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker that a node should have.

    It is addressed to one journal and performed at most once. `actions` None: keep it if you have it, never start it.
    `reapply`: what somebody changes of it is put back. `drift`: what the peers of its blocks announce beside the
    addresses that the actions name.
    """

    worker: Number
    task: str
    journal: str
    remaining_ms: Number
    duration_ms: Number = 0
    spec: msgspec.Raw = msgspec.Raw(b"null")
    actions: tuple[Action, ...] | None = None
    texts: Texts = Texts("starting", "active", "stopping", "done")
    force: bool = False
    reapply: bool = False
    drift: tuple[Peer, ...] = ()


class UnreadOrder(Order, frozen=True, kw_only=True, omit_defaults=True):
    """An order of another version, as far as it can be read; `why` says of what it cannot, never "".

    The worker is kept if it is there, and fails if it was to start. `actions` are () in place of any that were ordered.
    """

    why: str


class Snapshot(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The whole desired state of one node. A worker that is absent must stop; a finished one may be forgotten.

    `abort` is the id of a latch that the node must keep: everything ends, and nothing starts. `resume` is the id of one
    that it may drop. `refused` are the journals of other agents that beat under the same name, and are not heard.
    """

    node: str
    stamp: Stamp
    echo: Echo | None = None
    orders: tuple[Order, ...] = ()
    coordinator: ProcessIdentity | None = None
    describe: bool = False
    abort: str = ""
    resume: str = ""
    refused: tuple[str, ...] = ()


UNTOLD = msgspec.Raw(b"null")
"""The spec in a report that was not asked to tell it, the progress of a worker that says nothing."""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent says of one worker; `spec` only when it was asked to describe itself.

    `status` is a line for people, `progress` what the worker says of itself (JSON), null for nothing. `dropped`: how
    many packets its rules dropped, when the agent first saw that they did, and at the end. `late_ms`: how long after it
    was due it was seen to be undone.
    """

    worker: Number
    task: str
    state: WorkerState
    status: str = ""
    progress: msgspec.Raw = UNTOLD
    error: str = ""
    outcome: Outcome = Outcome.NONE
    warnings: tuple[str, ...] = ()
    disturbed: tuple[Disturbance, ...] = ()
    residue: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    dropped: Number = 0
    late_ms: Number = 0
    remaining_ms: Number = 0
    spec: msgspec.Raw = UNTOLD


NAMELESS = -1
"""The worker of a report of which nobody can tell whose it is; no worker has that number."""


class UnreadReport(Report, frozen=True, kw_only=True, omit_defaults=True):
    """A report of another version, as far as it can be read; `why` says of what it cannot, never "".

    `blind`: not even the state can be read. It is RUNNING then, since something may be in force. `worker` is NAMELESS
    where not even that can be read.
    """

    why: str
    blind: bool


class Beat(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An agent's heartbeat and acknowledgement: the stamp it holds and the state of every worker it knows.

    `counter` grows with each beat and over restarts, `latch` is the id of the latch that it keeps on disk, `leaving`
    says that the agent ends on purpose. `broker` and `controller` are the ids of the Kafka broker and of the KRaft
    controller that its node is, `attached` says that it acts on another network namespace than its own: then what cuts
    the node does not cut the agent. `trouble` says why no fault can hit the node now: it has lost what it acts on.
    `strays` are what looks like ours on the node and is in nobody's journal, a line each.
    """

    node: str
    journal: str
    counter: Number
    stamp: Stamp | None = None
    reports: tuple[Report, ...] = ()
    addresses: tuple[str, ...] = ()
    version: str = ""
    pid: Number = 0
    clash: Stamp | None = None
    latch: str = ""
    leaving: bool = False
    broker: Number | None = None
    controller: Number | None = None
    attached: bool = False
    trouble: str = ""
    strays: tuple[str, ...] = ()


# --- requests of clients, and their replies ---------------------------------------------------------------------------


class Request(Message, frozen=True, kw_only=True, tag_field="request"):
    """The base of what a client asks of the coordinator."""


class PagedRequest(Request, frozen=True, kw_only=True):
    """The base of what asks for rows: one page of about `most_bytes`, 0 for all in one; `after` as `Reply.more` told.

    A coordinator of a version without pages answers with all in one.
    """

    after: str = ""
    most_bytes: Number = 0


class CreateTask(Request, frozen=True, kw_only=True, tag="create"):
    """Create a task; the same id with the same spec is the same task.

    `allow` are the names of the rules of the data guard that it may break, `own_topics` those topics whose loss breaks
    none.
    """

    id: str
    spec: msgspec.Raw
    force: bool = False
    allow: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()


class ValidateSpec(Request, frozen=True, kw_only=True, tag="validate"):
    """Check a spec against the classes and the cluster; the reply is a Plan. `allow`, `own_topics` as in CreateTask.

    `brief`: without what each node would do, which may be much.
    """

    spec: msgspec.Raw
    force: bool = False
    allow: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()
    brief: bool = False


class StopTask(Request, frozen=True, kw_only=True, tag="stop"):
    """Stop a task."""

    id: str


class DestroyTask(Request, frozen=True, kw_only=True, tag="destroy"):
    """Stop a task on its agents and forget it; the reply is a Destroyed. An unknown id is no error."""

    id: str


class ShowTask(PagedRequest, frozen=True, kw_only=True, tag="show"):
    """Ask for one task; each page is a TaskInfo with the next of its workers."""

    id: str


class ListTasks(PagedRequest, frozen=True, kw_only=True, tag="tasks"):
    """Ask for tasks; filters as Trogdor's (0 or less = off, all are ANDed).

    A page may end in the middle of a task's workers: the next one then begins with the same task and the others.
    """

    ids: tuple[str, ...] = ()
    state: str = ""
    first_start_ms: Number = 0
    last_start_ms: Number = 0
    first_end_ms: Number = 0
    last_end_ms: Number = 0


class ListNodes(PagedRequest, frozen=True, kw_only=True, tag="nodes"):
    """Ask for the nodes."""


class AskView(PagedRequest, frozen=True, kw_only=True, tag="view"):
    """Ask for all that a monitor shows; each page is a ViewPage, as ListTasks may divide a task."""


class AskStatus(Request, frozen=True, kw_only=True, tag="status"):
    """Ask when the coordinator started and what it is (status and uptime)."""


class Abort(Request, frozen=True, kw_only=True, tag="abort"):
    """End everything, on one node or ("") on all, and let nothing start until `Resume`; the reply is a Latch.

    `latch` is a new id that the client made, so that asking twice is asking once.
    """

    latch: str
    node: str = ""


class Resume(Request, frozen=True, kw_only=True, tag="resume"):
    """Let faults start again, on one node or ("") on all; the reply are the nodes that were latched."""

    node: str = ""


class AskProof(PagedRequest, frozen=True, kw_only=True, tag="proof"):
    """Ask how far an abort is, on one node or ("") on all; the reply is a Proof. `latch` is the id of the abort."""

    latch: str
    node: str = ""


class ForgetNode(Request, frozen=True, kw_only=True, tag="forget"):
    """Forget a node whose agent is gone, or with `force` what a former agent of it may hold; the reply is a Forgotten.

    `force` also gives up what the node may hold.
    """

    node: str
    force: bool = False


class GetExperiment(Request, frozen=True, kw_only=True, tag="experiment"):
    """Ask how an experiment goes: the lines numbered above `after`, and `with_result` its result once it has ended."""

    id: str
    after: Number = 0
    with_result: bool = False


class Shutdown(Request, frozen=True, kw_only=True, tag="shutdown"):
    """Ask the coordinator to end; faults go on to their deadlines."""


AnyRequest = (
    CreateTask
    | ValidateSpec
    | StopTask
    | DestroyTask
    | ShowTask
    | ListTasks
    | ListNodes
    | AskView
    | AskStatus
    | Abort
    | Resume
    | AskProof
    | ForgetNode
    | GetExperiment
    | Shutdown
)

CHANGES = (CreateTask, StopTask, DestroyTask, Abort, Resume, ForgetNode)
"""The requests that change what the coordinator keeps."""


class NodeRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the coordinator knows of one node. `heard_ms` is epoch ms on its own clock, -1 for never.

    `left`: its agent said that it ends, with everything undone. `latch` is the id of the latch that its agent keeps,
    `at_rest` whether that agent holds no fault any more (told only under a latch), `dirty` what is stuck there, each
    with what a person would type. `broker` is the id of the Kafka broker that the node is, None if none is known;
    `controller` that of the KRaft controller, by configuration or agent.
    `links` tells, where an agent has several, which of them are alive. `unproven` is what a journal that is not heard
    may still hold there, `strays` what nobody's journal tells of, a line each.
    """

    name: str
    configured: bool = False
    alive: bool = False
    journal: str = ""
    heard_ms: Number = -1
    addresses: tuple[str, ...] = ()
    hostname: str = ""
    tags: tuple[str, ...] = ()
    version: str = ""
    note: str = ""
    left: bool = False
    latch: str = ""
    at_rest: bool = False
    dirty: tuple[str, ...] = ()
    broker: int | None = None
    controller: int | None = None
    links: dict[str, bool] = {}
    unproven: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One task with its workers."""

    task: TaskRow
    workers: tuple[WorkerRow, ...] = ()


class ExperimentProgress(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far an experiment is. `phase` is what it does now, `topic` its stream's topic, "" while there is none.

    The counts are of records; `gap_ms` is how long nothing has been delivered on the partition that is silent longest.
    """

    phase: str = ""
    topic: str = ""
    sent: Number = 0
    acked: Number = 0
    indeterminate: Number = 0
    failed: Number = 0
    delivered: Number = 0
    gap_ms: Number = 0
    faults: Number = 0


class ToldLine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line of what an experiment tells; `at_ms` is epoch ms on the coordinator's clock."""

    number: Number
    at_ms: Number
    text: str


class ExperimentInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An experiment as the coordinator knows it: its task, how far it is, its newest lines (old ones are forgotten).

    `verdict` is "" while there is none, `result` the JSON of its Result, or null.
    """

    task: TaskRow
    progress: ExperimentProgress = ExperimentProgress()
    lines: tuple[ToldLine, ...] = ()
    verdict: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


class NodePlan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one node would do: pairs of do and undo as text, addresses left out and why."""

    node: str
    alive: bool = False
    steps: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a spec would do to the cluster; `spec` as it goes on the wire, with nodes in place of roles.

    `holders` are those who hold the roles now, as in a TaskRow, with the `seed` of this answer; `losses` is what the
    Kafka cluster would lose, a line each. `chosen` are lines that say who it is, of a version that told no `holders`.
    """

    spec: msgspec.Raw
    nodes: tuple[NodePlan, ...] = ()
    warnings: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    holders: tuple[Chosen, ...] = ()
    seed: int | None = None
    losses: tuple[str, ...] = ()

    @property
    def why(self) -> tuple[str, ...]:
        """Return who holds the roles now, a line each for people."""
        return tuple(one.why for one in self.holders) or self.chosen


class Latch(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An abort: its id, its node ("" for all), and the lease (ms) after which a silent agent has ended its faults."""

    id: str
    node: str = ""
    lease_ms: Number = 0


class NodeProof(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is proven of one node under an abort.

    `state` is "ended" (it holds nothing and starts nothing), "stuck" (so too, but an undo is stuck), "waiting",
    "silent" or "unproven" (somebody who does not speak may have left something). The rest is as in NodeRow, cut where
    it is long.
    """

    node: str
    state: str
    dirty: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Return whether something may be left of which nobody can tell."""
        return bool(self.unproven or self.strays)


class Proof(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far an abort is: the nodes that were heard, may hold something or were asked for, by name.

    `listening`: this coordinator has just begun, and does not know yet who is there. Nothing is proven by it.
    """

    nodes: tuple[NodeProof, ...] = ()
    listening: bool = False


class Destroyed(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What came of destroying a task: whether there was one, and which nodes have not proven yet that it ended there.

    `waiting` are those whose agents are heard, `unheard` the others.
    """

    known: bool
    waiting: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()


class Forgotten(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What came of forgetting a node: what was given up with it, and whether the node itself is `gone`."""

    node: str
    given_up: tuple[str, ...] = ()
    gone: bool = True


class CoordinatorStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """When the coordinator started, its own time (epoch ms), and its stamp.

    `replicated`: the log holds everything, else not since `behind_ms` (epoch ms); both absent without a log.
    `trouble`, absent if there is none, is why it takes and starts no task.
    """

    server_start_ms: Number
    now_ms: Number
    epoch: Number = 0
    coordinator: str = ""
    version: str = ""
    listening: bool = False
    replicated: bool | msgspec.UnsetType = msgspec.UNSET
    behind_ms: Number | msgspec.UnsetType = msgspec.UNSET
    trouble: str | msgspec.UnsetType = msgspec.UNSET


class Reply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a request: `result` (the JSON of the request's result type), or `error` (an error class name).

    `remedies` are those that the text of an error names. `replicated` says of what changes something whether the log
    has it; None without a log, and for questions. `more`, "" if this was the last page, is where the next one begins.
    """

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    message: str = ""
    path: str = "$"
    remedy: str = ""
    remedies: tuple[Remedy, ...] = ()
    replicated: bool | None = None
    more: str = ""

    @classmethod
    def refusing(cls, error: TrogdorBusError) -> Self:
        """Return the reply that is this error; `client` raises it again."""
        if isinstance(error, SpecError):
            told = cls(error=SpecError.__name__, message=error.message, path=error.path, remedy=error.remedy)
        else:
            told = cls(error=type(error).__name__, message=str(error))
        return msgspec.structs.replace(told, remedies=error.remedies)


# --- the monitor stream -----------------------------------------------------------------------------------------------


class Event(Message, frozen=True, kw_only=True, tag_field="event", omit_defaults=False, rename="camel"):
    """One change, numbered; the rows are whole, so that an event can be lost or doubled without harm.

    `at_ms` is epoch ms on the coordinator's clock, `text` one line for people.
    """

    seq: Number
    at_ms: Number
    text: str = ""


class TaskChanged(Event, frozen=True, kw_only=True, tag="task"):
    """A task was created or changed.

    `same_specs` True: `original` and `spec` of its row, which may be large, are those told before, and are left out.
    """

    task: TaskRow
    same_specs: bool | msgspec.UnsetType = msgspec.UNSET


class TaskGone(Event, frozen=True, kw_only=True, tag="task-gone"):
    """A task was destroyed, or pruned long after its end."""

    id: str


class WorkerChanged(Event, frozen=True, kw_only=True, tag="worker"):
    """A worker was addressed, or its agent said something new."""

    task_id: str
    worker: WorkerRow


class NodeChanged(Event, frozen=True, kw_only=True, tag="node"):
    """A node appeared, fell silent, came back, or was replaced."""

    node: NodeRow


class NodeGone(Event, frozen=True, kw_only=True, tag="node-gone"):
    """A node was forgotten."""

    name: str


class Noted(Event, frozen=True, kw_only=True, tag="note"):
    """Something that people should know, with no row of its own."""


AnyEvent = TaskChanged | TaskGone | WorkerChanged | NodeChanged | NodeGone | Noted


class Pulse(Message, frozen=True, kw_only=True, omit_defaults=False, rename="camel"):
    """What the coordinator says each beat: that it is there, the number of its newest event, the digest of its view.

    `digest` is that of `view.Versions`, "" from a coordinator that sends whole WorldViews instead.
    """

    seq: Number
    at_ms: Number
    status: CoordinatorStatus
    digest: str = ""


class ViewPage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Some rows of a view, each as it was at event `seq`; those of later pages may be newer.

    `seqs` are the versions of the rows that the digest counts, by their keys in `view.Versions`. Whoever applies all
    events after the first page's `seq` to all pages has the whole view.
    """

    seq: Number
    at_ms: Number
    status: CoordinatorStatus
    nodes: tuple[NodeRow, ...] = ()
    tasks: tuple[TaskInfo, ...] = ()
    seqs: dict[str, Number] = {}


class WorldView(Message, frozen=True, kw_only=True, omit_defaults=False, rename="camel"):
    """The whole view of a monitor, as of event `seq`; no frame."""

    seq: Number
    at_ms: Number
    status: CoordinatorStatus
    nodes: tuple[NodeRow, ...] = ()
    tasks: tuple[TaskInfo, ...] = ()


EVENT_TOPIC = "event/"
VIEW_TOPIC = "view/"


def encode(message: Any) -> bytes:
    """Return the frame of a message."""
    return msgspec.json.encode(message)


def decode(frame: bytes, kind: Any) -> Any:
    """Return the message in `frame`; BusError if it is no such message, VersionError if of another version.

    Of a worker's part that cannot be read there is an UnreadOrder, an UnreadReport, or a row that says so; of an event
    its text, as a Noted.
    """
    try:
        message = _read(frame, kind)
    except (BusError, *late.UNREADABLE) as error:
        _check_version(stranger(frame).v, kind)
        raise BusError(f"not a frame of ours: {shown(str(error))}") from None
    _check_version(message.v, kind)
    return message


def _read(frame: bytes, kind: Any) -> Any:
    if kind is Snapshot:
        return _snapshot(frame)
    try:
        return _decoder(kind).decode(frame)
    except late.UNREADABLE:
        if kind not in _LATE or stranger(frame).v != VERSION:
            raise
        return _LATE[kind](frame)


def read_rows(raw: bytes | msgspec.Raw, kind: Any) -> Any:
    """Return an answer: a ViewPage, a TaskInfo, or a tuple of TaskInfo or of NodeRow; BusError if it is none."""
    if kind is ViewPage:
        return _view_page(msgspec.Raw(raw))
    if kind is TaskInfo:
        return _task_info(msgspec.Raw(raw))
    if kind in (tuple[TaskInfo, ...], tuple[NodeRow, ...]):
        one = _task_info if kind == tuple[TaskInfo, ...] else _node_row
        try:
            return tuple(map(one, late.parts(msgspec.Raw(raw))))
        except late.UNREADABLE as error:
            raise BusError(shown(str(error))) from None
    raise BusError("it is none that this version knows")


class Stranger(msgspec.Struct, frozen=True):
    """What is read of a frame whatever its version: that one, and of a beat whose it is."""

    v: int = VERSION
    node: str = ""
    journal: str = ""
    version: str = ""


def stranger(frame: bytes) -> Stranger:
    """Return who sent a frame of another version, as far as it tells."""
    try:
        return _decoder(Stranger).decode(frame)  # type: ignore[no-any-return]
    except late.UNREADABLE:
        return Stranger()


_UPGRADE = "upgrade this trogdor-bus"
_SPEAKERS = {
    Snapshot: ("the coordinator", "this agent"),
    Beat: ("the agent", "this coordinator"),
    AnyRequest: ("the client", "this coordinator"),
}
_IN_ORDERS = frozenset(Order.__struct_fields__) - {"worker", "task", "journal"}
_IN_REPORTS = frozenset(Report.__struct_fields__) - {"worker", "task"}


def _check_version(version: int, kind: Any) -> None:
    if version != VERSION:
        peer, reader = _SPEAKERS.get(kind, ("the coordinator", "this trogdor-bus"))
        raise VersionError(
            f"{peer} speaks version {version} of the protocol, {reader} version {VERSION}: "
            f"upgrade {peer if version < VERSION else reader}"
        )


def _snapshot(frame: bytes) -> Snapshot:
    found = late.read(frame, Snapshot, (), {"orders": lambda raw: tuple(map(_order, late.parts(raw)))})
    return Snapshot(**found.known)


def _order(raw: msgspec.Raw) -> Order:
    try:
        found = late.read(raw, Order, _IN_ORDERS, {"actions": _actions})
    except BusError as error:
        return UnreadOrder(worker=0, task="", journal="", remaining_ms=0, why=str(error))
    if not found.unread:
        return Order(**found.known)
    unread: dict[str, Any] = {"remaining_ms": 0, **({"actions": ()} if "actions" in found.unread else {})}
    return UnreadOrder(**{**unread, **found.known}, why=found.words())


def _actions(raw: msgspec.Raw) -> tuple[Action, ...] | None:
    return None if bytes(raw) == b"null" else tuple(map(decode_action, late.parts(raw)))


def _beat(frame: bytes) -> Beat:
    found = late.read(frame, Beat, (), {"reports": lambda raw: tuple(map(_report, late.parts(raw)))})
    return Beat(**found.known)


def _report(raw: msgspec.Raw) -> Report:
    try:
        found = late.read(raw, Report, _IN_REPORTS)
    except BusError as error:
        return UnreadReport(worker=NAMELESS, task="?", state=WorkerState.RUNNING, why=str(error), blind=True)
    if not found.unread:
        return Report(**found.known)
    known = {"state": WorkerState.RUNNING, **found.known}
    return UnreadReport(**known, why=found.words(), blind="state" in found.unread)


def _view_page(raw: msgspec.Raw) -> ViewPage:
    readers = {"nodes": lambda raw: read_rows(raw, tuple[NodeRow, ...])}
    readers["tasks"] = lambda raw: read_rows(raw, tuple[TaskInfo, ...])
    return ViewPage(**late.read(raw, ViewPage, (), readers).known)


def _event(frame: bytes) -> Noted:
    return Noted(**late.read(frame, Noted, ()).known)


def _task_info(raw: msgspec.Raw) -> TaskInfo:
    def workers(raw: msgspec.Raw) -> tuple[WorkerRow, ...]:
        return tuple(late.worker_row(one, _UPGRADE) for one in late.parts(raw))

    found = late.read(raw, TaskInfo, (), {"task": lambda raw: late.task_row(raw, _UPGRADE)[0], "workers": workers})
    return TaskInfo(**found.known)


def _node_row(raw: msgspec.Raw) -> NodeRow:
    found = late.read(raw, NodeRow, frozenset(NodeRow.__struct_fields__) - {"name"})
    why = f"cannot be read: {found.words()}; {_UPGRADE}" if found.unread else ""
    row = NodeRow(**found.known)
    return msgspec.structs.replace(row, note="; ".join(filter(None, (row.note, why))))


_LATE: dict[Any, Any] = {Beat: _beat, AnyEvent: _event}
"""How a frame is read that cannot be read at once."""


def is_readable(told: msgspec.Raw) -> bool:
    """Return whether JSON that a message carries as it is can be read by everybody."""
    try:
        return not flaw(msgspec.json.decode(told))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
