"""The faults of an experiment, one after the other: fired, proven, undone, and recovered from."""

from __future__ import annotations

import asyncio
import random
import secrets

import msgspec

from trogdor_bus.cluster import ClusterView
from trogdor_bus.errors import HostError, NoCoordinatorError, TrogdorBusError
from trogdor_bus.experiment.around import Around
from trogdor_bus.experiment.evidence import NOTICED_MS, Hit, look, new_leader_ms, targets
from trogdor_bus.experiment.result import UNKNOWN, FaultWindow
from trogdor_bus.messages import TaskInfo
from trogdor_bus.remedies import Remedy
from trogdor_bus.roles import Chosen, Places, is_role, parse, resolve
from trogdor_bus.states import Outcome, TaskState

POLL_S = 0.1
AGAIN_S = 0.3
LATE_MS = 90_000
"""How much later than its duration a fault must have ended: its order, lease, and the agent's own deadline."""


class Chaos:
    """`windows` are the faults so far. `session_ms`: after what time the cluster misses a broker, or UNKNOWN.

    `seed` is the number by which it chooses when to fire, and whom of `eachOf`.
    """

    def __init__(self, around: Around, session_ms: int, seed: int | None = None) -> None:
        self.windows: list[FaultWindow] = []
        self.seed = secrets.randbits(53) if seed is None else seed
        self._around, self._session_ms = around, session_ms
        self._random = random.Random(self.seed)  # noqa: S311 (no secret)

    async def run(self) -> None:
        """Fire until the time is over, the cluster does not recover, or a fault fails."""
        around, spec = self._around, self._around.spec
        end_ms = around.clock.now_ms() + spec.chaos_ms
        if problems := await self._await_whole(around.clock.now_ms() + spec.recovery_ms):
            raise HostError(f"the cluster is not whole, and nothing is fired at it: {'; '.join(problems)}")
        if spec.each_of:
            await self._round(end_ms)
            return
        while not spec.max_faults or len(self.windows) < spec.max_faults:
            began_ms = around.clock.now_ms()
            await self._one(len(self.windows) + 1)
            if self.windows[-1].error or self.windows[-1].missed:
                return
            next_ms = began_ms + self._random.randint(spec.interval_ms, max(spec.interval_ms, spec.interval_max_ms))
            if next_ms >= end_ms:
                break
            await around.pause_until(next_ms)
            if around.clock.now_ms() >= end_ms:
                break
        await around.pause_until(end_ms)

    async def stop(self, within_s: float) -> str:
        """Stop the fault that may still be in force, and return "" once it is undone, or why that is not known."""
        if not self.windows or self.windows[-1].end_ms != UNKNOWN:
            return ""
        window = self.windows[-1]
        task_id, client = window.task_id, self._around.client
        try:
            async with asyncio.timeout(within_s):
                await client.stop(task_id)
                info = await client.wait(task_id)
        except (TimeoutError, TrogdorBusError) as error:
            why = str(error) or f"it did not end within {within_s:g} s"
            return f"nobody can tell that task {task_id} is undone: {why}"
        self._put(end_ms=_undone_ms(info))
        return ""

    async def _round(self, end_ms: int) -> None:
        """Fire at each of those whom the spec names; HostError if the time is over before."""
        around = self._around
        left = self._each(await around.watch.whole())
        around.say(f"each of {', '.join(left)} is hit, the active controller's last")
        while left:
            if around.clock.now_ms() >= end_ms:
                raise HostError(f"chaosMs = {around.spec.chaos_ms} ms are over, and {', '.join(left)} was not hit yet")
            view = await around.watch.whole()
            active = (around.controllers if view.quorum else around.brokers).get(view.controller)
            node = next((one for one in left if one != active), left[0])
            await self._one(len(self.windows) + 1, node)
            if self.windows[-1].error or self.windows[-1].missed:
                return
            left.remove(node)

    def _each(self, view: ClusterView) -> list[str]:
        """Return the nodes that are to be hit, each once; SpecError, or RefusedError, if a role is nobody's."""
        places = Places(self._around.brokers, self._around.controllers)
        known = {*places.brokers.values(), *places.controllers.values()}
        found: dict[str, None] = {}
        for index, name in enumerate(self._around.spec.each_of):
            role = parse(name, f"$.eachOf[{index}]") if is_role(name, known) else None
            seed = self._random.getrandbits(53)
            nodes = [one.node for one in resolve(role, view, places, seed)] if role else [name]
            found.update(dict.fromkeys(nodes))
        return list(found)

    async def _one(self, number: int, node: str = "") -> None:
        around, task_id = self._around, f"{self._around.id}-f{number}"
        window = FaultWindow(number=number, start_ms=around.clock.now_ms(), task_id=task_id)
        self.windows.append(window)
        try:
            info = await self._performed(task_id, node)
        except TrogdorBusError as error:
            self._put(end_ms=around.clock.now_ms(), error=f"it was not performed: {error}")
            return
        if info.task.started_ms < 0:
            self._put(end_ms=info.task.done_ms, error=f"it was not performed: {info.task.error}")
            return
        window = self._put(start_ms=info.task.started_ms, end_ms=_undone_ms(info))
        if info.task.outcome is not Outcome.DONE:
            self._put(error=info.task.error or f"its task ended: {info.task.outcome}")
            return
        around.say(f"fault {number} is undone, after {window.end_ms - window.start_ms} ms")
        await self._settle(info)

    async def _performed(self, task_id: str, node: str) -> TaskInfo:
        """Return the task of a fault when it has ended; HostError if it does not."""
        around, spec = self._around, self._around.spec
        fault = msgspec.json.encode(spec.fault_on(around.topic, node))
        own = (around.topic,) if around.topic else ()
        info = await around.client.create(task_id, fault, allow=spec.allow, own_topics=own)
        deadline_ms = around.clock.now_ms() + spec.fault_spec().duration_ms + LATE_MS
        told = False
        while info.task.state is not TaskState.DONE:
            if around.clock.now_ms() > deadline_ms:
                raise HostError(
                    f"task {task_id} has not ended: it is {info.task.state}; `{Remedy('show', {'id': task_id})}`"
                )
            if info.task.started_ms >= 0 and not told:
                told = True
                self._tell(info)
            await asyncio.sleep(POLL_S)
            try:
                info = await around.client.show(task_id)
            except NoCoordinatorError:
                continue
        if not told and info.task.started_ms >= 0:
            self._tell(info)
        return info

    def _tell(self, info: TaskInfo) -> None:
        """Note, and tell, whom a fault hits."""
        window, who = self.windows[-1], self._targets(info)
        nodes = ", ".join(row.node for row in info.workers)
        target = ", ".join(f"{one.who} ({one.node})" for one in who) or nodes
        self._put(start_ms=info.task.started_ms, target=target, line="; ".join(info.task.why))
        self._put(holders=info.task.holders, seed=info.task.seed)
        why = f": {'; '.join(info.task.why)}" if info.task.why else ""
        self._around.say(f"fault {window.number} hits {target}{why}")

    async def _settle(self, info: TaskInfo) -> None:
        """Wait for the proof that a fault took effect, then until the cluster is whole again."""
        around, window = self._around, self.windows[-1]
        who = self._targets(info)
        hit = Hit(
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            targets=who,
            workers=info.workers,
            session_ms=self._session_ms,
        )
        wanted = around.spec.evidence_wanted()
        recovery_ms = window.end_ms + around.spec.recovery_ms
        noticed_ms = min(recovery_ms, window.end_ms + max(0, self._session_ms) + 2 * NOTICED_MS)
        while not all(one.held for one in look(wanted, hit, around.watch.history)):
            if around.clock.now_ms() > noticed_ms:
                break
            await asyncio.sleep(AGAIN_S)
        problems = await self._await_whole(recovery_ms, tuple(one.id for one in hit.brokers))
        now_ms = around.clock.now_ms()
        found = look(wanted, hit, around.watch.history)
        seen = all(one.held for one in found)
        took_ms = new_leader_ms(hit, around.watch.history)
        self._put(
            evidence=found,
            new_leader_ms=took_ms,
            recovered_ms=now_ms - window.end_ms if seen and not problems else UNKNOWN,
            missed="; ".join(problems),
        )
        for one in found:
            around.say(f"fault {window.number}: {one.kind}: {'yes' if one.held else 'NO'}: {one.text}")
        leader = f"a new leader after {took_ms} ms; " if took_ms != UNKNOWN else ""
        again = f"not whole after {around.spec.recovery_ms} ms: {'; '.join(problems)}" if problems else "whole again"
        after = f" {now_ms - window.end_ms} ms after its end" if seen and not problems else ""
        around.say(f"fault {window.number}: {leader}the cluster is {again}{after}")

    async def _await_whole(self, deadline_ms: int, answering: tuple[int, ...] = ()) -> list[str]:
        """Return [] once the cluster is whole, or what is not at the deadline."""
        while problems := await self._around.lacking(answering):
            if self._around.clock.now_ms() > deadline_ms:
                return problems
            await asyncio.sleep(AGAIN_S)
        return []

    def _targets(self, info: TaskInfo) -> tuple[Chosen, ...]:
        nodes = [row.node for row in info.workers]
        brokers = {node: number for number, node in self._around.brokers.items()}
        controllers = {node: number for number, node in self._around.controllers.items()}
        return targets(info.task.holders, nodes, brokers, controllers)

    def _put(self, **fields: object) -> FaultWindow:
        """Replace the newest window."""
        self.windows[-1] = msgspec.structs.replace(self.windows[-1], **fields)
        return self.windows[-1]


def _undone_ms(info: TaskInfo) -> int:
    """Return when the last worker of a task was done, epoch ms."""
    return max([row.done_ms for row in info.workers if row.done_ms >= 0], default=info.task.done_ms)
