"""The crash matrix under pytest: a sample in `make test`, all of it and the planted leaks in `make matrix`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests import part
from tests.crashes import cases, matrix
from tests.crashes.matrix import Cell, Result
from tests.crashes.points import GUARDED, POINTS, Point
from tests.crashes.run import Run
from tests.crashes.slot import until
from tests.support import require, require_namespaces
from trogdor_bus.faults.network import PortBlockFaultSpec
from trogdor_bus.faults.noop import NoOpTaskSpec
from trogdor_bus.faults.process import TrogdorProcessStopFaultSpec
from trogdor_bus.registry import registry
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import Outcome

AIM_S = 1.0


def test_every_fault_meets_every_fail_point_or_it_is_said_why_not() -> None:
    whole = matrix.generate()
    assert whole.unknown == ()
    assert len(whole.cells) + sum(whole.unfit.values()) == len(cases.performed()) * len(POINTS)
    assert {cell.fault for cell in whole.cells} == set(cases.performed().values())
    for point in POINTS:
        assert any(cell.point is point for cell in whole.cells), f"no fault meets {point.name}"


def test_a_fault_without_a_case_makes_the_matrix_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[type[TaskSpec], cases.Case] = {f: c for f, c in cases.CASES.items() if f is not PortBlockFaultSpec}
    monkeypatch.setattr(cases, "CASES", known)
    monkeypatch.setattr(matrix, "CASES", known)
    whole = matrix.generate()
    assert whole.unknown == ("trogdor_bus.faults.network.PortBlockFaultSpec",)
    assert matrix.failed(whole, [])
    assert "FAILED: the registry has trogdor_bus.faults.network.PortBlockFaultSpec" in matrix.report(whole, [], 0)


def test_every_example_becomes_a_spec_that_can_be_submitted() -> None:
    for fault in cases.performed().values():
        for inside in (False, True):
            spec = cases.spec_of(fault, Path("/lab"), inside=inside)
            assert type(registry().decode(spec)) is fault


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_a_sample_of_the_matrix() -> None:
    require_namespaces()
    whole = matrix.generate()
    _must_be_good(whole, matrix.sample(whole), slots=4)


@pytest.mark.matrix
@pytest.mark.core  # it takes its part of the cells itself
@pytest.mark.timeout(1200)
def test_the_whole_matrix() -> None:
    require_namespaces()
    whole = matrix.generate()
    results = _must_be_good(whole, matrix.in_part(whole, part.asked()), slots=matrix.SLOTS)
    times = sorted(result.healed_s for result in results if result.cell.point.group == GUARDED)
    assert times[-1] < 10 * AIM_S, f"healing after a SIGKILL took {times[-1]:.1f} s at worst"


def _must_be_good(whole: matrix.Matrix, cells: tuple[Cell, ...], slots: int) -> list[Result]:
    began = time.monotonic()
    results = matrix.run_all(cells, slots)
    told = matrix.report(whole, results, time.monotonic() - began)
    print(told)
    assert not matrix.failed(whole, results), told
    skipped = {result.skipped for result in results if result.skipped}
    require(not skipped, f"cells were skipped: {', '.join(sorted(skipped))}", "see each of them")
    return results


def forgotten(run: Run) -> None:
    """Kill the agent while the fault is in force; the healer says that it healed."""
    run.start_agent()
    run.submit()
    run.await_active()
    run.agent().send(signal.SIGKILL)
    until(lambda: run.count("heal 1 ends with 0"), "the healer to end")
    run.must_end(Outcome.RESTARTED)


LEAKS: list[tuple[str, type[TaskSpec], str, str]] = [
    ("iptables", PortBlockFaultSpec, "plain", "+ iptables-nft-save: -A TB-"),
    ("ip6tables", PortBlockFaultSpec, "plain", "+ ip6tables-nft-save: -A TB-"),
    ("iptables", PortBlockFaultSpec, "legacy", "+ iptables-legacy-save: -A TB-"),
    ("ip6tables", PortBlockFaultSpec, "legacy", "+ ip6tables-legacy-save: -A TB-"),
    ("thaw", TrogdorProcessStopFaultSpec, "plain", "+ process java1: stopped"),
    ("qdisc", NoOpTaskSpec, "plain", "+ qdisc tbf 5: dev lo"),
    ("mount", NoOpTaskSpec, "plain", "+ mount /run/trogdor-bus/"),
]


@pytest.mark.matrix
@pytest.mark.core
@pytest.mark.timeout(300)
def test_every_planted_leak_turns_its_cell_red() -> None:
    require_namespaces()
    point = Point("a leak is planted", "leak", forgotten)
    cells = {Cell(fault, point, where, leak): seen for leak, fault, where, seen in LEAKS}
    results = matrix.run_all(tuple(cells), 3)
    assert len(results) == len(LEAKS)
    for result in results:
        assert "is not as before" in result.failure, f"{result.cell.leak}: {result.failure or 'nobody saw it'}"
        assert cells[result.cell] in result.failure, result.failure
