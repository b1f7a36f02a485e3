"""The client that everybody uses: asks a coordinator, gives back Structs, raises our errors."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from trogdor_bus import errors, late
from trogdor_bus.bus import ClientBus
from trogdor_bus.errors import BusError, NoCoordinatorError, SpecError, TrogdorBusError
from trogdor_bus.messages import (
    CHANGES,
    Abort,
    AskProof,
    AskStatus,
    AskView,
    CoordinatorStatus,
    CreateTask,
    Destroyed,
    DestroyTask,
    ExperimentInfo,
    ForgetNode,
    Forgotten,
    GetExperiment,
    Latch,
    ListNodes,
    ListTasks,
    NodeRow,
    PagedRequest,
    Plan,
    Proof,
    Reply,
    Request,
    Resume,
    ShowTask,
    Shutdown,
    StopTask,
    TaskInfo,
    ValidateSpec,
    ViewPage,
    decode,
    encode,
    read_rows,
)
from trogdor_bus.names import shown
from trogdor_bus.states import TaskState

TIMEOUT_S = 3.0
PAGE_BYTES = 1 << 20
"""How large the pages of a list are that it asks for."""
LOOK_TIMEOUT_S = 15.0
"""As long waits who asks what the coordinator must look at a Kafka cluster for."""
POLL_S = 0.2
CREATE_S, SILENCE_S = 20.0, 60.0
"""How long nobody may answer who creates a task, and who waits for its end.

