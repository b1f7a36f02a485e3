"""Makes another replica lead a partition, by Kafka's own means: it is put first, and the preferred leader elected.

`python -m trogdor_bus.kafka.movers plan|move|restore|look` reads JSON on standard input, and prints JSON:
`{"bootstrap": "HOST:PORT,...", "config": FILE or null, "topic": ..., "partition": ..., "to": id or -1}` to plan, which
prints a move, and `{"bootstrap": ..., "config": ..., "move": {...}}` to move and to restore, as often as need be, and
to look what is left of a move. `"withinMs"` says how long it may take.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from kafka.protocol.admin import (
    AlterPartitionReassignmentsRequest,
    ElectionType,
    ElectLeadersRequest,
    ListPartitionReassignmentsRequest,
)

from trogdor_bus.cluster import NOBODY, Move, SeenPartition
from trogdor_bus.errors import HostError, NotFoundError, RefusedError, SpecError, TrogdorBusError
from trogdor_bus.kafka.access import Access
from trogdor_bus.kafka.asking import named
from trogdor_bus.kafka.brokers import AGAIN_S, BROKER_MS, TIMEOUT_S
from trogdor_bus.kafka.reader import Reader

NOT_NEEDED, NOT_AVAILABLE = 84, 80


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads now, of which leader epoch, and whether anything was to be done; `why` says it in words."""

    leader: int
    epoch: int
    changed: bool
    why: str


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a move, in words; "" if nothing is."""

    left: str = ""


def plan_move(access: Access, topic: str, partition: int, to: int = NOBODY, timeout_s: float = TIMEOUT_S) -> Move:
    """Return a move of leadership `to` a replica that is in sync, by default the next after the leader.

    NotFoundError if there is no such partition; RefusedError if nobody can take over, or it is being reassigned.
    """
    with Reader(access) as reader:
        seen = _seen(reader, topic, partition, timeout_s)
        if seen.leader == NOBODY:
            raise RefusedError(f"{seen.name} has no leader, so none can be moved: wait until it has one")
        if going_on := _reassigned(reader, topic, partition, timeout_s):
            raise RefusedError(f"the replicas of {seen.name} are being reassigned ({going_on}): wait for its end")
    others = seen.successors
    if not others:
        raise RefusedError(f"only its leader {seen.leader} is in sync on {seen.name}: nobody can take over")
    if to != NOBODY and (why := seen.unfit(to)):
        raise RefusedError(f"broker {to} {why} on {seen.name}: choose one of {', '.join(map(str, others))}")
    return Move(
        topic=topic,
        partition=partition,
        found=seen.replicas,
        leader=seen.leader,
        to=others[0] if to == NOBODY else to,
    )


def move_leader(access: Access, move: Move, timeout_s: float = TIMEOUT_S) -> Moved:
    """Make the replica lead, and return when it does; HostError if it does not in time, RefusedError if it cannot be.

    What is done already is not done again.
    """
    with Reader(access) as reader:
        seen = _seen(reader, move.topic, move.partition, timeout_s)
        if set(seen.replicas) != set(move.found):
            raise RefusedError(f"{seen.name} has other replicas now, {list(seen.replicas)}: plan the move anew")
        return _ordered(reader, seen, move.order, timeout_s)


def restore(access: Access, move: Move, timeout_s: float = TIMEOUT_S) -> Moved:
    """Put back the order of replicas that was found, and return when its first one leads; HostError if not in time.

    What is restored already is left as it is, and so is a partition that is gone or has other replicas now.
    """
    with Reader(access) as reader:
        try:
            seen = _seen(reader, move.topic, move.partition, timeout_s)
        except NotFoundError as error:
            return Moved(leader=NOBODY, epoch=-1, changed=False, why=f"{error}, so nothing is to be restored")
        if set(seen.replicas) != set(move.found):
            why = f"{seen.name} has other replicas now, {list(seen.replicas)}: somebody reassigned it, it is left so"
            return Moved(leader=seen.leader, epoch=seen.epoch, changed=False, why=why)
        return _ordered(reader, seen, move.found, timeout_s)


def look(access: Access, move: Move, timeout_s: float = TIMEOUT_S) -> Left:
    """Return whether the replicas are in another order than was found; nothing is changed."""
    with Reader(access) as reader:
        try:
            seen = _seen(reader, move.topic, move.partition, timeout_s)
        except NotFoundError:
            return Left()
    if seen.replicas == move.found or set(seen.replicas) != set(move.found):
        return Left()
    return Left(left=f"{seen.name} has its replicas in the order {list(seen.replicas)}, found was {list(move.found)}")


def _seen(reader: Reader, topic: str, partition: int, timeout_s: float) -> SeenPartition:
    seen = reader.read((topic,), timeout_s=timeout_s, quorum=False).partition(topic, partition)
    if seen is None:
        raise NotFoundError(f"there is no partition {topic}-{partition} in {reader.brokers.access}")
    return seen


def _reassigned(reader: Reader, topic: str, partition: int, timeout_s: float) -> str:
    """Return in words how a partition is being reassigned; "" if it is not."""
    wanted = ListPartitionReassignmentsRequest.ListPartitionReassignmentsTopics
    answer = reader.brokers.command(
        lambda: ListPartitionReassignmentsRequest(
            timeout_ms=BROKER_MS, topics=[wanted(name=topic, partition_indexes=[partition])]
        ),
        lambda answer: int(answer.error_code),
        timeout_s,
    )
    if answer.error_code:
        raise HostError(f"the cluster does not tell whether {topic} is being reassigned: {named(answer.error_code)}")
    rows = [row for found in answer.topics for row in found.partitions if row.adding_replicas or row.removing_replicas]
    return f"adding {list(rows[0].adding_replicas)}, removing {list(rows[0].removing_replicas)}" if rows else ""


def _ordered(reader: Reader, seen: SeenPartition, order: tuple[int, ...], timeout_s: float) -> Moved:
    """Put the replicas into this order, and elect the first one."""
    deadline_s, before = time.monotonic() + timeout_s, seen
    if seen.replicas == order and seen.leader == order[0]:
        why = f"{seen.name} has the replicas {list(order)} and the leader {order[0]} already"
        return Moved(leader=seen.leader, epoch=seen.epoch, changed=False, why=why)
    if seen.replicas != order:
        _reorder(reader, seen, order, timeout_s)
    trouble = ""
    while True:
        seen = _seen(reader, seen.topic, seen.number, max(1.0, deadline_s - time.monotonic()))
        if seen.replicas == order and seen.leader == order[0]:
            why = f"{seen.name} is led by {order[0]}, it was {before.leader} (leader epoch {seen.epoch})"
            return Moved(leader=seen.leader, epoch=seen.epoch, changed=True, why=why)
        if time.monotonic() > deadline_s:
            state = f"its replicas are {list(seen.replicas)}, in sync {list(seen.in_sync)}, leader {seen.leader}"
            raise HostError(f"{order[0]} does not lead {seen.name} after {timeout_s:g} s: {trouble or state}")
        if seen.replicas == order:
            trouble = _elect(reader, seen, max(1.0, deadline_s - time.monotonic()))
        time.sleep(AGAIN_S)


def _reorder(reader: Reader, seen: SeenPartition, order: tuple[int, ...], timeout_s: float) -> None:
    topic = AlterPartitionReassignmentsRequest.ReassignableTopic
    partition = topic.ReassignablePartition(partition_index=seen.number, replicas=list(order))
    answer = reader.brokers.command(
        lambda: AlterPartitionReassignmentsRequest(
            timeout_ms=BROKER_MS, topics=[topic(name=seen.topic, partitions=[partition])]
        ),
        lambda answer: int(answer.error_code),
        timeout_s,
    )
    rows = [row for one in answer.responses for row in one.partitions]
    for code, message in ((one.error_code, one.error_message) for one in (answer, *rows)):
        if code:
            why = message or named(code)
            raise HostError(f"the cluster does not put the replicas of {seen.name} in the order {list(order)}: {why}")


def _elect(reader: Reader, seen: SeenPartition, timeout_s: float) -> str:
    """Have the first replica elected; return in words why it cannot be now, "" if it is."""
    partitions = ElectLeadersRequest.TopicPartitions(topic=seen.topic, partitions=[seen.number])
    answer = reader.brokers.command(
        lambda: ElectLeadersRequest(
            election_type=ElectionType.PREFERRED, topic_partitions=[partitions], timeout_ms=BROKER_MS
        ),
        lambda answer: int(answer.error_code or 0),
        timeout_s,
    )
    rows = [row for one in answer.replica_election_results for row in one.partition_result]
    for code, message in [(answer.error_code, None), *((row.error_code, row.error_message) for row in rows)]:
        if code == NOT_AVAILABLE:
            return f"{seen.replicas[0]} is not in sync, so it cannot lead; the order of the replicas is {seen.replicas}"
        if code and code != NOT_NEEDED:
            raise HostError(f"the cluster does not elect a leader of {seen.name}: {message or named(code)}")
    return ""


class Order(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What the command reads."""

    bootstrap: str
    config: str | None = None
    topic: str = ""
    partition: int = 0
    to: int = NOBODY
    move: Move | None = None
    within_ms: int = int(TIMEOUT_S * 1000)


def main(verb: str, text: bytes) -> msgspec.Struct:
    """Do what the command line says, and return what it prints; any error of the error tree."""
    try:
        order = msgspec.json.decode(text, type=Order)
    except msgspec.DecodeError as error:
        raise SpecError(f"this is no order: {error}", remedy="write what `move` says at its head, as JSON") from None
    access = Access(order.bootstrap, None if order.config is None else Path(order.config))
    if verb == "plan":
        return plan_move(access, order.topic, order.partition, order.to, order.within_ms / 1000)
    verbs: dict[str, Callable[[Access, Move, float], msgspec.Struct]] = {
        "move": move_leader,
        "restore": restore,
        "look": look,
    }
    if verb not in verbs or order.move is None:
        raise SpecError(f"cannot {verb} {order.move}", remedy="plan with a topic; move, restore or look with a move")
    return verbs[verb](access, order.move, order.within_ms / 1000)


if __name__ == "__main__":
    try:
        print(msgspec.json.encode(main(sys.argv[-1], sys.stdin.buffer.read())).decode())
    except TrogdorBusError as error:
        sys.exit(str(error))
