"""Run schedules: `python -m tests.sim --seeds N [--first S] [--jobs J]`, or one: `--seed S [--story]`.

`--mutants` breaks the system on purpose, in each way that mutants.py lists, and says how soon that was noticed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.sim import hunt
from tests.sim.schedule import run, story
from tests.sim.tally import Tally
from tests.sim.world import Violation

CHUNK = 25


def chunk(first: int, seeds: int) -> tuple[Tally, list[tuple[int, str]]]:
    """Run some seeds; return what was seen, and the seeds that broke a promise with the reason."""
    tally, broken = Tally(), []
    for seed in range(first, first + seeds):
        try:
            tally.add(run(seed))
        except Violation as violation:
            broken.append((seed, str(violation)))
    return tally, broken


def main() -> int:
    """Run what the command line asks for; return 1 if a promise was broken."""
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
        lines, caught = hunt.table(asked.jobs)
        print("\n".join(lines))
        return int(not caught)
    began = time.monotonic()
    total, broken = Tally(), list[tuple[int, str]]()
    with ProcessPoolExecutor(asked.jobs) as pool:
        firsts = range(asked.first, asked.first + asked.seeds, CHUNK)
        sizes = [min(CHUNK, asked.first + asked.seeds - first) for first in firsts]
        for tally, found in pool.map(chunk, firsts, sizes):
            total.add(tally)
            broken += found
    took = time.monotonic() - began
    print("\n".join(total.lines()))
    print(f"{asked.seeds / took:.1f} seeds per second with {asked.jobs} job(s)")
    for seed, text in broken:
        print(f"seed {seed}: {text}")
    if broken:
        print()
        print(story(broken[0][0]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
