"""The verdict on one simulated cluster: whether it settled, and whether what it says of itself is true."""

from __future__ import annotations

import msgspec

from tests.sim import proofs
from tests.sim.agent import SimAgent
from tests.sim.coordinator import SimCoordinator
from tests.sim.model import FOREIGN
from tests.sim.world import World
from trogdor_bus.messages import Stamp
from trogdor_bus.states import Outcome, TaskState, WorkerRow, WorkerState

NEW_ADDRESS = "10.91.0.1"


def settled(world: World) -> bool:
    """Return whether one coordinator leads, every task has ended, and no agent has anything left."""
    running = world.running()
    if len(running) != 1 or running[0].machine is None or running[0].machine.listening:
        return False
    if any(agent.machine is None or agent.machine.workers or agent.machine.latch for agent in world.nodes.values()):
        return False
    if any(stamp is None or stamp.coordinator != running[0].machine.place.me for stamp in _stamps(world)):
        return False
    return all(task.state is TaskState.DONE for task in running[0].machine.view.tasks.values())


def _stamps(world: World) -> list[Stamp | None]:
    return [agent.machine.stamp if agent.machine else None for agent in world.nodes.values()]


def complain(world: World) -> None:
    """Say what has not settled."""
    running = world.running()
    names = tuple(coordinator.name for coordinator in running)
    if len(running) != 1 or running[0].machine is None or running[0].machine.listening:
        world.fail(names, f"not one coordinator leads in the end, but {names}")
    machine = running[0].machine
    for task in machine.view.tasks.values():
        if task.state is not TaskState.DONE:
            rows = ", ".join(f"{row.node}: {row.state}" for row in machine.view.info(task.id).workers)
            world.fail((task.id,), f"task {task.id} is still {task.state} ({rows})")
    for agent in world.nodes.values():
        for worker in agent.machine.workers.values() if agent.machine else ():
            ids = (agent.node, worker.task, str(worker.id))
            world.fail(ids, f"{agent.node} still has worker {worker.id} ({worker.state})")
    for agent in proofs.dirty(world):
        world.fail((agent.node,), f"{agent.node} is still dirty")
    latches = [agent.machine.latch for agent in world.nodes.values() if agent.machine]
    if any(latches):
        world.fail((), f"still aborted: {latches}")
    world.fail((), f"not everybody obeys {names}: {_stamps(world)}")


def check(world: World, acknowledged: set[str], replicated: set[str], trial: str) -> None:
    """Check the end: the leader's word on every task and node, and that nothing is left anywhere.

    `acknowledged` are the tasks that a client was told of and never destroyed, `replicated` those of them that were in
    the log by then, `trial` is one that must have worked.
    """
    leader = world.running()[0]
    leader.check_fold()
    machine = leader.machine
    assert machine is not None
    for name, node in machine.fleet.nodes.items():
        row = leader.store.told.nodes.get(name)
        if row is None or msgspec.structs.replace(row, heard_ms=0) != msgspec.structs.replace(node.row, heard_ms=0):
            world.fail((name,), f"node {name} is {node.row}, its events say {row}")
        if not node.row.alive:
            world.fail((name,), f"node {name} is not alive at the end")
    for agent in world.nodes.values():
        _check_agent(world, agent, leader)
    for task_id in machine.view.tasks:
        _check_task(world, task_id, leader)
    if trial in machine.view.tasks and machine.view.tasks[trial].outcome is not Outcome.DONE:
        world.fail((trial,), f"all is calm, and task {trial} ends {machine.view.tasks[trial]}")
    lost = acknowledged - set(machine.view.tasks)
    if world.stores == 1 and lost:
        world.fail(tuple(lost), f"{sorted(lost)} were accepted and are forgotten")
    lost &= replicated
    if not world.rivals and lost:
        world.fail(tuple(lost), f"{sorted(lost)} were accepted and replicated and are forgotten")


def check_followed(world: World, task_id: str, first: str, others: list[str]) -> None:
    """Check that an address which `first` got meanwhile is told, and blocked, by all others that block it."""
    machine = world.running()[0].machine
    assert machine is not None
    if task_id not in machine.view.tasks:
        world.fail((task_id,), f"all is calm, and task {task_id} is forgotten")
    said = f"{first} announces {NEW_ADDRESS}, which no rule names"
    for row in machine.view.info(task_id).workers:
        told = [one.mended for one in row.disturbed if one.text == said]
        if row.outcome is not Outcome.DONE or told != ([True] if row.node in others else []):
            world.fail((task_id, row.node), f"{first} has got {NEW_ADDRESS}, and {row.node} says {row}")


