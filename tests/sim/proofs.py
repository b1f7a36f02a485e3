"""What a coordinator calls proven must be true: checked at any moment against the nodes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trogdor_bus.coordinator.doubts import proof
from trogdor_bus.coordinator.fleet import GRACE_MS
from trogdor_bus.messages import NodeProof
from trogdor_bus.states import WorkerState

if TYPE_CHECKING:
    from tests.sim.agent import SimAgent
    from tests.sim.coordinator import SimCoordinator
    from tests.sim.world import World

GIVEN_UP_MS = 15_000
"""How long a leader that is awake may go on with what is hopeless."""


def check(world: World, coordinator: SimCoordinator) -> None:
    """Check that an abort, asked for now, would prove nothing of a node that holds something.

    Nobody can know what another coordinator, whose store is lost or was not replicated whole, had a node do.
    """
    machine = coordinator.machine
    if machine is None or machine.listening or machine.ended or world.rivals or world.stores > 1 or world.keeper:
        return
    for name, agent in world.nodes.items():
        node = machine.fleet.nodes.get(name)
        said = proof(node, machine.latch(name)) if node else NodeProof(node=name, state="silent")
        left = [*agent.platform.held(), *agent.platform.leaked]
        if said.doubtful or said.dirty or not left:
            continue
        if said.state in ("ended", "silent"):
            world.fail((name,), f"{coordinator.name} has no doubt of {name}, which is {said.state} and holds {left}")
        journal = agent.journal.id if agent.machine and agent.journal else ""
        if journal and node and node.row.journal == journal and agent.platform.leaked:
            text = f"{coordinator.name} has no doubt of {name}, whose former agent left {agent.platform.leaked}"
            world.fail((name,), text)
        world.tally.counts["proofs that would wait"] += 1


def check_given_up(world: World, coordinator: SimCoordinator) -> None:
    """Check that a leader closes each worker of which nothing more can come, soon after it could be hoped for."""
    machine = coordinator.machine
    if machine is None or machine.listening or machine.ended or not coordinator.up:
        coordinator.hopeless.clear()
        return
    now_ms, hopeless = coordinator.clock.now_ms(), dict[int, int]()
    for node in machine.fleet.nodes.values():
        for worker, task in node.open.items():
            row = machine.view.workers[task][worker]
            heard = node.row.alive and row.journal in ("", node.row.journal)
            counted_ms = max(machine.view.tasks[task].end_ms, machine.started_ms)
            last_ms = counted_ms + machine.limits.lease_ms + GRACE_MS
            if row.state is not WorkerState.STUCK and not heard and now_ms > last_ms:
                hopeless[worker] = coordinator.hopeless.get(worker, world.now)
                if world.now - hopeless[worker] > GIVEN_UP_MS:
                    ids = (coordinator.name, task, row.node, str(worker))
                    world.fail(ids, f"{coordinator.name} does not give up worker {worker}, which is {row.state}")
    coordinator.hopeless = hopeless


def dirty(world: World) -> list[SimAgent]:
    """Return the live nodes of which a leading coordinator doubts that their former agents left nothing."""
    leading = [one.machine for one in world.running() if one.machine and not one.machine.listening]
    rows = [node.row for machine in leading for node in machine.fleet.nodes.values()]
    return [world.nodes[row.name] for row in rows if row.alive and row.unproven and row.name in world.nodes]
