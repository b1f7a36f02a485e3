"""What an experiment leaves to chance is made of one number, which its result tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from trogdor_bus.cluster import ClusterView, SeenBroker
from trogdor_bus.experiment.chaos import Chaos

BROKERS = {number: f"node{number}" for number in range(1, 6)}
VIEW = ClusterView(brokers={number: SeenBroker(id=number, host=f"h{number}", port=9092) for number in BROKERS})
AROUND: Any = SimpleNamespace(brokers=BROKERS, controllers={}, spec=SimpleNamespace(each_of=("one-of", "minority")))


def picked(seed: int | None = None) -> tuple[int, list[list[str]]]:
    chaos = Chaos(cast(Any, AROUND), 0, seed)
    return chaos.seed, [chaos._each(VIEW) for _ in range(5)]


def test_the_same_seed_makes_the_same_choices() -> None:
    seed, choices = picked()
    assert picked(seed) == (seed, choices)


def test_other_seeds_make_other_choices() -> None:
    found = [picked() for _ in range(5)]
    assert len({seed for seed, _ in found}) == 5
    assert len({str(choices) for _, choices in found}) > 1
    assert all(0 <= seed < 2**53 for seed, _ in found), "every reader of JSON holds it"
