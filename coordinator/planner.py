"""Turns a spec into who does what, against everything that is known: nodes, aborts, the bus, the cluster under test."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import msgspec

from trogdor_bus.coordinator import latches, orders
from trogdor_bus.coordinator.carrier import Carrier
from trogdor_bus.coordinator.changes import Meta
from trogdor_bus.coordinator.doubts import check_clean
from trogdor_bus.coordinator.events import Sighting
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.guard import RULES, Loss, permit, weigh
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.coordinator.place import Place
from trogdor_bus.coordinator.places import places_of
from trogdor_bus.coordinator.plan import WorkerPlan, assign, left_out_warning
from trogdor_bus.coordinator.scout import require_cluster, wanted_of
from trogdor_bus.coordinator.silence import strikes
from trogdor_bus.errors import NotNowError, RefusedError
from trogdor_bus.remedies import Remedy
from trogdor_bus.roles import Chosen, Places, Scene, Wanted
from trogdor_bus.spec import TaskSpec, guarded, wire
from trogdor_bus.topology import Topology


class Terms(msgspec.Struct, frozen=True):
    """What somebody allows a task, as in CreateTask."""

    force: bool = False
    allow: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """Who does what: `spec` with nodes in place of roles, and what people should know.

    `topology` is what it was planned against; `holders` and `seed` as in TaskRow.
    """

    spec: TaskSpec
    topology: Topology
    workers: tuple[WorkerPlan, ...]
    warnings: tuple[str, ...] = ()
    holders: tuple[Chosen, ...] = ()
    seed: int | None = None
    losses: tuple[str, ...] = ()


class Planner:
    """Kept by the machine. A `sighting` is needed, and used, only where `needs_look` says so."""

    def __init__(self, fleet: Fleet, place: Place, carrier: Carrier, ledger: Ledger) -> None:
        self._fleet, self._place, self._carrier, self._ledger = fleet, place, carrier, ledger

    def topology(self) -> Topology:
        """Return the cluster as specs see it now."""
        return self._fleet.topology(self._place.addresses, self._place.ports, self._place.machine)

    def needs_look(self, spec: TaskSpec, parent: str = "") -> bool:
        """Return whether the cluster under test must be seen: for roles, and for whatever an experiment does.

        SpecError if the spec cannot say.
        """
        with guarded(type(spec)):
            return bool(parent) or bool(spec.needs_cluster(self._fleet.nodes))

    def look(self, spec: TaskSpec) -> Wanted | None:
        """Return what must be seen of the cluster under test first, None for nothing; RefusedError if there is none."""
        if not self.needs_look(spec):
            return None
        require_cluster(self._place)
        return wanted_of(spec, self._fleet.nodes)

    def plan(self, spec: TaskSpec, terms: Terms, meta: Meta, now_ms: int, sighting: Sighting | None = None) -> Planned:
        """Return who would do what now; errors as `assign`.

        RefusedError also if a node is aborted, if one is dirty or the bus would be silenced, unless `force`, or if the
        cluster under test would lose too much, unless that is allowed or later: then that is a warning. NotNowError if
        nobody holds a role at this moment, or nothing could be seen.
        """
        topology, chosen, places = self.topology(), tuple[Chosen, ...](), Places()
        if sighting is not None:
            if sighting.view is None:
                raise NotNowError(f"the cluster under test cannot be seen: {sighting.error}")
            places = places_of(self._fleet.nodes, sighting.view, sighting.hosts)
            scene = Scene(view=sighting.view, places=places, topology=topology, seed=sighting.seed)
            spec, chosen = _resolved(spec, scene)
            topology = msgspec.structs.replace(topology, cluster=sighting.view.bootstrap)
        workers = assign(spec, topology, force=terms.force)
        orders.check_fits(spec, workers)
        rows = [self._fleet.ensure(plan.node).row for plan in workers]
        latches.check(meta, {row.name: row.latch for row in rows})
        if not terms.force:
            check_clean(rows)
        self._check_moves(workers)
        warnings = [left_out_warning(workers)]
        warnings.append(self._carrier.check(spec, workers, self._ledger, now_ms, force=terms.force))
        loss = Loss()
        if sighting is not None and sighting.view is not None:
            end_ms = max(now_ms, spec.start_ms) + spec.duration_ms
            new = [one for plan in workers for one in strikes("", plan.node, plan.actions, now_ms, end_ms)]
            running = self._carrier.running(self._ledger, now_ms)
            loss = weigh(sighting.view, places, new, running, named=chosen, own_topics=terms.own_topics)
            warnings += permit(loss, terms.allow if spec.start_ms <= now_ms else RULES)
        return Planned(
            spec=spec,
            topology=topology,
            workers=workers,
            warnings=tuple(filter(None, warnings)),
            holders=chosen,
            seed=sighting.seed if sighting is not None else None,
            losses=loss.lines,
        )

    def _check_moves(self, workers: Sequence[WorkerPlan]) -> None:
        """Raise RefusedError if another task moves the leader of the same partition: each restores what it found."""
        new = {one.impact().leads for plan in workers for one in plan.actions} - {None}
        running = chain.from_iterable(node.open.items() for node in self._fleet.nodes.values()) if new else ()
        for worker_id, task_id in running:
            for one in self._ledger.actions(worker_id) or ():
                if (leads := one.impact().leads) in new and leads is not None:
                    topic, partition = leads
                    raise RefusedError(
                        f"task {task_id} moves the leader of {topic}-{partition} already: wait for its end, or "
                        f"`{Remedy('stop', {'id': task_id})}`"
                    )


def _resolved(spec: TaskSpec, scene: Scene) -> tuple[TaskSpec, tuple[Chosen, ...]]:
    with guarded(type(spec)):
        found, chosen = spec.resolved(scene)
        msgspec.json.decode(wire(found), type=type(found))
        return found, msgspec.json.decode(msgspec.json.encode(chosen), type=tuple[Chosen, ...])