def _check_agent(world: World, agent: SimAgent, leader: SimCoordinator) -> None:
    agent.promises.check()
    where = (agent.node,)
    assert agent.machine is not None
    assert agent.journal is not None
    assert leader.machine is not None
    if agent.machine.stamp is None or agent.machine.stamp.coordinator != leader.machine.place.me:
        world.fail(where, f"{agent.node} obeys {agent.machine.stamp}, not {leader.name}")
    left = [one for one in agent.platform.effects if one not in FOREIGN and one not in agent.platform.leaked]
    live = agent.journal.live()
    if left or agent.platform.applied or live:
        world.fail(where, f"{agent.node} is not clean: {left}, {agent.platform.applied}, {live}")


def _check_task(world: World, task_id: str, leader: SimCoordinator) -> None:
    assert leader.machine is not None
    info = leader.machine.view.info(task_id)
    outcomes = {row.outcome for row in info.workers}
    for row in info.workers:
        _check_worker(world, task_id, row, leader)
    outcome = info.task.outcome
    if info.task.experiment:
        _check_experiment(world, task_id, leader)
        return
    world.tally.counts[f"tasks {outcome}"] += 1
    if info.workers and outcome not in outcomes | {Outcome.CANCELLED}:
        world.fail((task_id,), f"task {task_id} ended {outcome}, its workers {outcomes}")
    if outcome is Outcome.DONE and outcomes != {Outcome.DONE}:
        world.fail((task_id,), f"task {task_id} is called done, its workers {outcomes}")


def _check_experiment(world: World, task_id: str, leader: SimCoordinator) -> None:
    """Check that with an experiment ended its program and all that belongs to it."""
    assert leader.machine is not None
    tasks = leader.machine.view.tasks
    world.tally.counts[f"experiments {tasks[task_id].outcome}"] += 1
    if task_id in leader.programs.running:
        world.fail((task_id,), f"experiment {task_id} has ended, and its program runs")
    left = [task.id for task in tasks.values() if task.parent == task_id and task.state is not TaskState.DONE]
    if left:
        world.fail((task_id, *left), f"experiment {task_id} has ended, and {left} have not")


def _check_worker(world: World, task_id: str, row: WorkerRow, leader: SimCoordinator) -> None:
    ids = (task_id, row.node, str(row.id))
    truth = world.truth.get(row.id, set())
    there = row.journal in world.journals and world.journals[row.journal] in world.nodes.values()
    ours = (leader.store, leader.store.replaced)
    told = world.acknowledged.get(row.id, ours) == ours
    if row.state is not WorkerState.DONE:
        if there:
            world.fail(ids, f"worker {row.id} is {row.state} at the end")
    elif row.outcome in (Outcome.UNKNOWN, Outcome.DONE) and row.id not in world.ordered:
        pass  # never performed: refused or expired, and the agent that knew it ended before it could say so
    elif row.outcome is Outcome.FAILED and task_id in world.set_aside and row.error.startswith("set aside"):
        pass  # it was closed before its agent could tell how it ended
    elif row.outcome is Outcome.UNKNOWN and row.id in world.strange:
        pass  # its agent has said how it ended, in words that nobody here knows
    elif leader.restored and not row.journal:
        pass  # a backup from before it was given to anybody
    elif not truth:
        if row.outcome not in (Outcome.UNKNOWN, Outcome.DONE) and row.journal:
            world.fail(ids, f"worker {row.id} never ended, but {leader.name} says {row.outcome}: {row.error}")
    elif (row.outcome, row.error) not in truth:
        unwritten = any(  # and forgotten by a restart
            outcome is Outcome.EXPIRED or error.startswith("nothing was done") for outcome, error in truth
        )
        unknown = row.outcome is Outcome.UNKNOWN and (unwritten or world.bare or not (there and told))
        others = not told or len(world.coordinators) > 1  # told another one how it ended, before it told this one
        unneeded = row.outcome is Outcome.DONE and (others or unwritten)
        ended = [error for outcome, error in truth if outcome is row.outcome]
        late = (
            bool(ended) and others and row.error.startswith("undone late")
        )  # that it was undone, another one was told
        if not unknown and not unneeded and not late:
            world.fail(ids, f"worker {row.id} ended {truth}, but {leader.name} says {row.outcome}: {row.error}")
