"""The coordinator's task table: events in, changes and snapshots out, no clock, no socket, no database.

`handle(event, now_ms)` returns effects in the order in which they must happen: changes (to be stored) come before the
snapshots that rest on them. `deadline()` says when it must come back with `Ticked`. Times are epoch ms of a steady
clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import msgspec

from trogdor_bus.coordinator import adoption, doubts, events, forgetting, latches, owed, requests, unread
from trogdor_bus.coordinator.carrier import Carrier
from trogdor_bus.coordinator.changes import Loaded, Meta, PutMeta, leading
from trogdor_bus.coordinator.epochs import Epochs
from trogdor_bus.coordinator.events import Effect, Event, Exit, Publish, Sighting
from trogdor_bus.coordinator.fleet import Fleet, NodeState, came_back
from trogdor_bus.coordinator.latecomers import Latecomers
from trogdor_bus.coordinator.ledger import Ledger, decoded, ending, new_task, reported
from trogdor_bus.coordinator.moves import TABLE, Move
from trogdor_bus.coordinator.orders import snapshot_of
from trogdor_bus.coordinator.orphans import Orphans
from trogdor_bus.coordinator.place import Limits, Place
from trogdor_bus.coordinator.planner import Planned, Planner, Terms
from trogdor_bus.coordinator.scout import Scout
from trogdor_bus.coordinator.trials import RESTARTED, Trials
from trogdor_bus.coordinator.turn import Turn
from trogdor_bus.coordinator.weighing import weigh
from trogdor_bus.errors import InvalidTransitionError, SpecError, TrogdorBusError
from trogdor_bus.messages import Beat, Report, Stamp, UnreadReport
from trogdor_bus.shell import UnforeseenError
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome, TaskRow, TaskState, WorkerRow, WorkerState


class CoordinatorMachine:
    """The pure task table. `orphans` says what an empty store does with live workers: refuse, adopt or abort.

    It leads in an epoch above `above`, and above all that it has stored or heard. `barred` is why no task is taken or
    started in this life, "" if they are. `about` is the task that is being handled, "" for none.
    """

    def __init__(
        self,
        loaded: Loaded,
        fleet: Fleet,
        place: Place,
        limits: Limits,
        now_ms: int,
        *,
        orphans: Literal["refuse", "adopt", "abort"] = "refuse",
        above: int = 0,
        barred: str = "",
    ) -> None:
        self.barred, self.about = barred, ""
        self.fleet, self.place, self.limits = fleet, place, limits
        self.epoch = loaded.meta.epoch
        self.listening, self.ended = True, False
        self.started_ms = now_ms
        self.taken: set[tuple[TaskState, Move]] = set()
        self._turn = turn = Turn(now_ms)
        self._ledger, self._carrier = Ledger(loaded, fleet, turn), Carrier(fleet, place, limits.lease_ms)
        self.planner, self._scout = Planner(fleet, place, self._carrier, self._ledger), Scout(fleet, place, turn)
        self.view = self._ledger.view
        self._trials = Trials(self.view, turn)
        self._meta, self._fresh, self._orphans = loaded.meta, loaded.fresh, orphans
        self._epochs = Epochs(loaded.meta.epoch, above)
        self._heard, self._begun = Orphans(), Orphans(ended=True)
        self._tick_ms = now_ms + limits.beat_ms
        self._late = Latecomers(now_ms + limits.lease_ms, self._scout.forget)
        doubts.begin(fleet, self._ledger, loaded.meta)

    # --- what the shell calls ---------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Return the effects of one event, in order; a request that is refused raises TrogdorBusError, nothing else."""
        if self.ended:
            return []
        requests.check(event, self._meta, self.fleet, self._ledger, self.barred)
        self._turn.begin(now_ms)
        self.about = ""
        try:
            self._apply(event)
            return self._effects()
        except TrogdorBusError as error:  # a refusal would say that nothing has changed
            raise UnforeseenError(f"{type(event).__name__} failed half-way") from error

    def _apply(self, event: Event) -> None:  # noqa: PLR0912 (one case per event)
        match event:
            case events.CreateRequested():
                self._create(event)
            case events.StopRequested(id=task_id):
                with self._at(task_id):
                    self._stop(task_id)
            case events.DestroyRequested(id=task_id):
                with self._at(task_id):
                    self._destroy(task_id)
            case events.AbortRequested(latch=latch, node=node):
                self._abort(latch, node)
            case events.ResumeRequested(node=node):
                self._resume(node)
            case events.ForgetRequested(node=node):
                self._forget_node(node)
            case events.BeatHeard(beat=beat):
                self._beat(beat)
            case events.HostsResolved() | events.LinksSeen() | events.StrangerHeard():
                for seen, text in self.fleet.see(event, self._now):
                    self._ledger.tell(seen, text)
                self._turn.answer |= self.fleet.unanswered()
            case events.BrokersSeen(brokers=brokers):
                self._carrier.see(brokers)
            case events.ExperimentEnded():
                self._end_experiment(event.id, event.outcome, event.error)
            case events.ClusterSeen():
                self._seen(event)
            case events.Ticked():
                self._tick()

    @property
    def _now(self) -> int:
        return self._turn.now_ms

    def deadline(self) -> int:
        """Return when `Ticked` is due, epoch ms."""
        if self.listening:
            return self._tick_ms
        starts = [self._late.start_ms(task) for task in self._pending()] if not self.barred else []
        return min([self._tick_ms, *starts, *self._trials.deadlines()])

    def latch(self, node: str) -> str:
        """Return the id of the abort that is in force on a node, or ("") on all; "" for none."""
        return latches.ordered(self._meta, node)

    def owing(self, task_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the nodes that must still prove the end of a destroyed task: those that are heard, and the others."""
        return doubts.owing(self.fleet, self._meta, task_id)

    def plan(self, spec: TaskSpec, terms: Terms, sighting: Sighting | None = None) -> Planned:
        """Return who would do what now, as `Planner.plan`."""
        return self.planner.plan(spec, terms, self._meta, self._now, sighting)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _create(self, event: events.CreateRequested) -> None:
        if event.id in self.view.tasks:
            return
        with self._at(event.id):
            self._begin(event)

    def _begin(self, event: events.CreateRequested) -> None:
        task, spec = new_task(event, self._now)
        self._ledger.put(task, f"task {task.id} created")
        try:
            event.spec.check()
        except SpecError as error:
            self._fail(task, f"Failed to create TaskController: {error.message}")
            return
        if task.start_ms <= self._now and not self.listening:
            self._run(task, spec)

    def _run(self, task: TaskRow, spec: TaskSpec, sighting: Sighting | None = None) -> None:
        """Start a task, or have the cluster under test looked at first."""
        if task.experiment:
            self._move(task, "run", "started", started_ms=self._now)
            self._trials.start(task, spec)
            return
        try:
            if sighting is None and self.planner.needs_look(spec, task.parent):
                self._scout.ask(task.id, spec, self._now, self._trials.cluster(task.parent))
                return
            planned = self.plan(spec, Terms(task.force, task.allow, task.own_topics), sighting)
        except TrogdorBusError as error:
            if not self._scout.again(task.id, spec, error, self._now) and not self._late.wait(task, self._now):
                text = error.message if isinstance(error, SpecError) else str(error)
                self._fail(task, f"Unable to find nodes for task: {text}")
            return
        if sighting is not None:
            self._ledger.resolve(task.id, planned)
        first = self._meta.next_worker
        self._keep(msgspec.structs.replace(self._meta, next_worker=first + len(planned.workers)))
        warning = "; ".join(planned.warnings)
        self._move(task, "run", f"started; warning: {warning}" if warning else "started", started_ms=self._now)
        self._turn.changed.update(self._ledger.address(task.id, first, planned.workers))

    def _seen(self, event: events.ClusterSeen) -> None:
        if self._scout.answers(event):
            self._start(self.view.tasks[event.task], event.sighting)

    def _stop(self, task_id: str, why: str = "somebody stopped it") -> None:
        task = self.view.tasks.get(task_id)
        if task is None:
            return
        if task.state is TaskState.PENDING:
            ended = {"cancelled": True, "outcome": Outcome.CANCELLED, "done_ms": self._now}
            self._move(task, "stop", "cancelled before it started", **ended)
        elif task.state is TaskState.RUNNING:
            self._move(task, "stop", "is being stopped", cancelled=True, stop_ms=self._now, active=False)
            self._unwant_all(task_id)
            self._trials.end(task, why)
            self._stop_children(task_id)

    def _destroy(self, task_id: str) -> None:
        if task := self.view.tasks.get(task_id):
            self._trials.end(task, "somebody destroyed it")
            self._scout.forget(task_id)
            self._stop_children(task_id)
            rows = [row for row in self.view.workers[task_id].values() if row.state is not WorkerState.DONE]
            self._keep(owed.owe(self._meta, task_id, rows))
            self._turn.changed.update(node.row.name for node in self._ledger.drop(task_id, f"task {task_id} destroyed"))

    def _abort(self, latch: str, name: str) -> None:
        self._keep(latches.abort(self._meta, latch, name))
        where = name or "every node"
        self._ledger.note(f"aborted: everything ends on {where}, and nothing starts there until it is resumed")
        hit = self._ledger.tasks_on(name)
        for task_id in (*hit, *self._trials.parents(hit)):
            self._stop(task_id, f"{where} was aborted")
        self._turn.changed.update([name] if name else self.fleet.nodes)

    def _resume(self, name: str) -> None:
        names = [name] if name else list(self.fleet.nodes)
        self._keep(latches.resume(self._meta, name, [self.fleet.nodes[node].row.latch for node in names]))
        self._ledger.note(f"resumed: faults may start again on {name or 'every node'}")
        self._turn.changed.update(names)

    def _forget_node(self, name: str) -> None:
        node, fleet = self.fleet.nodes[name], self.fleet
        self._keep(forgetting.forget(self._meta, node, fleet, self._ledger, self._end_worker))

    def _keep(self, meta: Meta) -> None:
        if meta is not self._meta:
            if meta.owed != self._meta.owed:
                self.fleet.touched |= owed.nodes(meta) | owed.nodes(self._meta)
            self._meta = meta
            self._turn.changes.append(PutMeta(meta))

    # --- what agents say --------------------------------------------------------------------------------------------

    def _beat(self, beat: Beat) -> None:
        if refusal := self._epochs.refusal(beat):
            self._note_once(refusal)
            return
        before = self.view.nodes.get(beat.node)
        heard = self.fleet.hear(beat, self._now)
        if heard.note:
            self._ledger.note(heard.note)
        if not heard.accepted:
            self._heed_ended(beat)
            return
        node = self.fleet.nodes[beat.node]
        self._heed_stamp(beat)
        if self.ended:
            return
        if before is None or msgspec.structs.replace(before, heard_ms=node.row.heard_ms) != node.row:
            what = "ended" if beat.leaving else "joined" if before is None or not before.journal else "changed"
            if before is not None and before.journal and not before.alive and node.row.alive:
                what = "is back"
            self._ledger.put_node(node, f"node {beat.node} {what}")
        if heard.new_journal:
            self._address(node)
            for row in owed.closed(self._meta, beat.node, beat.journal, self._ledger.known):
                self._end_worker(row, Outcome.UNKNOWN, came_back(beat.node))
        for report in beat.reports:
            self._report(node, report)
        latest, whole = beat.stamp == self._stamp(node), not unread.nameless(beat)
        if latest and whole:
            self._absent(node, {report.worker for report in beat.reports})
        if not self.listening:
            self._keep(owed.heard(self._meta, beat, latest=(latest or beat.leaving) and whole, told=node.open))
        waiting = any(self._ledger.row(wid).state is WorkerState.RECEIVING for wid in node.open)
        due = self._now - node.published_ms >= self.limits.beat_ms * 3 // 4
        latched = beat.latch != latches.ordered(self._meta, beat.node)
        if waiting or due or latched or beat.stamp != self._stamp(node):
            self._turn.answer.add(beat.node)

    def _heed_stamp(self, beat: Beat) -> None:
        if self.listening:
            if beat.stamp is not None:
                self._epochs.listen(beat)
                (self._heard if self._fresh else self._begun).hear(beat)
        elif reason := self._epochs.fence(beat):
            self._exit(reason, fenced=True)
        else:
            for clash in self._epochs.clashes(beat, self.place.me):
                self._note_once(clash)

    def _heed_ended(self, beat: Beat) -> None:
        """Believe a journal that is not heard as its node's own, of its own workers, that they have ended: for good."""
        node, ended = self.fleet.nodes.get(beat.node), [one for one in beat.reports if one.state is WorkerState.DONE]
        if node is not None and beat.node not in self.view.nodes:
            self._ledger.put_node(node)
        if node is None or not ended or self.listening:
            return
        for report in ended:
            self._report(node, report, beat.journal)
        self._keep(owed.heard(self._meta, msgspec.structs.replace(beat, reports=tuple(ended)), latest=False, told=()))

    def _address(self, node: NodeState) -> None:
        """Give the workers that wait for this node's agent to the journal that has just appeared."""
        for worker_id in tuple(node.open):
            row = self._ledger.row(worker_id)
            if not row.journal and row.wanted:
                self._ledger.put_worker(msgspec.structs.replace(row, journal=node.row.journal))
                self._turn.changed.add(row.node)

    def _report(self, node: NodeState, report: Report, journal: str = "") -> None:
        task_id = self._ledger.task_of(report.worker)
        if task_id is None:
            return
        row = self._ledger.row(report.worker)
        final = row.state is WorkerState.DONE and row.outcome is not Outcome.UNKNOWN
        if row.journal != (journal or node.row.journal) or row.node != node.row.name or final:
            return
        if isinstance(report, UnreadReport) and (report.blind or report.state is row.state is WorkerState.DONE):
            return  # it stays as it was: its node says why
        new = reported(row, report, self._now)
        with self._at(task_id):
            self._ledger.describe(task_id, report)
            if new != row:
                self._ledger.put_worker(new)
                if row.wanted and not new.wanted:
                    self._turn.changed.add(new.node)
                self._weigh(new)

    def _absent(self, node: NodeState, reported: set[int]) -> None:
        """End the workers that an agent which holds our latest word does not have, and can never start any more."""
        for worker_id in set(node.open) - reported:
            row = self._ledger.row(worker_id)
            if row.journal == node.row.journal and (
                ended := self._ledger.forgotten(row, node.blind.get(worker_id, ""))
            ):
                self._end_worker(row, *ended)

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.listening and self._now >= self.started_ms + 2 * self.limits.beat_ms:
            self._lead()
        if self.listening or self.ended:
            self._tick_ms = self._now + self.limits.beat_ms // 4
            return
        for task in [one for one in self._pending() if self._late.start_ms(one) <= self._now and not self.barred]:
            self._start(task)
        for task in self._trials.overdue(self._now):
            with self._at(task.id):
                error = f"it did not end within {task.duration_ms} ms, the longest that it may take"
                self._move(task, "error", f"stops: {error}", error=error, stop_ms=self._now)
                self._trials.end(task, error)
                self._stop_children(task.id)
        if self._now < self._tick_ms:
            return
        self._tick_ms = self._now + self.limits.beat_ms
        self._carrier.seat(self._ledger, settled=self._now - self.started_ms >= self.limits.lease_ms)
        for node in self.fleet.fall_silent(self._now):
            self._ledger.put_node(node, f"node {node.row.name} is silent")
        for node in self.fleet.nodes.values():
            for worker_id, task_id in tuple(node.open.items()):
                with self._at(task_id):
                    self._give_up(node, self._ledger.row(worker_id))
            if node.open and self._now - node.published_ms >= self.limits.beat_ms:
                self._turn.answer.add(node.row.name)
        for node in self.fleet.long_gone(self._now, latches.nodes(self._meta)):
            self._forget_node(node.row.name)
        self._turn.changed |= self._ledger.keep_up(self.planner.topology, self._now - self.started_ms)

    def _lead(self) -> None:
        if self._heard and self._orphans == "refuse":
            self._exit(self._heard.complaint())
            return
        self.listening = False
        self.epoch = self._epochs.lead(self._meta.epoch)
        self._late.lead(self.view.tasks.values())
        self._keep(leading(self._meta, self.epoch, url=self.place.url, next_worker=self.place.first_worker()))
        self._ledger.turn_back()
        self._ledger.strand(self._at)
        if self._orphans == "adopt":
            adoption.adopt(self._heard, self._ledger, self._move)
        for row in adoption.go_on(self._begun, self._ledger, self._move):
            self._weigh(row)
        self._keep(owed.from_rows(self._meta, self.view.tasks.values(), self.view.workers))
        for task in self._trials.open():
            self._end_experiment(task.id, Outcome.FAILED, RESTARTED)
        self._turn.changed.update(node.row.name for node in self.fleet.nodes.values())
        self._ledger.note(f"coordinator {self.place.me[:8]} leads in epoch {self.epoch}")

    def _give_up(self, node: NodeState, row: WorkerRow) -> None:
        """Close a worker of which nothing more can be hoped for: its outcome is unknown, or it was never sent."""
        task = self.view.tasks[node.open[row.id]]
        lease_ms, until_ms = self.limits.lease_ms, self._late.until_ms
        if hopeless := self.fleet.hopeless(node, row, task, self._now, lease_ms, after_ms=until_ms):
            if hopeless[0] is Outcome.UNKNOWN:
                self._keep(owed.owe(self._meta, task.id, [row]))
            self._end_worker(row, *hopeless)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _weigh(self, row: WorkerRow) -> None:
        """Move the task on after this worker of it changed."""
        if task_id := self._ledger.task_of(row.id):
            with self._at(task_id):
                self._weigh_task(task_id, row)

    def _weigh_task(self, task_id: str, row: WorkerRow) -> None:
        task = self.view.tasks[task_id]
        weighed = weigh(self._ledger, task, row, self._now)
        if weighed is None:
            return
        if weighed.move is None:
            self._ledger.put(msgspec.structs.replace(task, **weighed.fields), f"task {task_id} {weighed.text}")
            return
        self._move(task, weighed.move, weighed.text, **weighed.fields)
        if weighed.move == "error":
            self._unwant_all(task_id)

    def _unwant_all(self, task_id: str) -> None:
        rows = [row for row in self.view.workers[task_id].values() if row.state is not WorkerState.DONE and row.wanted]
        for row in rows:
            new = msgspec.structs.replace(row, wanted=False)
            self._turn.changed.add(row.node)
            if row.journal:
                self._ledger.put_worker(new)
            else:
                self._end_worker(new, Outcome.DONE, "")

    def _end_worker(self, row: WorkerRow, outcome: Outcome, error: str) -> None:
        self._turn.changed.add(row.node)
        self._weigh(self._ledger.close_worker(row, outcome, error))

    def _end_experiment(self, task_id: str, outcome: Outcome, error: str) -> None:
        task = self.view.tasks.get(task_id)
        if task is not None and task.experiment and task.state in (TaskState.RUNNING, TaskState.STOPPING):
            if task.error:  # that it lasted too long is said already
                outcome, error = Outcome.FAILED, task.error
            self._move(task, "finish", ending(outcome, error), error=error, outcome=outcome, done_ms=self._now)

    def _fail(self, task: TaskRow, error: str) -> None:
        self._move(task, "fail", f"failed: {error}", error=error, outcome=Outcome.FAILED, done_ms=self._now)

    def _move(self, task: TaskRow, move: Move, text: str, **fields: object) -> None:
        task = self.view.tasks[task.id]
        target = TABLE.get((task.state, move))
        if target is None:
            raise InvalidTransitionError(f"task {task.id}", task.state, move)
        self.taken.add((task.state, move))
        self._scout.forget(task.id)
        self._ledger.put(msgspec.structs.replace(task, state=target, **fields), f"task {task.id} {text}")
        if target is TaskState.DONE:
            self._stop_children(task.id)

    def _stop_children(self, task_id: str) -> None:
        for child in [task for task in self.view.tasks.values() if task.parent == task_id]:
            self._stop(child.id)

    def _start(self, task: TaskRow, sighting: Sighting | None = None) -> None:
        """Start a task as it was stored; one whose spec nobody knows any more fails."""
        with self._at(task.id):
            try:
                spec = decoded(task)
            except SpecError as error:
                self._fail(task, f"Failed to create TaskController: {error.message}")
            else:
                self._run(task, spec, sighting)

    @contextlib.contextmanager
    def _at(self, task_id: str) -> Iterator[None]:
        """Handle that task inside the `with`; what fails there leaves `about` as it is."""
        before, self.about = self.about, task_id
        yield
        self.about = before

    def _pending(self) -> list[TaskRow]:
        """Return the tasks that wait for their time, and for nothing else."""
        waiting = (task for task in self.view.tasks.values() if task.state is TaskState.PENDING)
        return [task for task in waiting if not self._scout.waits(task.id)]

    def _note_once(self, text: str) -> None:
        if note := self.fleet.once(text):
            self._ledger.note(note)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def _exit(self, reason: str, *, fenced: bool = False) -> None:
        self._ledger.note(reason)
        self._turn.exits.append(Exit(reason, fenced))
        self.ended = True

    def _stamp(self, node: NodeState) -> Stamp:
        return Stamp(self.epoch, self.place.me, node.revision)

    def _effects(self) -> list[Effect]:
        doubts.refresh(self.fleet, self._ledger, self._meta)
        turn = self._turn
        effects: list[Effect] = [*turn.changes, *turn.orders, *turn.exits]
        for name in sorted((turn.answer | turn.changed) & self.fleet.nodes.keys()):
            node = self.fleet.nodes[name]
            node.revision += name in turn.changed
            if not self.listening and not self.ended and max(node.counter, node.stranger_ms) >= 0:
                node.published_ms = self._now
                told = snapshot_of(node, self._ledger, self._stamp(node), self.place.process, self._meta, at=self._at)
                effects.append(Publish(told))
        return effects
