"""Whether a fault took effect, by what its workers said and what was seen of the cluster. Pure; times are epoch ms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from trogdor_bus.cluster import NOBODY, SeenPartition
from trogdor_bus.experiment.history import History
from trogdor_bus.experiment.result import HELD_ROLE, UNKNOWN, Evidence
from trogdor_bus.roles import Chosen
from trogdor_bus.states import WorkerRow

NOTICED_MS = 3_000
"""How much later than its own time limit a controller may notice that a broker is gone."""


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: when it was ordered, when it was undone (UNKNOWN: not yet), who was hit, and what its workers said.

    `session_ms` is after what time the cluster notices that a broker is gone, UNKNOWN if nobody told.
    """

    start_ms: int
    end_ms: int = UNKNOWN
    targets: tuple[Chosen, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    session_ms: int = UNKNOWN

    @property
    def brokers(self) -> list[Chosen]:
        """Return the brokers among the targets."""
        return [one for one in self.targets if one.kind == "broker"]


def targets(
    holders: Sequence[Chosen], nodes: Sequence[str], brokers: dict[str, int], controllers: dict[str, int]
) -> tuple[Chosen, ...]:
    """Return who is hit: those chosen for a role, the leaders among them alone if there are any; else who is there.

    `holders` are those of a task, `nodes` its workers' nodes, `brokers` and `controllers` the ids by node.
    """
    meant = tuple(one for one in holders if one.led or one.role == "controller") or tuple(holders)
    if meant:
        return meant
    known = (("broker", brokers), ("controller", controllers))
    return tuple(
        Chosen(role="", kind=kind, id=ids[node], node=node) for node in nodes for kind, ids in known if node in ids
    )


def look(wanted: Sequence[str], hit: Hit, history: History) -> tuple[Evidence, ...]:
    """Return what was looked for and whether it was seen; that a role was held when its holder was hit comes first."""
    kinds = {
        "process-stopped": _process_stopped,
        "leader-moved": _leader_moved,
        "controller-moved": _controller_moved,
        "isr-shrank": _isr_shrank,
        "cut-off": _cut_off,
    }
    return (*_held_roles(hit, history), *(kinds[kind](hit, history) for kind in wanted))


def new_leader_ms(hit: Hit, history: History) -> int:
    """Return how long it took until every partition that was led by who was hit had a new leader; UNKNOWN if none did.

    For a controller that was hit: until there was another one.
    """
    took = [moment - hit.start_ms for one in _led(hit, history) if (moment := _moved(one, hit, history)) != UNKNOWN]
    led = history.quorum_at(hit.start_ms)
    if led is not None and any(one.kind == "controller" and one.id == led.leader for one in hit.targets):
        moved = [one.at_ms for one in history.quorum if one.at_ms > hit.start_ms and one.leader not in (NOBODY, led[1])]
        took += [moved[0] - hit.start_ms] if moved else []
    return max(took, default=UNKNOWN)


def _held_roles(hit: Hit, history: History) -> Iterator[Evidence]:
    for one in hit.targets:
        if one.led:
            topic, number = one.led
            seen = history.at(topic, number, hit.start_ms)
            held = seen is not None and seen.leader == one.id
            who = "nobody" if seen is None or seen.leader == NOBODY else f"broker {seen.leader}"
            text = f"{who} led {topic}-{number} when {one.who} was hit"
            yield Evidence(kind=HELD_ROLE, held=held, text=text)
        elif one.role == "controller":
            led = history.quorum_at(hit.start_ms)
            who = "nobody" if led is None or led.leader == NOBODY else str(led.leader)
            held = led is not None and led.leader == one.id
            yield Evidence(kind=HELD_ROLE, held=held, text=f"the active controller was {who} when {one.who} was hit")


def _process_stopped(hit: Hit, history: History) -> Evidence:
    silent = [row for row in hit.workers if row.running_ms < 0]
    if silent or not hit.workers:
        said = "; ".join(f"{row.node}: {row.error or row.status}" for row in silent) or "no node did anything"
        return Evidence(kind="process-stopped", held=False, text=f"no process was stopped: {said}")
    nodes = ", ".join(row.node for row in hit.workers)
    lasted = UNKNOWN if hit.end_ms == UNKNOWN else hit.end_ms - hit.start_ms
    missing = {one: history.was_missing(one.id, hit.start_ms) for one in hit.brokers}
    unseen = [one.who for one, at_ms in missing.items() if at_ms == UNKNOWN]
    if unseen and UNKNOWN < hit.session_ms < lasted - NOTICED_MS:
        text = f"stopped on {nodes}, but the cluster never missed {', '.join(unseen)}, in {lasted} ms"
        return Evidence(kind="process-stopped", held=False, text=text)
    after = "".join(
        f"; the cluster missed {one.who} {at_ms - hit.start_ms} ms later"
        for one, at_ms in missing.items()
        if at_ms >= 0
    )
    return Evidence(kind="process-stopped", held=True, text=f"stopped on {nodes}, say their agents{after}")


def _leader_moved(hit: Hit, history: History) -> Evidence:
    led = _led(hit, history)
    for one in led:
        if (at_ms := _moved(one, hit, history)) != UNKNOWN:
            now = history.at(one.topic, one.number, at_ms)
            assert now is not None
            text = f"{one.name}: epoch {one.epoch} (broker {one.leader}) became {now.epoch} (broker {now.leader})"
            return Evidence(kind="leader-moved", held=True, text=f"{text}, {at_ms - hit.start_ms} ms after the order")
    who = ", ".join(one.who for one in hit.brokers) or "nobody"
    if not led:
        return Evidence(kind="leader-moved", held=False, text=f"no partition that is watched was led by {who}")
    names = ", ".join(one.name for one in led[:10])
    return Evidence(kind="leader-moved", held=False, text=f"the leader epoch of {names} (led by {who}) did not rise")


def _controller_moved(hit: Hit, history: History) -> Evidence:
    before = history.quorum_at(hit.start_ms)
    for led in history.quorum:
        if before is not None and led.at_ms > hit.start_ms and led.leader not in (NOBODY, before.leader):
            text = f"controller {before.leader} (epoch {before.epoch}) was followed by {led.leader} ({led.epoch})"
            text = f"{text}, {led.at_ms - hit.start_ms} ms after the order"
            return Evidence(kind="controller-moved", held=True, text=text)
    who = before.leader if before is not None and before.leader != NOBODY else "unknown"
    return Evidence(kind="controller-moved", held=False, text=f"the active controller stayed {who}")


def _isr_shrank(hit: Hit, history: History) -> Evidence:
    for topic, number in sorted(history.partitions):
        before = history.at(topic, number, hit.start_ms)
        for moment in history.later(topic, number, hit.start_ms) if before is not None else ():
            lost = [one for one in hit.brokers if before is not None and one.id in before.in_sync]
            gone = [one for one in lost if one.id not in moment.seen.in_sync]
            if gone:
                without = f"{moment.seen.name} went on without {gone[0].who}"
                text = f"{without}, {moment.at_ms - hit.start_ms} ms after the order"
                return Evidence(kind="isr-shrank", held=True, text=text)
    who = ", ".join(one.who for one in hit.brokers) or "nobody"
    return Evidence(kind="isr-shrank", held=False, text=f"no partition that is watched went on without {who}")


def _cut_off(hit: Hit, history: History) -> Evidence:
    silent = [row for row in hit.workers if row.running_ms < 0]
    if silent or not hit.workers:
        said = "; ".join(f"{row.node}: {row.error or row.status}" for row in silent) or "no node did anything"
        return Evidence(kind="cut-off", held=False, text=f"nothing was cut: {said}")
    open_again = [f"{row.node}: {one}" for row in hit.workers for one in row.disturbed if not one.mended]
    if open_again:
        return Evidence(kind="cut-off", held=False, text=f"somebody took rules away: {'; '.join(open_again)}")
    nodes = ", ".join(row.node for row in hit.workers)
    dropped = sum(row.dropped for row in hit.workers)
    text = f"the rules stood on {nodes} until the end, and dropped {dropped} packets"
    return Evidence(kind="cut-off", held=dropped > 0, text=text)


def _led(hit: Hit, history: History) -> list[SeenPartition]:
    """Return the partitions that were led by who was hit: those it was chosen for, else all that are watched."""
    if named := [one.led for one in hit.targets if one.led]:
        seen = [history.at(topic, number, hit.start_ms) for topic, number in named]
        return [one for one in seen if one is not None]
    return [led for one in hit.brokers for led in history.led_by(one.id, hit.start_ms)]


def _moved(before: SeenPartition, hit: Hit, history: History) -> int:
    """Return when a partition was first seen with a new leader epoch and a leader, UNKNOWN if never."""
    for moment in history.later(before.topic, before.number, hit.start_ms):
        if moment.seen.leader != NOBODY and moment.seen.epoch > before.epoch:
            return moment.at_ms
    return UNKNOWN
