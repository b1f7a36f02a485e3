"""The matrix: every fault of the registry at every fail point, several cells side by side, and what came of them."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import pytest

from tests.crashes.cases import CASES, alias, without_case
from tests.crashes.containers import Harbour, Voyage
from tests.crashes.points import GUARDED, POINTS, Point
from tests.crashes.run import Run
from tests.crashes.slot import Slot
from tests.part import Part
from trogdor_bus.registry import registry
from trogdor_bus.spec import TaskSpec

SLOTS = 6
TIMED_SLOTS = 2
"""So many at once where the time to heal after a SIGKILL is measured: more would measure each other."""
BACKENDS = {"plain": "", "legacy": "-legacy"}


class Cell(msgspec.Struct, frozen=True):
    """A fault at a fail point, in a kind of slot; with `leak`, whoever heals leaves that."""

    fault: type[TaskSpec]
    point: Point
    where: str = "plain"
    leak: str = ""

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"{alias(self.fault)} / {self.point.name}"


class Result(msgspec.Struct, frozen=True):
    """What came of a cell: nothing said is good. `healed_s` is -1 if healing was not measured."""

    cell: Cell
    failure: str = ""
    skipped: str = ""
    healed_s: float = -1
    took_s: float = 0


class Matrix(msgspec.Struct, frozen=True):
    """The cells, the faults for which nothing is known, and how many cells cannot be, by reason."""

    cells: tuple[Cell, ...]
    unknown: tuple[str, ...]
    unfit: dict[str, int]
    faults: int
    points: int


def generate(points: Iterable[Point] = POINTS) -> Matrix:
    """Return the whole matrix, from the registry."""
    cells: list[Cell] = []
    unfit: Counter[str] = Counter()
    faults = [cls for cls in registry().by_tag.values() if cls in CASES]
    points = tuple(points)
    for point in points:
        for fault in faults:
            if why := point.unfit(CASES[fault]):
                unfit[f"{point.name}: {why}"] += 1
            else:
                cells.append(Cell(fault, point, point.where))
    return Matrix(tuple(cells), tuple(without_case()), dict(unfit), len(faults), len(points))


def sample(matrix: Matrix) -> tuple[Cell, ...]:
    """Return one cell for each kind of fail point, with faults in turn."""
    kinds: dict[str, list[Cell]] = {}
    for cell in matrix.cells:
        kinds.setdefault(cell.point.kind, []).append(cell)
    return tuple(found[5 * number % len(found)] for number, found in enumerate(kinds.values()))


def in_part(matrix: Matrix, part: Part) -> tuple[Cell, ...]:
    """Return the sample and the cells of a part: together the parts have all of them."""
    always = set(sample(matrix))
    return tuple(cell for cell in matrix.cells if cell in always or part.has(f"{cell.name} {cell.where}"))


def run_all(cells: Sequence[Cell], slots: int = SLOTS, say: Callable[[str], None] = lambda text: None) -> list[Result]:
    """Run the cells side by side and return what came of each; those that measure the guard come first, apart."""
    timed = [cell for cell in cells if cell.point.group == GUARDED]
    rest = [cell for cell in cells if cell.point.group != GUARDED]
    return _side_by_side(timed, min(slots, TIMED_SLOTS), say) + _side_by_side(rest, slots, say)


def _side_by_side(cells: Sequence[Cell], slots: int, say: Callable[[str], None]) -> list[Result]:
    results: list[Result] = []
    threads: list[threading.Thread] = []
    for where, most in (("container", 1), ("legacy", 1), ("plain", slots)):
        left: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        mine = [cell for cell in cells if cell.where == where]
        for cell in mine:
            left.put(cell)
        for number in range(min(most, len(mine))):
            name = f"x{os.getpid()}{where[0]}{number}"
            threads.append(threading.Thread(target=_work, args=(name, where, left, results, say)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    never = [cell for cell in cells if all(result.cell is not cell for result in results)]
    return results + [Result(cell, failure="it was never run") for cell in never]


def _work(
    name: str, where: str, left: queue.SimpleQueue[Cell], results: list[Result], say: Callable[[str], None]
) -> None:
    """Take cells from the queue until it is empty; a slot in which one failed is made anew."""
    slot: Slot | Harbour | None = None
    while True:
        try:
            cell = left.get_nowait()
        except queue.Empty:
            break
        began, result = time.monotonic(), Result(cell)
        try:
            if slot is None:
                slot = Harbour(name) if where == "container" else Slot(name, BACKENDS[where])
                slot.up()
            result = _run(slot, cell)
            if result.failure:
                slot.down()
                slot = None
        except pytest.skip.Exception as skipped:
            result = Result(cell, skipped=str(skipped))
            if slot is not None:
                slot.down()
                slot = None
        except (Exception, pytest.fail.Exception) as error:
            result = Result(cell, failure=f"{result.failure}\nthe lab: {type(error).__name__}: {error}")
            name, slot = f"{name}x", None  # what is left of that lab is for a person to look at
        results.append(msgspec.structs.replace(result, took_s=time.monotonic() - began))
        verdict = "FAILED" if result.failure else "skipped" if result.skipped else "ok"
        say(f"{verdict:8}{results[-1].took_s:5.1f} s  {cell.name}")
    if slot is not None:
        slot.down()


def _run(slot: Slot | Harbour, cell: Cell) -> Result:
    """Run one cell and see that everything is as before."""
    run: Run | Voyage
    if isinstance(slot, Harbour):
        run = Voyage(slot, cell.fault)
    else:
        name = re.sub(r"[^a-z0-9]+", "-", cell.point.name.lower()).strip("-")
        run = Run(slot, cell.fault, name, backend=BACKENDS[cell.where], leak=cell.leak)
    try:
        cell.point.happen(run)
        run.must_be_as_before()
        run.end()
    except (Exception, pytest.fail.Exception) as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return Result(cell, failure=f"{type(error).__name__}: {error}\n{where}    {run.told()}")
    return Result(cell, healed_s=-1 if run.healed_s is None else run.healed_s)


def report(matrix: Matrix, results: Sequence[Result], took_s: float) -> str:
    """Return the size, the failures with their stories, and the times to heal."""
    lines = [
        f"{matrix.faults} faults x {matrix.points} fail points = {matrix.faults * matrix.points} cells: "
        f"{len(results)} run in {took_s:.0f} s, {sum(matrix.unfit.values())} cannot be",
    ]
    lines += [f"  {count} cannot be: {why}" for why, count in matrix.unfit.items()]
    runs = Counter(result.cell.point.name for result in results)
    lines += [f"  {count} cells: {name}" for name, count in runs.items()]
    lines += [f"FAILED: the registry has {tag}, and tests/crashes/cases.py has no case of it" for tag in matrix.unknown]
    lines += [f"skipped: {result.cell.name}: {result.skipped}" for result in results if result.skipped]
    lines += [f"FAILED: {result.cell.name}: {result.failure}" for result in results if result.failure]
    lines += ["time to heal, s:                                p50    p99  worst"]
    groups: dict[str, list[float]] = {}
    for result in results:
        if result.healed_s >= 0 and result.cell.point.group:
            groups.setdefault(result.cell.point.group, []).append(result.healed_s)
    for group, times in sorted(groups.items()):
        times.sort()
        cuts = [times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99)]
        lines.append(f"  {group:38} n={len(times):3}  {cuts[0]:5.2f}  {cuts[1]:5.2f}  {times[-1]:5.2f}")
    return "\n".join(lines)


def failed(matrix: Matrix, results: Sequence[Result]) -> bool:
    """Return whether the matrix as a whole failed."""
    return bool(matrix.unknown) or any(result.failure for result in results)
