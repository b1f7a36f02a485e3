"""A machine under test in memory: ordered rules and stopped processes, some of which are not ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from random import Random
from typing import Any

from tests.agents.simdisk import CrashPoints
from trogdor_bus.actions import Action
from trogdor_bus.actions.network import BlockFrom, BlockPorts
from trogdor_bus.actions.process import Suspend
from trogdor_bus.actions.program import RunCommand
from trogdor_bus.errors import CannotHealError, HostError, NotYetError, RefusedError
from trogdor_bus.platform import Operation, Prepared, Seen, Step, Surroundings, Verb

FOREIGN = ("drop from 192.0.2.1", "accept established", "stopped zookeeper")
"""What the machine has of its own: rules in order, and a process that somebody else stopped."""


class Fuse(CrashPoints):
    """Ends the world at the n-th moment from now, if it is lit."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def visit(self, moment: str) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                self.at = len(self.passed)
                super().visit(moment)


class Machine:
    """A `Platform` that keeps a list of effects; ours go to the front, and what is shared stays for the others.

    A worker's rules hang on its chain: it is made first, and cannot go while one of them is there. `applied` says who
    has which effect, as the platform saw it; `leaked` are those whose record was lost with the state directory; `on_do`
    is told of every step that is done; `more` are addresses beside the first one. `over` says how the programs of
    workers ended by themselves, before they were told to. Lanes that are `hanging` do nothing, and `failed` are the
    workers of which an undo failed.
    """

    def __init__(self, random: Random, address: str, on_do: Callable[[int, str], None]) -> None:
        self.points = Fuse()
        self.effects = list(FOREIGN)
        self.applied: set[tuple[int, str]] = set()
        self.leaked: set[str] = set()
        self.more: tuple[str, ...] = ()
        self.hanging: set[str] = set()
        self.failed: set[int] = set()
        self.over: dict[int, str] = {}
        self._told: set[int] = set()
        self.flaky = self.waits = 0.0
        self.sticky = self.slippery = self.cursed = False
        self._random, self._address, self._on_do = random, address, on_do
        self._boots = 1

    def reboot(self) -> None:
        """Forget everything that only a kernel knows; what is the machine's own comes back with the boot."""
        self._boots += 1
        self.hanging.clear()
        self.effects = list(FOREIGN)
        self.applied.clear()
        self.leaked.clear()
        self.more = ()
        self.over.clear()

    def end_program(self, worker: int, error: str) -> None:
        """Let the program of a worker end by itself, if it runs, and was not told to."""
        if program(worker) in self.effects and worker not in self._told:
            self.over.setdefault(worker, error)

    def tell_to_end(self, worker: int) -> None:
        """From now on its program does not end by itself."""
        self._told.add(worker)

    def leak(self, workers: Collection[int]) -> None:
        """Take what these workers did as nobody's: nothing is left that could tell."""
        lost = {(worker, effect) for worker, effect in self.applied if worker in workers}
        self.applied -= lost
        self.leaked |= {effect for _, effect in lost if effect in self.effects and effect not in FOREIGN}

    def undo_by_hand(self) -> None:
        """Let somebody take away what is nobody's."""
        self.effects = [effect for effect in self.effects if effect not in self.leaked]
        self.leaked.clear()

    def held(self) -> list[tuple[int, str]]:
        """Return which worker's effects are in force."""
        return [(worker, effect) for worker, effect in self.applied if effect in self.effects]

    @property
    def healthy(self) -> bool:
        """Whether every undo works."""
        return not (self.flaky or self.sticky or self.slippery or self.cursed)

    def flush(self) -> None:
        """Let somebody remove our rules from outside."""
        self.effects = [effect for effect in self.effects if effect.startswith("stopped") or effect in FOREIGN]

    def addresses(self) -> tuple[str, ...]:
        return (self._address, *self.more)

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def lane(self, verb: Verb, what: Step | Action | None) -> str:
        match what:
            case Step(do={"effect": str(effect)}):
                processes = effect.startswith("stopped") or effect.endswith("program")
                return "search" if verb in ("search", "again") and processes else "processes" if processes else "rules"
            case Suspend() | RunCommand():
                return "search"
        return "rules"

    def alone(self, steps: Sequence[Step]) -> AbstractContextManager[None]:
        return nullcontext()

    def prepare(self, worker: int, action: Action, surroundings: Surroundings, held: Sequence[Step]) -> Prepared:
        self._fail("prepare")
        match action:
            case BlockFrom(peers=peers):
                chain = () if (worker, f"{worker}: chain") in self.applied else (f"{worker}: chain",)
                effects = [*chain, *(dropped(worker, peer.node, one) for peer in peers for one in peer.addresses)]
            case BlockPorts(ports=ports):
                effects = [f"{worker}: chain", *(f"{worker}: drop port {port}" for port in ports)]
            case RunCommand():
                effects = [program(worker)]
            case Suspend(match=match):
                effects = [f"stopped {match.java or match.command}"]
            case _:
                raise RefusedError("not on this machine")
        steps = []
        for effect in effects:
            ours = effect not in self.effects or _held(held, effect)
            steps.append(Step({"worker": worker, "effect": effect}, {"worker": worker, "effect": effect, "ours": ours}))
        return Prepared(tuple(steps))

    def do(self, step: Step) -> None:
        worker, effect = step.do["worker"], step.do["effect"]
        self.points.visit("before do")
        self._wait(effect)
        self._fail("do")
        self._on_do(worker, effect)
        if self.sticky and self._random.random() < 0.5:
            raise HostError("device busy")
        self.applied.add((worker, effect))
        if effect not in self.effects:
            self.effects.insert(0, effect)
        self._fail("read back")
        self.points.visit("after do")

    def undo_many(
        self, many: Sequence[tuple[Step, Sequence[Step], Callable[[Operation], None]]]
    ) -> list[str | Exception]:
        return [_caught(self.undo, *one) for one in many]

    def residue_many(self, many: Sequence[tuple[Step, Sequence[Step]]]) -> list[tuple[str, ...] | Exception]:
        return [self.residue(*one) for one in many]

    def look_many(self, steps: Sequence[Step]) -> list[Seen | Exception]:
        return [self.look(step) for step in steps]

    def undo(self, step: Step, held: Sequence[Step], note: Callable[[Operation], None]) -> str:
        try:
            return self._undo(step, held)
        except (HostError, CannotHealError):
            self.failed.add(step.undo["worker"])
            raise

    def _undo(self, step: Step, held: Sequence[Step]) -> str:
        worker, effect = step.undo["worker"], step.undo["effect"]
        self.points.visit("before undo")
        self._told.add(worker)
        self._wait(effect)
        self._fail("undo")
        if self.sticky:
            raise CannotHealError(f"{effect}: device busy")
        if effect.endswith(": chain") and any(one.startswith(f"{worker}: drop") for one in self.effects):
            raise HostError(f"{effect}: too many links")
        said = "" if effect in self.effects else f"gone: {effect}"
        if step.undo["ours"] and effect in self.effects and not _held(held, effect):
            if self.slippery and self._random.random() < 0.5:
                self.failed.add(worker)
                return ""
            self.effects.remove(effect)
        self.applied.discard((worker, effect))
        self._fail("read back")
        self.points.visit("after undo")
        return said

    def _wait(self, effect: str) -> None:
        """Processes take their time; rules of one chain have an order."""
        if (effect.startswith("stopped") or effect.endswith(": program")) and self._random.random() < self.waits:
            raise NotYetError("it goes on by itself")

    def again(self, step: Step, surroundings: Surroundings, held: Sequence[Step]) -> tuple[Step, ...]:
        return (step,)

    def by_hand(self, step: Step) -> str:
        return f"remove '{step.undo['effect']}'"

    def disturbance(self, step: Step) -> str:
        return "" if step.do["effect"] in self.effects else f"{step.do['effect']} is gone"

    def look(self, step: Step) -> Seen:
        worker = step.do["worker"]
        ended = self.over.get(worker) if step.do["effect"] == program(worker) else None
        if step.do["effect"].startswith("stopped"):
            return Seen(unsure=True)
        return Seen(self.disturbance(step), ended=ended)

    def search(self, step: Step) -> Seen:
        """Return what only a search for processes can tell."""
        return Seen(self.disturbance(step))

    def search_many(self, steps: Sequence[Step]) -> list[Seen | Exception]:
        return [self.search(step) for step in steps]

    def residue(self, step: Step, held: Sequence[Step]) -> tuple[str, ...]:
        effect = step.undo["effect"]
        return (effect,) if step.undo["ours"] and effect in self.effects and not _held(held, effect) else ()

    def _fail(self, what: str) -> None:
        if self.flaky and self._random.random() < self.flaky:
            raise HostError(f"cannot {what}: Resource temporarily unavailable")


def _caught(work: Callable[..., str], *arguments: Any) -> str | Exception:
    try:
        return work(*arguments)
    except Exception as error:
        return error


def program(worker: int) -> str:
    """Return what a program of a worker is among the effects."""
    return f"{worker}: program"


def dropped(worker: int, node: str, address: str) -> str:
    """Return the rule of a worker that drops what comes from an address of a node."""
    return f"{worker}: drop from {node} {address}"


def _held(held: Sequence[Step], effect: str) -> bool:
    return any(step.undo["effect"] == effect and step.undo["ours"] for step in held)
