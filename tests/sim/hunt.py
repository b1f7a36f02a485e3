"""How many seeds it takes to notice that the system was broken on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from tests.part import WHOLE, Part
from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.schedule import run
from tests.sim.world import Violation

RANGES = 5
RANGE = 100_000
"""Each mutant is hunted in so many ranges of seeds, which begin so far apart."""
BOUND = 1_000


def hunt(mutant: Mutant, first: int = 0, bound: int = BOUND) -> tuple[int, str] | None:
    """Return how many seeds from `first` on it took to notice, and what was noticed; None if `bound` did not do."""
    with mutant.broken():
        for seed in range(first, first + bound):
            try:
                run(seed, disk=mutant.disk)
            except Violation as violation:
                return seed - first + 1, str(violation)
    return None


def _hunt(task: tuple[int, int]) -> tuple[int, str] | None:
    number, turn = task
    return hunt(MUTANTS[number], turn * RANGE)


def turns(part: Part) -> list[int]:
    """Return the ranges of a part: the first one always, and its share of the others."""
    return [0, *(1 + turn for turn in part.of_range(RANGES - 1))]


def table(jobs: int, part: Part = WHOLE) -> tuple[Iterable[str], bool]:
    """Hunt each mutant in each range of a part; return the lines of the report, and whether each was caught."""
    ranges = turns(part)
    tasks = [(number, turn) for number in range(len(MUTANTS)) for turn in ranges]
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(_hunt, tasks))
    lines = [f"{'median':>7} {'worst':>6}  mutant: what was noticed first"]
    medians = []
    for number, mutant in enumerate(MUTANTS):
        mine = found[number * len(ranges) : (number + 1) * len(ranges)]
        counts = [one[0] if one else BOUND + 1 for one in mine]
        medians.append(median(counts))
        noticed = next((one[1] for one in mine if one), "nothing")
        worst = f"{max(counts)}" if all(mine) else f">{BOUND}"
        lines.append(f"{medians[-1]:>7.0f} {worst:>6}  {mutant.name}: {noticed[:90]}")
    lines.append(
        f"{len(MUTANTS)} mutants, each in {len(ranges)} ranges of seeds; median of the medians {median(medians):.0f}"
    )
    return lines, all(any(found[at : at + len(ranges)]) for at in range(0, len(found), len(ranges)))