A bus on Kafka alone is silent while a new leader is found, and the new task may be the reason.
"""

_T = TypeVar("_T")
_PLAIN_ERRORS: dict[str, type[TrogdorBusError]] = {
    cls.__name__: cls
    for cls in (
        errors.ConflictError,
        errors.NotFoundError,
        errors.RefusedError,
        errors.NotNowError,
        errors.BusError,
        errors.VersionError,
        errors.HostError,
        errors.CannotHealError,
        errors.FencedError,
    )
}


def new_id(alias: str) -> str:
    """Return a fresh task id that people can read, such as "partition-7f3a9c"."""
    return f"{alias}-{secrets.token_hex(3)}"


class Client:
    """Asks the coordinator at the other end of `bus`; `where` is how messages call it. Use it as `async with`.

    Every method raises NoCoordinatorError if nobody answers within `timeout_s`, and whatever error the coordinator
    answers with. `replicated` tells of the last change whether the coordinator's log has it, None if there is no log.
    """

    replicated: bool | None = None

    def __init__(self, bus: ClientBus, where: str, timeout_s: float = TIMEOUT_S) -> None:
        self._bus, self._where, self._timeout_s = bus, where, timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.close()

    async def create(
        self,
        id: str,
        spec: bytes,
        force: bool = False,
        *,
        allow: Sequence[str] = (),
        own_topics: Sequence[str] = (),
        silence_s: float = CREATE_S,
    ) -> TaskInfo:
        """Create a task from the JSON of a spec and return it; the same id with the same spec is the same task.

        `allow` and `own_topics` as in `CreateTask`. Asks again for `silence_s`. NoCoordinatorError then means: the task
        may or may not exist.
        """
        request = CreateTask(
            id=id, spec=msgspec.Raw(spec), force=force, allow=tuple(allow), own_topics=tuple(own_topics)
        )
        first = await self._patiently(lambda: self._answer(request), silence_s)
        return _whole_task(await self._pages(ShowTask(id=id), TaskInfo, first))

    async def validate(
        self, spec: bytes, force: bool = False, *, allow: Sequence[str] = (), looks: bool = False, brief: bool = False
    ) -> Plan:
        """Return what the spec would do to the cluster; SpecError or RefusedError if it cannot be done.

        `looks`: it concerns a Kafka cluster, which the coordinator must look at for the answer. `brief` as in
        `ValidateSpec`.
        """
        request = ValidateSpec(spec=msgspec.Raw(spec), force=force, allow=tuple(allow), brief=brief)
        return await self._ask(request, Plan, max(self._timeout_s, LOOK_TIMEOUT_S) if looks else self._timeout_s)

    async def stop(self, id: str) -> None:
        """Ask for the end of a task; done when its state is DONE."""
        await self._answer(StopTask(id=id))

    async def destroy(self, id: str) -> Destroyed | None:
        """Stop a task on its agents and forget it; return what is proven, None if the coordinator cannot tell.

        Asked again, it tells what is still not proven.
        """
        reply = await self._answer(DestroyTask(id=id))
        return None if bytes(reply.result) == b"null" else self._read(reply, Destroyed)

    async def show(self, id: str) -> TaskInfo:
        """Return one task with its workers; NotFoundError if there is none."""
        return _whole_task(await self._pages(ShowTask(id=id), TaskInfo))

    async def experiment(
        self, id: str, after: int = 0, with_result: bool = False, silence_s: float = 0.0
    ) -> ExperimentInfo:
        """Return how an experiment goes: its lines numbered above `after`, and if wanted its result, once there is one.

        NotFoundError if there is no experiment of that id. It is asked again for `silence_s` without an answer.
        """
        request = GetExperiment(id=id, after=after, with_result=with_result)
        return await self._patiently(lambda: self._ask(request, ExperimentInfo), silence_s)

    async def tasks(self, query: ListTasks | None = None) -> tuple[TaskInfo, ...]:
        """Return the tasks that match, by id; all without a query."""
        return _whole_tasks(chain(*await self._pages(query or ListTasks(), tuple[TaskInfo, ...])))

    async def nodes(self) -> tuple[NodeRow, ...]:
        """Return the nodes, by name."""
        return tuple(chain(*await self._pages(ListNodes(), tuple[NodeRow, ...])))

    async def view(self) -> list[ViewPage]:
        """Return all that a monitor shows, in pages; BusError from a coordinator of a version that sends it whole."""
        return await self._pages(AskView(), ViewPage)

    async def status(self, silence_s: float = 0.0) -> CoordinatorStatus:
        """Return when the coordinator started, and what it is; it is asked again for `silence_s` without an answer."""
        return await self._patiently(lambda: self._ask(AskStatus(), CoordinatorStatus), silence_s)

    async def abort(self, latch: str, node: str = "") -> Latch:
        """End everything on a node, or ("") on all, and let nothing start until `resume`; the latch that is in force.

        `latch` is a new id; asking again with it is harmless. `proof` tells how far it is.
        """
        return await self._ask(Abort(latch=latch, node=node), Latch)

    async def proof(self, latch: str, node: str = "") -> Proof:
        """Return what is proven under an abort, of one node or ("") of all; `latch` as `abort` returned it."""
        found = await self._pages(AskProof(latch=latch, node=node), Proof)
        listening = any(page.listening for page in found)
        return Proof(nodes=tuple(chain(*(page.nodes for page in found))), listening=listening)

    async def forget(self, node: str, force: bool = False) -> Forgotten:
        """Forget a node whose agent is gone; RefusedError if it is alive or may hold something, unless `force`."""
        return await self._ask(ForgetNode(node=node, force=force), Forgotten)

    async def resume(self, node: str = "") -> tuple[str, ...]:
        """Let faults start again on a node, or ("") on all; return the nodes that were aborted."""
        return await self._ask(Resume(node=node), tuple[str, ...])

    async def shutdown(self) -> None:
        """Ask the coordinator to end; faults go on to their deadlines."""
        await self._answer(Shutdown())

    async def wait(
        self, id: str, on_change: Callable[[TaskInfo], None] = lambda info: None, silence_s: float = SILENCE_S
    ) -> TaskInfo:
        """Return the task once it is DONE, calling `on_change` with each new state of it on the way.

        NoCoordinatorError after `silence_s` without an answer: the outcome is then unknown.
        """
        last: TaskInfo | None = None
        while True:
            info = await self._patiently(lambda: self.show(id), silence_s)
            if info != last:
                on_change(info)
                last = info
            if info.task.state is TaskState.DONE:
                return info
            await asyncio.sleep(POLL_S)

    async def _patiently(self, ask: Callable[[], Awaitable[_T]], silence_s: float) -> _T:
        began = time.monotonic()
        while True:
            try:
                return await ask()
            except NoCoordinatorError:
                if time.monotonic() - began > silence_s:
                    raise

    async def _pages(self, request: PagedRequest, kind: type[_T], first: Reply | None = None) -> list[_T]:
        """Return all pages of an answer, at least one; `first` is the reply with the first one, if it is there."""
        request = msgspec.structs.replace(request, most_bytes=PAGE_BYTES)
        reply = first or await self._answer(request)
        found, marks = [self._read(reply, kind)], set[str]()
        while reply.more:
            if reply.more in marks:
                raise BusError(f"the answer of {self._where} does not end: its pages begin again")
            marks.add(reply.more)
            reply = await self._answer(msgspec.structs.replace(request, after=reply.more))
            found.append(self._read(reply, kind))
        return found

    async def _ask(self, request: Request, kind: type[_T], timeout_s: float | None = None) -> _T:
        return self._read(await self._answer(request, timeout_s), kind)

    def _read(self, reply: Reply, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(reply.result, type=kind)
        except late.UNREADABLE as error:
            try:
                return read_rows(reply.result, kind)  # type: ignore[no-any-return]
            except BusError:
                raise BusError(
                    f"cannot read the answer of {self._where}: {shown(str(error))}; upgrade this trogdor-bus"
                ) from None

    async def _answer(self, request: Request, timeout_s: float | None = None) -> Reply:
        frame = await self._bus.request(encode(request), timeout_s or self._timeout_s)
        reply: Reply = decode(frame, Reply)
        if reply.error:
            raise _raised(reply)
        if isinstance(request, CHANGES):
            self.replicated = reply.replicated
        return reply


def _whole_tasks(parts: Iterable[TaskInfo]) -> tuple[TaskInfo, ...]:
    """Return tasks of which one may come in several parts, each with some of its workers; the newest row counts."""
    found: dict[str, list[TaskInfo]] = {}
    for part in parts:
        found.setdefault(part.task.id, []).append(part)
    return tuple(_whole_task(parts) for parts in found.values())


def _whole_task(parts: Sequence[TaskInfo]) -> TaskInfo:
    return TaskInfo(task=parts[-1].task, workers=tuple(chain(*(part.workers for part in parts))))


def _raised(reply: Reply) -> TrogdorBusError:
    if reply.error == SpecError.__name__:
        return SpecError(reply.message, path=reply.path, remedy=reply.remedy)
    return _PLAIN_ERRORS.get(reply.error, TrogdorBusError)(reply.message)
