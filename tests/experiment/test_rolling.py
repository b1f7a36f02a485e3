"""A rolling restart is an experiment whose fault goes round."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from trogdor_bus.clock import ManualClock
from trogdor_bus.cluster import NOBODY, ClusterView, Quorum, SeenBroker
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.experiment.around import Around
from trogdor_bus.experiment.chaos import Chaos
from trogdor_bus.experiment.result import FaultWindow
from trogdor_bus.faults.experiment import ExperimentSpec
from trogdor_bus.registry import registry
from trogdor_bus.spec import wire

BROKERS = {1: "a", 2: "b", 3: "c"}


def rolling(**fields: Any) -> ExperimentSpec:
    spec = registry().decode({"class": "kafka-rolling-restart", **fields}).performed()
    assert isinstance(spec, ExperimentSpec)
    spec.check()
    assert registry().decode(json.loads(wire(spec))) == spec
    return spec


def test_it_is_the_experiment_that_a_person_would_have_written() -> None:
    spec = rolling(startMs=5, downMs=1_000, recoveryMs=60_000, durationMs=900_000, nodes=["rack(r1)", "x"])
    assert (spec.start_ms, spec.chaos_ms, spec.recovery_ms, spec.stream.off) == (5, 900_000, 60_000, True)
    assert spec.fault_on("", "x") == {
        "class": "process-kill",
        "durationMs": 1_000,
        "nodes": ["x"],
        "match": "kafka.Kafka",
        "signal": "SIGTERM",
        "graceMs": 30_000,
        "restart": {"found": True},
    }
    assert spec.evidence_wanted() == ("process-stopped",)
    assert rolling().each_of == ("all",)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"nodes": []}, "$.nodes"),
        ({"nodes": ["a", "leadr(t, 0)"]}, "$.nodes[1]"),
        ({"signal": "SIGKILL"}, "$.graceMs"),
        ({"downMs": 0}, "$.downMs"),
        ({"match": " "}, "$.match"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        registry().decode({"class": "kafka-rolling-restart", **fields})
    assert caught.value.path == path


class Watch:
    """Sees a whole cluster, of which broker `active` is the active controller."""

    def __init__(self, active: int) -> None:
        self.active = active

    async def whole(self) -> ClusterView:
        return ClusterView(
            brokers={one: SeenBroker(id=one) for one in BROKERS},
            quorum=Quorum(leader=self.active, epoch=1),
            controller=self.active,
        )


class Round(Chaos):
    """Notes whom it would hit; the active controller is `then` after the first; the one at `missed` stays away."""

    def __init__(
        self, spec: ExperimentSpec, active: int, then: int = NOBODY, missed: str = "", takes_ms: int = 0
    ) -> None:
        self.hit: list[str] = []
        self._watching, self._then, self._missed, self._takes_ms = Watch(active), then, missed, takes_ms
        self._time = ManualClock(1_000)
        around = Around(
            id="t",
            spec=spec,
            topic="",
            client=None,  # type: ignore[arg-type]
            watch=self._watching,  # type: ignore[arg-type]
            clock=self._time,
            say=lambda text: None,
            brokers=BROKERS,
            controllers=BROKERS,
        )
        super().__init__(around, 0)

    async def _one(self, number: int, node: str = "") -> None:
        self.hit.append(node)
        missed = "it is not there" if node == self._missed else ""
        self.windows.append(FaultWindow(number=number, start_ms=0, task_id="t", missed=missed))
        self._watching.active = self._watching.active if self._then == NOBODY else self._then
        self._time.advance(self._takes_ms)


@pytest.mark.parametrize(
    ("more", "hit"),
    [
        ({"active": 3}, ["a", "b", "c"]),
        ({"active": 1}, ["b", "c", "a"]),
        ({"active": 1, "then": 3}, ["b", "a", "c"]),
        ({"active": 1, "missed": "b"}, ["b"]),
    ],
)
def test_each_is_hit_once_the_active_controller_last_and_none_after_one_that_stays_away(
    more: dict[str, Any], hit: list[str]
) -> None:
    chaos = Round(rolling(), **more)
    asyncio.run(chaos.run())
    assert chaos.hit == hit


def test_a_role_that_one_of_several_holds_is_not_always_held_by_the_same() -> None:
    hit = set()
    for _ in range(50):  # 3 brokers: the same one 50 times by chance is not to be expected in this world
        chaos = Round(rolling(nodes=["one-of"]), 3)
        asyncio.run(chaos.run())
        hit.update(chaos.hit)
    assert len(hit) > 1


def test_names_and_roles_are_each_hit_once() -> None:
    chaos = Round(rolling(nodes=["x", "broker(2)", "b", "controller"]), 3)
    asyncio.run(chaos.run())
    assert chaos.hit == ["x", "b", "c"]


def test_who_was_not_hit_in_time_is_said() -> None:
    chaos = Round(rolling(durationMs=10_000), 3, takes_ms=6_000)
    with pytest.raises(HostError, match=r"chaosMs = 10000 ms are over, and c was not hit yet"):
        asyncio.run(chaos.run())
