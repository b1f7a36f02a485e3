"""The coordinator's core: after what it cannot store, or an end of its own, nothing more is handled or said."""

from __future__ import annotations

import pytest

from tests.coordinator.driver import Cluster
from trogdor_bus.coordinator import orders
from trogdor_bus.coordinator.core import CoordinatorCore
from trogdor_bus.coordinator.events import CreateRequested, StopRequested
from trogdor_bus.errors import HostError, SpecError
from trogdor_bus.messages import Beat, Stamp, encode
from trogdor_bus.registry import registry
from trogdor_bus.shell import UnforeseenError
from trogdor_bus.spec import wire
from trogdor_bus.states import WorkerState


class Core:
    """A core on the machine of a cluster that leads, whose store refuses while it is `full`."""

    def __init__(self) -> None:
        self.cluster, self.full = Cluster("a"), False
        self.ends: list[tuple[str, bool]] = []
        self.said: list[str] = []
        self.later: list[object] = []
        self.core = CoordinatorCore(
            self.cluster.machine,
            self,
            self,
            lambda: self.cluster.now,
            soon=self.later.append,
            follow=lambda _: None,
            look=lambda _: None,
            ended=lambda reason, fenced: self.ends.append((reason, fenced)),
            shutdown=lambda: None,
            behind_ms=None,
            fed=lambda: None,
            broken=self._broken,
        )

    def commit(self, changes: object, *, durable: bool) -> None:
        if self.full:
            raise HostError("the disk is full")

    def publish(self, node: str, frame: bytes) -> None:
        self.said.append(node)

    def announce(self, topic: str, frame: bytes) -> None:
        self.said.append(topic)

    def _broken(self, error: Exception) -> None:
        raise error


def test_what_could_not_be_stored_is_never_published_whatever_comes_in_then() -> None:
    one = Core()
    one.full = True
    one.cluster.now += 3_600_000
    with pytest.raises(HostError, match="the disk is full"):
        one.core.tick()  # a node is silent, which is to be stored
    one.full = False
    one.core.hear(encode(Beat(node="a", journal="j-a", counter=100)))
    one.core.flush()
    one.cluster.now += 3_600_000
    one.core.tick()
    with pytest.raises(HostError, match="this coordinator ends: cannot store the state"):
        one.core.feed(StopRequested("t"))
    assert one.said == []
    assert [fenced for _, fenced in one.ends] == [False]


def test_who_is_fenced_says_nothing_more() -> None:
    one = Core()
    one.core.hear(encode(Beat(node="a", journal="j-a", counter=100, stamp=Stamp(99, "another", 1))))
    one.core.flush()
    assert [fenced for _, fenced in one.ends] == [True]
    said = list(one.said)
    one.core.hear(encode(Beat(node="a", journal="j-a", counter=101)))
    one.core.tick()
    assert one.said == said


@pytest.mark.parametrize("error", [SpecError("nobody foresaw it"), KeyError("nor this")])
def test_what_fails_once_the_machine_has_changed_refuses_nothing_and_ends_the_process_at_its_task(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manner(*_: object) -> None:
        raise error

    one = Core()
    one.cluster.create("good")
    one.cluster.all_say(WorkerState.RUNNING, "good")
    monkeypatch.setattr(orders, "_manner", manner)
    spec = registry().decode({"class": "port-block", "nodes": ["a"], "ports": [1], "durationMs": 1})
    with pytest.raises((UnforeseenError, KeyError)):
        one.core.feed(CreateRequested("bad", spec, wire(spec), False, (), (), ""))
    assert (one.cluster.machine.about, one.said) == ("bad", [])
