"""The simulation can fail: each way to break the system is noticed within a stated number of seeds."""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS
from tests.sim.schedule import run, story
from tests.sim.world import Violation


def test_a_failing_seed_tells_its_story_and_how_to_replay_it() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "the undo at the end is forgotten")
    with mutant.broken():
        with pytest.raises(Violation) as raised:
            run(0)
        lines = story(0).splitlines()
        whole = story(0, whole=True).splitlines()
    assert lines[-1] == "replay: python -m tests.sim --seed 0 --story"
    assert lines[-2] == f"seed 0: {raised.value}"
    assert lines[-3].endswith(f"VIOLATION: {raised.value}")
    assert any("Injected(" in line for line in lines)
    assert set(lines) < set(whole), "the story is what concerns the ids of the violation"
