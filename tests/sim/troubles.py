"""What goes wrong in one simulated cluster, and when."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.sim.agent import SimAgent
from tests.sim.coordinator import SimCoordinator
from tests.sim.skew import Speech
from tests.sim.store import SimStore
from tests.sim.world import World
from trogdor_bus.transports.memory import COORDINATOR
from trogdor_bus.transports.memory_log import MemoryKeeper

TROUBLE_MS = 300_000
"""How long the troubles last: five simulated minutes."""
FIRST_MS, LAST_MS = 4_000, TROUBLE_MS - 40_000
AT_LEAST = 5
HOURS_MS = 3_600_000

Trouble = Callable[[int], None]
NOT_OURS: tuple[Speech, ...] = ("newer", "newer", "older")


class Troubles:
    """Plans the troubles of one world, each at a random time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random: Random = world.random
        self._names = list(world.nodes)
        self._wrong_clock = False

    def plan(self) -> None:
        """Choose what happens, and put it on the world's heap."""
        random = self._random
        kinds: list[Trouble] = [
            self._crash_agent,
            self._reboot,
            self._freeze_agent,
            self._cut,
            self._cut,
            self._crash_coordinator,
            self._crash_coordinator,
            self._freeze_coordinator,
        ]
        chosen = random.sample(kinds, random.randint(AT_LEAST, len(kinds)))
        self._world.tally.counts["crashes, freezes and cuts"] += len(chosen)
        for trouble in chosen:
            trouble(self._some_time())
        rare: list[tuple[float, Trouble]] = [
            (0.5, self._end_agent),
            (0.3, self._suspend),
            (0.2, self._fill_disk),
            (0.3, self._stick),
            (0.15, self._slip),
            (0.2, self._flush),
            (0.15, self._copy),
            (0.15, self._wipe_living),
            (0.15, self._wipe_dead),
            (0.2, self._set_clock),
            (0.06, self._lose_store),
            (0.4, self._announce),
            (0.25, self._rival),
            (0.25, self._succeed),
            (0.3, self._hang),
            (0.1, self._poison_frames),
            (0.1, self._curse),
            (0.1, self._poison_task),
            (0.1, self._refuse),
            (0.5, self._skew_agent),
            (0.3, self._skew_coordinator),
        ]
        for chance, trouble in rare:
            if random.random() < chance:
                trouble(self._some_time())
        for agent in self._world.agents:
            agent.platform.flaky = random.choice((0.0, 0.0, 0.03))
            agent.platform.waits = random.choice((0.0, 0.0, 0.2))

    def _some_time(self) -> int:
        return self._random.randint(FIRST_MS, LAST_MS)

    def _at(self, when: int, what: Callable[[], None], ids: tuple[str, ...], text: str) -> None:
        def happen() -> None:
            self._world.tell(ids, "--- {}", text)
            self._world.tally.counts[text] += 1
            what()

        self._world.at(when, happen)

    def _later(self, at: int, least_ms: int, most_ms: int, what: Callable[[], None]) -> None:
        self._world.at(at + self._random.randint(least_ms, most_ms), what)

    # --- agents and their hosts -------------------------------------------------------------------------------------

    def _agent(self) -> SimAgent:
        return self._world.nodes[self._random.choice(self._names)]

    def _crash_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.crash, (agent.node,), "agent crashes")
        self._later(at, 100, 25_000, agent.start)

    def _reboot(self, at: int) -> None:
        agent, empty = self._agent(), self._random.random() < 0.2

        def reboot() -> None:
            agent.crash(power=True)
            if empty:
                agent.wipe()

        self._at(at, reboot, (agent.node,), "reboot with an empty disk" if empty else "reboot")
        self._later(at, 3_000, 30_000, agent.start)

    def _end_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.end, (agent.node,), "agent is told to end")
        self._later(at, 5_000, 20_000, agent.start)

    def _freeze_agent(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.freeze, (agent.node,), "agent freezes")
        self._later(at, 500, 40_000, agent.thaw)

    def _suspend(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.suspend, (agent.node,), "machine is suspended")
        self._later(at, 2_000, 120_000, agent.thaw)

    def _fill_disk(self, at: int) -> None:
        agent = self._agent()

        def fill(full: bool) -> None:
            agent.disk.full = full

        self._at(at, lambda: fill(True), (agent.node,), "disk fills up")
        self._later(at, 2_000, 30_000, lambda: fill(False))

    def _stick(self, at: int) -> None:
        agent = self._agent()

        def stick(sticky: bool) -> None:
            agent.platform.sticky = sticky

        self._at(at, lambda: stick(True), (agent.node,), "undo sticks")
        self._later(at, 5_000, 60_000, lambda: stick(False))

    def _slip(self, at: int) -> None:
        agent = self._agent()

        def slip(slippery: bool) -> None:
            agent.platform.slippery = slippery

        self._at(at, lambda: slip(True), (agent.node,), "undo does nothing and says nothing")
        self._later(at, 20_000, 100_000, lambda: slip(False))

    def _hang(self, at: int) -> None:
        """Let whatever touches the rules or the processes of one machine, or searches these, hang for a while."""
        agent, lane = self._agent(), self._random.choice(("rules", "processes", "search"))
        self._at(at, lambda: agent.hang(lane, hangs=True), (agent.node,), f"{lane} hang")
        self._later(at, 20_000, 90_000, lambda: agent.hang(lane, hangs=False))

    def _flush(self, at: int) -> None:
        agent = self._agent()
        self._at(at, agent.platform.flush, (agent.node,), "somebody flushes the rules")

    def _announce(self, at: int) -> None:
        agent, address = self._agent(), f"10.90.0.{self._random.randint(1, 3)}"
        self._at(at, lambda: agent.announce(address), (agent.node,), "another address")

    def _wipe_living(self, at: int) -> None:
        agent, gone = self._agent(), self._random.random() < 0.5
        text = "state directory is removed" if gone else "state directory is emptied"
        self._at(at, lambda: agent.wipe(gone=gone), (agent.node,), text)
        self._later(at, 1_000, 30_000, agent.crash)
        self._later(at, 30_000, 38_000, agent.start)

    def _wipe_dead(self, at: int) -> None:
        agent = self._agent()

        def wipe() -> None:
            agent.crash()
            self._world.after(self._random.choice((0, 2_000)), lambda: agent.machine or agent.wipe())
            self._world.after(self._random.randint(2_500, 20_000), agent.start)

        self._at(at, wipe, (agent.node,), "agent crashes and its state is removed")

    def _copy(self, at: int) -> None:
        node = self._agent().node
        copy = SimAgent(self._world, node, "10.0.9.9", self._world.nodes[node].limits)
        self._world.agents.append(copy)
        self._at(at, copy.start, (node,), "copied name appears")
        self._later(at, 5_000, 40_000, copy.end)

    def _poison_frames(self, at: int) -> None:
        """Let every word with an order in it end the process that hears it."""
        agent = self._agent()

        def poison(poisoned: bool) -> None:
            agent.poisoned = poisoned

        self._at(at, lambda: poison(True), (agent.node,), "orders are poison")
        self._later(at, 3_000, 40_000, lambda: poison(False))

    def _curse(self, at: int) -> None:
        """Let every undo on a machine end in an error that nobody foresaw."""
        agent = self._agent()

        def curse(cursed: bool) -> None:
            agent.platform.cursed = cursed

        self._at(at, lambda: curse(True), (agent.node,), "undos are poison")
        self._later(at, 3_000, 60_000, lambda: curse(False))

    def _speech(self) -> tuple[Speech, str]:
        speech = self._random.choice(NOT_OURS)
        return speech, f"speaks {'a newer' if speech == 'newer' else 'an older'} version"

    def _skew_agent(self, at: int) -> None:
        """Let an agent speak another version for a while, as before all are upgraded."""
        agent, (speech, text) = self._agent(), self._speech()

        def speak(speech: Speech) -> None:
            agent.speech = speech

        self._at(at, lambda: speak(speech), (agent.node,), f"agent {text}")
        self._later(at, 5_000, 90_000, lambda: speak("ours"))

    # --- the bus ----------------------------------------------------------------------------------------------------

    def _cut(self, at: int) -> None:
        names = self._random.sample(self._names, self._random.randint(1, len(self._names)))
        way = self._random.choice(("to the agents", "to the coordinator", "both ways"))
        ways = [(COORDINATOR, name) for name in names if way != "to the coordinator"]
        ways += [(name, COORDINATOR) for name in names if way != "to the agents"]

        def cut() -> None:
            for src, dst in ways:
                self._world.cut(src, dst)

        def mend() -> None:
            for src, dst in ways:
                self._world.mend(src, dst)

        self._at(at, cut, tuple(names), f"bus cut {way}")
        self._later(at, 1_000, 40_000, mend)

    # --- coordinators -----------------------------------------------------------------------------------------------

    def _one(self) -> SimCoordinator:
        """Return some coordinator that runs, else the first."""
        return self._random.choice(self._world.running() or self._world.coordinators[:1])

    def _crash_coordinator(self, at: int) -> None:
        kind = self._random.choice(("process", "power", "commit", "publish"))

        def crash() -> None:
            coordinator = self._one()
            if kind in ("process", "power"):
                coordinator.crash(power=kind == "power")
            else:
                coordinator.crash_at = "commit" if kind == "commit" else "publish"
            self._world.after(self._random.randint(100, 20_000), coordinator.start)

        text = {"process": "crashes", "power": "loses power"}.get(kind, "is about to crash")
        self._at(at, crash, (), f"coordinator {text}")

    def _skew_coordinator(self, at: int) -> None:
        """Let a coordinator speak another version for a while, as before all are upgraded."""
        speech, text = self._speech()

        def speak() -> None:
            coordinator = self._one()
            coordinator.speech = speech
            self._world.after(self._random.randint(5_000, 60_000), lambda: stop(coordinator))

        def stop(coordinator: SimCoordinator) -> None:
            coordinator.speech = "ours"

        self._at(at, speak, (), f"coordinator {text}")

    def _freeze_coordinator(self, at: int) -> None:
        def freeze() -> None:
            coordinator = self._one()
            coordinator.freeze()
            self._world.after(self._random.randint(500, 20_000), coordinator.thaw)

        self._at(at, freeze, (), "coordinator freezes")

    def _poison_task(self, at: int) -> None:
        """Let a task end every coordinator that has it, at any beat and at any time."""

        def poison() -> None:
            tasks = [name for one in self._world.running() if one.machine for name in one.machine.view.tasks]
            self._world.poisoned = self._random.choice(tasks) if tasks else ""
            self._world.poison_stays = self._random.random() < 0.3

        def mend() -> None:
            self._world.poisoned = ""

        self._at(at, poison, (), "a task is poison")
        self._later(at, 3_000, 40_000, mend)

    def _refuse(self, at: int) -> None:
        """Let the disk of a coordinator's store refuse every write for a while."""

        def refuse() -> None:
            store = self._one().store
            store.refuses = True
            self._world.after(self._random.randint(500, 15_000), lambda: mend(store))

        def mend(store: SimStore) -> None:
            store.refuses = False

        self._at(at, refuse, (), "the store refuses")

    def _set_clock(self, at: int) -> None:
        """Let somebody set a coordinator's wall clock wrong; it reads it when it starts, soon."""
        self._wrong_clock = True
        wrong_ms = self._random.choice((-5, -1, 1, 5)) * HOURS_MS + self._random.randint(-HOURS_MS, HOURS_MS) // 2

        def jump() -> None:
            coordinator = self._one()
            self._world.wrong_clocks = True
            coordinator.wrong_ms = wrong_ms
            self._world.after(self._random.randint(0, 20_000), lambda: restart(coordinator))

        def restart(coordinator: SimCoordinator) -> None:
            coordinator.crash()
            self._world.after(self._random.randint(0, 5_000), coordinator.start)

        self._at(at, jump, (), "wall clock jumps")

    def _lose_store(self, at: int) -> None:
        def lose() -> None:
            self._world.rivals = True
            coordinator = self._one()
            coordinator.restore(self._world.new_store(), self._random.choice(("refuse", "adopt", "abort")))
            self._world.after(self._random.randint(500, 5_000), coordinator.start)

        self._at(at, lose, (), "store is lost")

    def _rival(self, at: int) -> None:
        """Let a second coordinator start while the first lives, is cut off, or starts at the same moment."""
        world, random = self._world, self._random
        backups_too: tuple[str, ...] = ("older backup", "restored backup")
        if self._wrong_clock:  # its old workers would have time left
            backups_too = ()
        kind = random.choice(("copy", "empty", "same epoch", *backups_too))
        backups: list[SimStore] = []
        if "backup" in kind:
            world.at(max(0, at - random.randint(500, 40_000)), lambda: backups.append(self._one().store.copy()))

        def appear() -> None:
            first = self._one()
            world.stores += 1
            world.rivals = True
            store = world.new_store() if kind == "empty" else (backups or [first.store.copy()])[0]
            if kind == "restored backup":
                first.restore(store, "refuse")
                world.after(random.randint(500, 5_000), first.start)
                return
            second = world.new_coordinator(store)
            if kind == "empty":
                second.orphans = random.choice(("refuse", "adopt", "abort"))
            elif kind == "same epoch":
                first.crash()
                world.after(random.randint(0, 500), first.start)
            elif random.random() < 0.5:
                first.cut_off = True
                world.after(random.randint(5_000, 60_000), lambda: mend(first))
            world.after(random.randint(0, 500), second.start)

        def mend(first: SimCoordinator) -> None:
            first.cut_off = False

        self._at(at, appear, (), f"rival coordinator: {kind}")

    def _succeed(self, at: int) -> None:
        """Let a coordinator go, for ever or for a while, and another one with an empty store take over from its log."""
        world, random = self._world, self._random
        world.keeper = MemoryKeeper()
        how = random.choice(("dies", "dies while it starts a task", "freezes", "is cut off", "is slow"))
        if random.random() < 0.5:
            out = at - random.randint(0, 15_000)
            self._at(out, lambda: world.log_out(True), (), "log is out")
            self._later(at, 500, 30_000, lambda: world.log_out(False))

        def go() -> None:
            first, second = self._one(), world.new_coordinator(world.new_store())
            second.takes_over = True
            if how == "dies":
                retire(first)
            elif how == "dies while it starts a task":
                first.crash_at = "replicate"
                follow(first, second, world.now + 60_000)
                return
            elif how == "freezes":
                first.freeze()
                world.after(random.randint(5_000, 60_000), first.thaw)
            elif how == "is slow":  # and the other one dies before it leads, and comes back when the first is gone
                first.freeze()
                world.after(1_000, second.start)
                world.after(2_000, second.crash)
                world.after(2_500, first.thaw)
                last = random.randint(20_000, 60_000)
                world.after(last, lambda: retire(first))
                world.after(last + random.randint(500, 15_000), second.start)
                return
            else:
                first.cut_off = True
                world.after(random.randint(5_000, 60_000), lambda: mend(first))
            world.after(random.randint(500, 15_000), second.start)

        def follow(first: SimCoordinator, second: SimCoordinator, until: int) -> None:
            if world.is_calm:
                return  # it has started none in all the time
            if first.retired or world.now > until:
                retire(first)
                second.start()
            else:
                world.after(1_000, lambda: follow(first, second, until))

        def mend(first: SimCoordinator) -> None:
            first.cut_off = False

        def retire(first: SimCoordinator) -> None:
            first.crash(power=True)
            first.retired = True

        self._at(at, go, (), f"coordinator {how}, another one takes over")
