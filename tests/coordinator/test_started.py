"""What a coordinator knows and does that has just started: by its store alone, before its agents are heard again."""

from __future__ import annotations

import asyncio

import pytest

from tests.coordinator.driver import BEAT_MS, LEASE_MS, Cluster, raw
from tests.coordinator.test_api import BLOCK, ask
from trogdor_bus.cli import aborting
from trogdor_bus.errors import NotFoundError, RefusedError
from trogdor_bus.messages import CreateTask, Latch, Proof, Report
from trogdor_bus.states import Outcome, TaskState, WorkerState

W = WorkerState


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


class Source:
    """A coordinator; if it `dies`, as soon as it has taken an abort up, the next one is asked for the proof."""

    replicated = None

    def __init__(self, cluster: Cluster, dies: bool) -> None:
        self._cluster, self._dies = cluster, dies

    async def abort(self, latch: str, node: str = "") -> Latch:
        told = self._cluster.api.abort(latch, node)
        if self._dies:
            self._cluster.start()
        return told

    async def proof(self, latch: str, node: str = "") -> Proof:
        return self._cluster.api.proof(latch, node)


def abort(cluster: Cluster, node: str = "", dies: bool = True) -> int:
    teller = aborting._Teller(as_json=False)
    return asyncio.run(aborting._abort(Source(cluster, dies), "L1", node, within_s=0.2, teller=teller))


@pytest.mark.parametrize("node", ["", "c"])
def test_an_abort_is_not_proven_by_a_coordinator_that_listens(cluster: Cluster, node: str) -> None:
    assert abort(cluster, node) == 3
    assert cluster.api.proof("L1").listening


def test_an_abort_is_not_proven_while_faults_run_that_only_the_store_tells_of(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    assert abort(cluster) == 3
    assert [one.node for one in cluster.api.proof("L1").nodes if one.doubtful] == ["a", "b", "c"]


def test_an_abort_of_agents_whose_coordinator_lost_its_store_is_not_proven_before_they_are_heard() -> None:
    assert abort(Cluster(lead=False, orphans="adopt")) == 3


def test_nothing_is_proven_where_no_node_is_known() -> None:
    cluster = Cluster(lead=False)
    cluster.pass_(4 * BEAT_MS)
    assert not cluster.machine.listening and not cluster.api.nodes()
    assert abort(cluster, dies=False) == 3


def test_what_a_node_may_hold_is_not_forgotten_by_the_next_coordinator_either(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.pass_(5 * BEAT_MS, "a", "b")
    cluster.start()
    assert cluster.machine.view.nodes["c"].unproven
    with pytest.raises(RefusedError, match="node c may hold something"):
        cluster.api.forget_node("c")


def test_an_abort_of_one_silent_node_is_seen_and_lifted_by_the_next_coordinator(cluster: Cluster) -> None:
    cluster.pass_(5 * BEAT_MS, "a", "b")
    cluster.api.abort("L1", "c")
    cluster.start()
    cluster.pass_(5 * BEAT_MS, "a", "b")
    assert "c" in [node.name for node in cluster.api.nodes()]
    assert [one.node for one in cluster.api.proof("L1", "c").nodes] == ["c"]
    assert cluster.api.abort("L2", "c").id == "L1"
    assert cluster.api.resume("c") == ["c"]
    assert not cluster.machine._meta.latches


def test_with_a_forgotten_node_the_abort_of_it_alone_ends_and_an_agent_that_keeps_it_keeps_it(cluster: Cluster) -> None:
    cluster.api.abort("L1", "c")
    cluster.pass_(5 * BEAT_MS, "a", "b")
    cluster.api.forget_node("c")
    assert "node c is forgotten, and the abort of it alone ends" in cluster.texts
    assert not cluster.machine._meta.latches
    with pytest.raises(NotFoundError):
        cluster.api.resume("c")
    cluster.beat("c", latch="L1")
    assert cluster.published["c"].resume == ""
    assert "aborted: nothing may start on c" in (cluster.create("t", nodes=["c"]) or [cluster.task("t").error])[0]
    assert cluster.api.resume("c") == ["c"]


def test_an_abort_of_a_node_that_is_not_heard_yet_waits_for_it(cluster: Cluster) -> None:
    cluster.start()

    class Late(Source):
        async def proof(self, latch: str, node: str = "") -> Proof:
            told = await super().proof(latch, node)
            cluster.beat("c", latch=latch if cluster.machine._meta.latches else "")
            return told

    source, teller = Late(cluster, dies=False), aborting._Teller(as_json=False)
    assert asyncio.run(aborting._abort(source, "L1", "c", within_s=0.5, teller=teller)) == 3  # it goes on listening
    assert cluster.machine._meta.latches == {"c": "L1"}


def due(cluster: Cluster) -> None:
    """Let the time of a waiting task come while no coordinator runs, and the next one not hear node c at first."""
    spec = raw({**BLOCK, "nodes": ["a", "b", "c"], "startMs": cluster.now + 5_000})
    assert not ask(cluster, CreateTask(id="t", spec=spec)).error
    cluster.now += 5_000
    cluster.start()
    cluster.pass_(3 * BEAT_MS, "a", "b")
    assert not cluster.machine.listening
    assert cluster.task("t").state is TaskState.PENDING


def test_a_due_task_waits_for_nodes_that_are_heard_a_moment_late(cluster: Cluster) -> None:
    due(cluster)
    cluster.beat("c")
    cluster.pass_(BEAT_MS)
    assert cluster.task("t").state is TaskState.RUNNING


def test_a_task_that_is_taken_while_it_listens_waits_as_well(cluster: Cluster) -> None:
    cluster.start()
    assert not ask(cluster, CreateTask(id="t", spec=raw({**BLOCK, "nodes": ["a", "c"]}))).error
    cluster.pass_(3 * BEAT_MS, "a", "b")
    assert cluster.task("t").state is TaskState.PENDING
    cluster.beat("c")
    cluster.pass_(BEAT_MS)
    assert cluster.task("t").state is TaskState.RUNNING


def test_a_due_task_does_not_wait_for_ever(cluster: Cluster) -> None:
    due(cluster)
    cluster.pass_(LEASE_MS + BEAT_MS, "a", "b")
    assert (cluster.task("t").outcome, "Unknown node names: c" in cluster.task("t").error) == (Outcome.FAILED, True)


def test_an_agent_has_time_to_be_heard_before_its_worker_is_unknown(cluster: Cluster) -> None:
    cluster.create()
    cluster.all_say(W.RUNNING)
    cluster.now = cluster.task("t").end_ms + 60_000
    for node in ("a", "b", "c"):
        worker = cluster.row(node).id
        cluster.reports[node] = {worker: Report(worker=worker, task="t", state=W.DONE, outcome=Outcome.DONE)}
    cluster.start()
    cluster.pass_(3 * BEAT_MS, "a", "b")
    assert cluster.task("t").state is not TaskState.DONE
    cluster.beat("c")
    assert cluster.task("t").outcome is Outcome.DONE
