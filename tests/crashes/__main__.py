"""`python -m tests.crashes [--slots N] [--only WORDS]`: run the matrix, or the cells whose name holds the words."""

from __future__ import annotations

import argparse
import sys
import time

from tests.crashes.matrix import SLOTS, failed, generate, report, run_all


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.crashes", description="Run the crash matrix.")
    parser.add_argument("--slots", type=int, default=SLOTS, help="cells side by side")
    parser.add_argument("--only", default="", help="cells whose name holds these words")
    asked = parser.parse_args()
    matrix = generate()
    cells = [cell for cell in matrix.cells if asked.only in cell.name]
    began = time.monotonic()
    results = run_all(cells, asked.slots, lambda text: print(text, flush=True))
    print(report(matrix, results, time.monotonic() - began))
    return int(failed(matrix, results))


if __name__ == "__main__":
    sys.exit(main())
