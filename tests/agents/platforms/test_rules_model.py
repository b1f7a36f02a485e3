"""The planner of rules against any order of overlapping faults, foreign rules and reloads of the firewall."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.agents.platforms.chains import BUILT_IN, Chains, KernelChains
from tests.agents.platforms.nodes import Node, one_node
from tests.effort import examples
from tests.support import require, require_namespaces
from trogdor_bus.actions import Peer
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.platforms.linux import commands, rules
from trogdor_bus.agents.platforms.linux.chains import Chain, Hook
from trogdor_bus.errors import HostError
from trogdor_bus.platform import Endpoint

WORKERS = 4
CONTROL = [Endpoint("10.0.0.250", (5560, 5561, 5562, 5563))]
FOREIGN = st.sampled_from(
    [
        "-j ACCEPT",
        "-s 10.0.0.2/32 -j DROP",
        "-s 10.0.0.0/24 -j ACCEPT",
        "-p tcp -m multiport --dports 22 -j ACCEPT",
        "-d 10.0.0.9/32 -j ACCEPT",
        "-j MINE",
        "-p udp -j MINE",
    ]
)
HOOKS = st.sampled_from(BUILT_IN)
RELOADED = "*filter\n:MINE - [0:0]\n-A INPUT -p udp -j MINE\n-A INPUT -j ACCEPT\n-A MINE -j RETURN\nCOMMIT\n"


def chains_of(worker: int) -> list[Chain]:
    """What worker 1 to 4 installs: they overlap in addresses, ports and hooks."""
    hooks: list[Hook] = ["INPUT"] if worker == 1 else ["OUTPUT"] if worker == 2 else ["INPUT", "OUTPUT"]
    found = []
    for hook in hooks:
        spared = rules.spare_control(CONTROL, [], local=False, hook=hook, family=4)
        if worker == 1:
            drops = rules.drop_sources([Peer("a", ("10.0.0.2", "10.0.0.3"))], 4, tracked=True)
        else:
            ports = BlockPorts(ports=tuple(range(9092, 9092 + worker * 6)))
            drops = rules.drop_ports(ports, hook, tracked=worker == 4)
        found.append(Chain(f"TB-{worker:08x}{'0' if hook == 'INPUT' else '1':>08}", hook, spared + drops))
    return found


def names_of(worker: int) -> list[str]:
    return [chain.name for chain in chains_of(worker)]


class Firewall(RuleBasedStateMachine):
    """`table` is what is there, `foreign` the same as if we had never been there."""

    def make_table(self) -> Chains:
        return Chains()

    @initialize()
    def begin(self) -> None:
        self.table = self.make_table()
        self.foreign = Chains()
        for name in (name for worker in range(1, WORKERS + 1) for name in names_of(worker)):
            self.foreign.chains[name] = []  # where foreign rules may lead, while a fault lasts
        self.active: set[int] = set()
        self.they_change(":MINE - [0:0]")
        self.they_change("-A MINE -j RETURN")

    # --- we ---------------------------------------------------------------------------------------------------------

    @rule(worker=st.integers(1, WORKERS))
    def install(self, worker: int) -> None:
        """Install, or install again."""
        chains = chains_of(worker)
        self.table.restore(rules.render_install(chains, self.table.read()))
        self.active.add(worker)
        now = self.table.read()
        for chain in chains:
            assert rules.deviation(chain, now) == ""
            assert now.chains[chain.hook][0] == f"-j {chain.name}"
            assert now.jumps(chain.name) == [chain.hook]
        self.table.restore(rules.render_install(chains, now))
        assert self.table.read() == now

    @rule(worker=st.integers(1, WORKERS))
    def remove(self, worker: int) -> None:
        """Remove, or remove again."""
        self._remove(worker)
        assert not rules.render_remove(names_of(worker), self.table.read()) or self._led_to(worker)

    @rule(worker=st.integers(1, WORKERS), hook=HOOKS, text=FOREIGN, how=st.sampled_from(["top", "flush", "reload"]))
    def change_while_they_do(self, worker: int, hook: str, text: str, how: str) -> None:
        """We read, they change something, we write: tried again if it fails, as the firewall's port does."""
        install = worker not in self.active
        for attempt in range(2):
            before = self.table.read()
            plan = (
                rules.render_install(chains_of(worker), before)
                if install
                else rules.render_remove(names_of(worker), before)
            )
            if attempt == 0:
                self._they(how, hook, text)
            try:
                if plan:
                    self.table.restore(plan)
                break
            except HostError:
                assert attempt == 0
        if install:
            self.active.add(worker)
            now = self.table.read()
            for chain in chains_of(worker):
                # Not first is possible, but then it is seen.
                first = now.chains[chain.hook][:1] == (f"-j {chain.name}",)
                assert first or how != "reload"
                assert (rules.deviation(chain, now) == "") or not first
        else:
            self._remove(worker)

    # --- they -------------------------------------------------------------------------------------------------------

    @rule(hook=HOOKS, text=FOREIGN)
    def they_append(self, hook: str, text: str) -> None:
        self.they_change(f"-A {hook} {text}")

    @rule(hook=HOOKS, text=FOREIGN, place=st.integers(0, 9))
    def they_insert(self, hook: str, text: str, place: int) -> None:
        self._insert(hook, text, place)
        if hook != "FORWARD" and place == 0 and self.table.chains[hook][1:] and self._ours(hook):
            what = [rules.deviation(chain, self.table.read()) for worker in self.active for chain in chains_of(worker)]
            assert any(what), "a rule above ours was not seen"

    @rule(hook=HOOKS, number=st.integers(0, 9))
    def they_delete(self, hook: str, number: int) -> None:
        theirs = self.foreign.chains[hook]
        if theirs:
            self.they_change(f"-D {hook} {theirs[number % len(theirs)]}")

    @rule(hook=HOOKS)
    def they_flush_a_chain(self, hook: str) -> None:
        self.they_change(f"-F {hook}")

    @rule()
    def they_flush_everything(self) -> None:
        for name in list(self.table.chains):
            self.table.restore(f"*filter\n-F {name}\nCOMMIT\n")
        for rules_ in self.foreign.chains.values():
            rules_.clear()

    @rule()
    def they_reload(self) -> None:
        self._they("reload", "", "")

    @precondition(lambda self: self.active)
    @rule(hook=HOOKS, number=st.integers(0, 9), way=st.sampled_from(["-j", "-g"]))
    def they_lead_to_a_chain_of_ours(self, hook: str, number: int, way: str) -> None:
        present = [name for worker in sorted(self.active) for name in names_of(worker) if name in self.table.chains]
        if present:
            self.they_change(f"-A {hook} -s 10.9.9.9/32 {way} {present[number % len(present)]}")

    @precondition(lambda self: self.active)
    @rule(number=st.integers(0, 9))
    def they_delete_our_jump(self, number: int) -> None:
        jumps = [(hook, one) for hook in BUILT_IN for one in self._ours(hook)]
        if jumps:
            hook, jump = jumps[number % len(jumps)]
            self.table.restore(f"*filter\n-D {hook} {jump}\nCOMMIT\n")

    def they_change(self, line: str) -> None:
        text = f"*filter\n{line}\nCOMMIT\n"
        self.table.restore(text)
        self.foreign.restore(text)

    # --- what holds at all times ------------------------------------------------------------------------------------

    @invariant()
    def theirs_is_as_if_we_had_never_been(self) -> None:
        if not hasattr(self, "table"):
            return
        for hook in (*BUILT_IN, "MINE"):
            theirs = [one for one in self.table.chains.get(hook, []) if one not in self._ours(hook)]
            assert theirs == self.foreign.chains.get(hook, [])

    def teardown(self) -> None:
        """All faults end; what is left of ours is only what a foreign rule leads to, and it is empty."""
        if not hasattr(self, "table"):
            return
        for worker in sorted(self.active, reverse=len(self.table.chains["INPUT"]) % 2 == 0):
            self._remove(worker)
        for hook in (*BUILT_IN, "MINE"):
            assert self.table.chains.get(hook) == self.foreign.chains.get(hook)
        for name, left in self.table.chains.items():
            assert name in (*BUILT_IN, "MINE") or (left == [] and self.table.read().other_references(name))

    # --- how --------------------------------------------------------------------------------------------------------

    def _remove(self, worker: int) -> None:
        plan = rules.render_remove(names_of(worker), self.table.read())
        if plan:
            self.table.restore(plan)
        now = self.table.read()
        if not any(name in now.chains for name in names_of(worker)):
            self.active.discard(worker)  # else it is stuck, and tried again
        for name in names_of(worker):
            assert now.jumps(name) == []
            assert name not in now.chains or (now.chains[name] == () and now.other_references(name))

    def _led_to(self, worker: int) -> bool:
        return any(self.table.read().other_references(name) for name in names_of(worker))

    def _ours(self, hook: str) -> list[str]:
        return [one for one in self.table.chains.get(hook, []) if one.startswith("-j TB-")]

    def _they(self, how: str, hook: str, text: str) -> None:
        if how == "top":
            self._insert(hook, text, 0)
        elif how == "flush":
            self.they_change(f"-F {hook}")
        else:
            self.table.restore(RELOADED, flush=True)
            ours: dict[str, list[str]] = {name: [] for name in self.foreign.chains if name.startswith("TB-")}
            self.foreign.restore(RELOADED, flush=True)
            self.foreign.chains |= ours

    def _insert(self, hook: str, text: str, place: int) -> None:
        """Insert at a place of the whole chain; among the foreign rules, that is after as many as stand before it."""
        place = min(place, len(self.table.chains[hook]))
        before = [one for one in self.table.chains[hook][:place] if one not in self._ours(hook)]
        self.table.restore(f"*filter\n-I {hook} {place + 1} {text}\nCOMMIT\n")
        self.foreign.restore(f"*filter\n-I {hook} {len(before) + 1} {text}\nCOMMIT\n")


def test_any_order_of_faults_and_foreign_changes_ends_in_the_foreign_state() -> None:
    run_state_machine_as_test(Firewall, settings=examples(100, steps=25))


@pytest.fixture(scope="module")
def lone() -> Iterator[Node]:
    require_namespaces()
    with one_node() as alone:
        yield alone


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_the_kernel_agrees_with_the_interpreter(lone: Node, backend: str) -> None:
    tool = commands.find_tool(f"iptables-{backend}")
    require(tool is not None, f"iptables-{backend} is not installed", "apt-get install iptables")
    try:
        lone.run(f"{tool}-save", "-t", "filter")
    except subprocess.CalledProcessError as error:
        require(False, f"iptables-{backend} does not work here: {error.stderr}", "load the kernel's ip_tables module")

    class Real(Firewall):
        def make_table(self) -> Chains:
            return KernelChains(lone, str(tool))

    run_state_machine_as_test(Real, settings=examples(4, steps=16, shrink=False))
