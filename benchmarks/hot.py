"""Where the time of the bus benchmark goes: `python -m benchmarks.hot [AGENTS]` profiles coordinator and agents."""

from __future__ import annotations

import asyncio
import pstats
import sys
import tempfile
from pathlib import Path

from benchmarks.bus import running, submit_rounds
from benchmarks.results import median, ms

ROUNDS = 40


def main() -> None:
    """Print, for the coordinator and for one process of agents, the functions with the most time of their own."""
    agents = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory(prefix="trogdor-bus-bench-") as name:
        directory = Path(name)
        profiled = (sys.executable, "-m", "cProfile", "-o", str(directory / "coordinator"), "-m", "trogdor_bus")
        with running(agents, directory, coordinator=profiled, profile=str(directory / "crowd")) as url:
            samples = asyncio.run(submit_rounds(url, directory / "keys", agents, ROUNDS))
        print(f"{agents} agents, p50 {ms(median(samples))} ms under the profiler, {ROUNDS} rounds")
        for what in ("coordinator", "crowd.agents0"):
            print(f"\n=== {what}")
            stats = pstats.Stats(str(directory / what))
            stats.strip_dirs().sort_stats("tottime").print_stats(35)
            stats.sort_stats("cumulative").print_stats(r"machine|service|store|zmq|ledger|orders|perform|journal", 40)


if __name__ == "__main__":
    main()
