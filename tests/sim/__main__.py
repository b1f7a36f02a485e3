"""Run schedules: `python -m tests.sim --seeds N [--first S] [--jobs J]`, or one: `--seed S [--story]`.

`--mutants` breaks the system on purpose, in each way that mutants.py lists, and says how soon that was noticed.
With TROGDOR_PART=2/4 it is a core of seeds and the second quarter of the others, and so with the ranges of --mutants.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests import part
from tests.sim import hunt
from tests.sim.schedule import run, story
from tests.sim.tally import RARE, Tally
from tests.sim.world import Violation

CHUNK = 25
CORE = 1000
"""So many seeds are in every part."""
SEE_ALL = 100
"""From so many seeds on, every transition must have been seen, but for the rare ones."""


def chunk(first: int, seeds: int) -> tuple[Tally, list[tuple[int, str]]]:
    """Run some seeds; return what was seen, and the seeds that broke a promise with the reason."""
    tally, broken = Tally(), []
    for seed in range(first, first + seeds):
        try:
            tally.add(run(seed))
        except Violation as violation:
            broken.append((seed, str(violation)))
    return tally, broken


def chunks(first: int, seeds: int, asked: part.Part = part.WHOLE) -> list[tuple[int, int]]:
    """Return the first seed and the number of seeds of each chunk of a part of them."""
    core = min(CORE, seeds)
    rest = asked.of_range(seeds - core)
    spans = ((first, first + core), (first + core + rest.start, first + core + rest.stop))
    return [(begin, min(CHUNK, end - begin)) for start, end in spans for begin in range(start, end, CHUNK)]


def main() -> int:
    """Run what the command line asks for; return 1 if a promise was broken, or a transition was never seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--story", action="store_true", help="print the whole time line of --seed")
    parser.add_argument("--mutants", action="store_true", help="how many seeds each deliberate bug takes to be noticed")
    asked = parser.parse_args()
    if asked.seed is not None:
        told = story(asked.seed, whole=asked.story)
        print(told)
        return int("VIOLATION" in told)
    if asked.mutants:
        lines, caught = hunt.table(asked.jobs, part.asked())
        print("\n".join(lines))
        return int(not caught)
    began = time.monotonic()
    total, broken = Tally(), list[tuple[int, str]]()
    firsts, sizes = zip(*chunks(asked.first, asked.seeds, part.asked()), strict=True)
    with ProcessPoolExecutor(asked.jobs) as pool:
        for tally, found in pool.map(chunk, firsts, sizes):
            total.add(tally)
            broken += found
    took = time.monotonic() - began
    print("\n".join(total.lines()))
    print(f"{sum(sizes)} of {asked.seeds} seeds, {sum(sizes) / took:.1f} per second with {asked.jobs} job(s)")
    for seed, text in broken:
        print(f"seed {seed}: {text}")
    if broken:
        print()
        print(story(broken[0][0]))
    unseen = set(total.missing()) - set(RARE) if sum(sizes) >= SEE_ALL else set()
    for transition in sorted(unseen):
        print(f"in {sum(sizes)} seeds no schedule has seen {transition}")
    return 1 if broken or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
