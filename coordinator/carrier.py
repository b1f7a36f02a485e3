"""What carries the bus: where it is Kafka alone, which node is which broker, and which faults it would not survive."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from trogdor_bus.bus import BusBroker, BusBrokers
from trogdor_bus.coordinator.brokers import broker_map, candidates
from trogdor_bus.coordinator.fleet import Fleet
from trogdor_bus.coordinator.ledger import Ledger
from trogdor_bus.coordinator.place import Place
from trogdor_bus.coordinator.plan import WorkerPlan
from trogdor_bus.coordinator.silence import FOR_EVER_MS, REMEDY, Scene, Spot, Station, Strike, silenced, strikes, told
from trogdor_bus.errors import RefusedError, SpecError
from trogdor_bus.spec import TaskSpec
from trogdor_bus.states import WorkerState
from trogdor_bus.topology import canonical


class Carrier:
    """Kept by the machine: which node is which broker, and what the bus hangs on (nothing, until it is told)."""

    def __init__(self, fleet: Fleet, place: Place, lease_ms: int) -> None:
        self._fleet, self._place, self._lease_ms = fleet, place, lease_ms
        self._bus: BusBrokers | None = None
        self._known: dict[int, BusBroker] = {}

    def see(self, bus: BusBrokers | None) -> None:
        """Take over what the bus hangs on; a broker that is down is remembered, as long as it should be up."""
        self._bus = bus
        found = {broker.id: broker for broker in bus.brokers} if bus else {}
        wanted = {one for group in bus.replicas for one in group} if bus and bus.replicas else self._known.keys()
        self._known = {one: broker for one, broker in self._known.items() if one in wanted} | found

    def seat(self, ledger: Ledger, *, settled: bool) -> None:
        """Record which node is which broker; where two could be meant, only what configuration and agents say.

        A broker of no node is told once it is `settled` who is there.
        """
        nodes = self._fleet.nodes
        claims = {name: state.claim for name, state in nodes.items() if state.claim is not None}
        if not claims and not self._known:
            return
        seats = {name: state.seat() for name, state in nodes.items()}
        try:
            found = {name: broker for broker, name in broker_map(seats, self._known.values()).items()}
            placed = found.values()
            homeless = [one for one in self._known.values() if settled and one.id not in placed]
            notes = [f"{_shown(one)} is on no node" for one in homeless]
        except SpecError as error:
            found = claims
            notes = [f"which node is which broker is not clear: {error}"]
        for name, state in nodes.items():
            if state.row.broker != found.get(name):
                state.row = msgspec.structs.replace(state.row, broker=found.get(name))
                ledger.put_node(state)
        for note in filter(None, map(self._fleet.once, notes)):
            ledger.note(note)

    def check(self, spec: TaskSpec, plans: Sequence[WorkerPlan], ledger: Ledger, now_ms: int, *, force: bool) -> str:
        """Return "" or, with `force`, in what way the spec silences the bus; without, that is a RefusedError."""
        if self._bus is None or not any(plan.actions for plan in plans):
            return ""
        start_ms = max(now_ms, spec.start_ms)
        end_ms = start_ms + max(0, spec.duration_ms)
        new = [strike for plan in plans for strike in strikes("", plan.node, plan.actions, start_ms, end_ms)]
        running = self.running(ledger, now_ms)
        found = silenced(self._scene(self._bus), new, running, self._lease_ms)
        if found is None:
            return ""
        if not force:
            raise RefusedError(f"{told(found, self._lease_ms)}; {REMEDY}; `‹force›` allows it")
        return told(found, self._lease_ms)

    def running(self, ledger: Ledger, now_ms: int) -> list[Strike]:
        """Return what the workers that have not ended do to their nodes; what is stuck has no end."""
        found: list[Strike] = []
        for node in self._fleet.nodes.values():
            for worker_id, task_id in node.open.items():
                row = ledger.row(worker_id)
                if row.wanted or row.state is WorkerState.STUCK:
                    end_ms = FOR_EVER_MS if row.state is WorkerState.STUCK else ledger.view.tasks[task_id].end_ms
                    found += strikes(task_id, row.node, ledger.actions(worker_id) or (), now_ms, end_ms)
        return found

    def _scene(self, bus: BusBrokers) -> Scene:
        up = {broker.id for broker in bus.brokers}
        needed = {one for group in bus.replicas for one in group} if bus.replicas else set(self._known)
        return Scene(
            stations={one: self._station(one, one in up) for one in sorted(up | needed)} if up else {},
            members={"the coordinator": self._own_spot(), **self._agents()},
            replicas=bus.replicas,
            min_in_sync=bus.min_in_sync,
            quorum=bus.quorum,
        )

    def _station(self, number: int, up: bool) -> Station:
        broker = self._known.get(number, BusBroker(id=number, host="", port=0))
        nodes = self._fleet.nodes
        names = candidates({name: state.seat() for name, state in nodes.items()}, broker)
        spoken = [*broker.addresses, *(address for name in names for address in nodes[name].addresses)]
        return Station(Spot(frozenset(names), _outside(spoken)), broker.port, up)

    def _own_spot(self) -> Spot:
        addresses = _outside(self._place.machine)
        here = [
            name for name, state in self._fleet.nodes.items() if not addresses.isdisjoint(_outside(state.addresses))
        ]
        return Spot(frozenset(here), addresses)

    def _agents(self) -> dict[str, Spot]:
        return {
            f"the agent of node {name}": Spot()
            if state.attached
            else Spot(frozenset({name}), _outside(state.addresses))
            for name, state in self._fleet.nodes.items()
            if state.agent
        }


def _outside(addresses: Iterable[str]) -> frozenset[str]:
    """Return those addresses that others could see."""
    return frozenset(canonical(one) for one in addresses if not _is_loopback(one))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _shown(broker: BusBroker) -> str:
    return f"broker {broker.id} ({broker.host}:{broker.port})"
