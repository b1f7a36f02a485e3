"""A machine under test in memory: a set of effects, with an undo that can be repeated and shares what others hold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tests.agents.simdisk import CrashPoints
from trogdor_bus.actions import Action, ProcessMatch
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.errors import RefusedError
from trogdor_bus.messages import Order
from trogdor_bus.platform import Operation, Prepared, Step, Surroundings

FOREIGN = frozenset({"foreign-rule", "stopped-9"})
"""What was there before us: somebody's rule, and a process that somebody stopped."""


def order(worker: int) -> Order:
    """Return an order: a rule of its own, a process (7) that all orders stop, and one (9) that stood still before."""
    suspended = tuple(Suspend(match=ProcessMatch(port=port)) for port in (7, 9))
    actions: tuple[Action, ...] = (BlockPorts(ports=(1000 + worker,)), *suspended)
    return Order(worker=worker, task=f"task-{worker}", journal="j", remaining_ms=1000, actions=actions)


class Machine:
    """A `Platform`. Its failures are lists by method, one item per call: None, or the error to raise."""

    def __init__(self) -> None:
        self.points = CrashPoints()
        self.effects: set[str] = set(FOREIGN)
        self.done: Counter[tuple[int, str]] = Counter()
        self.failures: dict[str, list[Exception | None]] = {}
        self.warnings: tuple[str, ...] = ()
        self.sticky: set[str] = set()
        self.extra: object = None
        self.on_prepare: Callable[[], object] = lambda: None
        self.held = False

    def addresses(self) -> tuple[str, ...]:
        return ()

    def boot_id(self) -> str:
        return "boot"

    @contextlib.contextmanager
    def alone(self, steps: Sequence[Step]) -> Iterator[None]:
        self._may_fail("alone")
        assert not self.held, "the lock cannot be taken twice"
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def prepare(self, worker: int, action: Action, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        name = action.__struct_config__.tag
        self.points.visit(f"before prepare {name}")
        self._may_fail("prepare")
        self.on_prepare()
        match action:
            case BlockPorts():
                effect = f"rule-{worker}"
                ours = True
            case BlockFrom(peers=peers):
                effect = f"rule-{worker}-{'-'.join(address for peer in peers for address in peer.addresses)}"
                ours = True
            case Suspend(match=match):
                effect = f"stopped-{match.port}"
                ours = effect not in self.effects or _holds(held, effect)
            case _:
                raise RefusedError("not on this machine")
        self.points.visit(f"after prepare {name}")
        undo = {"effect": effect, "ours": ours}
        do = {"worker": worker, "effect": effect, "extra": self.extra}
        return Prepared((Step(do, undo),), self.warnings)

    def do(self, step: Step) -> None:
        assert self.held
        effect = step.do["effect"]
        self.points.visit(f"before do {effect}")
        self.done[step.do["worker"], effect] += 1
        self.effects.add(effect)
        self._may_fail("do")
        self.points.visit(f"after do {effect}")

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        assert self.held
        effect = step.undo["effect"]
        self.points.visit(f"before undo {effect}")
        self._may_fail("undo")
        said = "" if effect in self.effects else f"gone: {effect}"
        if step.undo["ours"] and not _holds(held, effect):
            self.effects -= {effect} - self.sticky
        self.points.visit(f"after undo {effect}")
        return said

    def disturbance(self, step: Step) -> str:
        self._may_fail("disturbance")
        effect = step.do["effect"]
        return "" if effect in self.effects else f"{effect} is gone"

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        return (step,)

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        self._may_fail("residue")
        effect = step.undo["effect"]
        left = step.undo["ours"] and effect in self.effects and not _holds(held, effect)
        return (effect,) if left else ()

    def by_hand(self, step: Step) -> str:
        return f"remove {step.undo['effect']}" if step.undo["ours"] else ""

    def _may_fail(self, method: str) -> None:
        failures = self.failures.get(method)
        error = failures.pop(0) if failures else None
        if error is not None:
            raise error


def _holds(held: Sequence[Step], effect: str) -> bool:
    return any(step.undo["effect"] == effect and step.undo["ours"] for step in held)
