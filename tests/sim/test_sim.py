"""Some schedules of the whole system (`make sim` has many); one that breaks a promise prints its story."""

from __future__ import annotations

import os

import pytest

from tests.sim.schedule import run, story
from tests.sim.tally import Tally
from tests.sim.world import Violation

CHUNKS = 2
SEEDS = int(os.environ.get("SIM_SEEDS", "50"))


@pytest.mark.timeout(120 + SEEDS)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_a_promise(chunk: int) -> None:
    tally = Tally()
    seeds = range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS)
    for seed in seeds:
        try:
            tally.add(run(seed))
        except Violation as violation:
            pytest.fail(f"{violation}\n{story(seed)}", pytrace=False)
    assert tally.counts["schedules"] == len(seeds)


def test_the_same_seed_is_the_same_schedule() -> None:
    assert story(11, whole=True) == story(11, whole=True)
    assert story(11, whole=True) != story(12, whole=True)


def test_a_schedule_is_as_rough_as_promised() -> None:
    tally = Tally()
    for seed in range(20):
        one = run(seed)
        for what, least in (("nodes", 4), ("tasks", 10), ("crashes, freezes and cuts", 5), ("simulated minutes", 5)):
            assert one.counts[what] >= least, (seed, what, one.counts)
        tally.add(one)
    for what in ("frames lost", "frames doubled", "frames late by up to minutes", "workers that overlap"):
        assert tally.counts[what] > 20, (what, tally.counts)
