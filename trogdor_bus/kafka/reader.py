"""Sees a cluster as it is, also while some of its brokers are frozen, cut off or gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from msgspec.structs import replace

from trogdor_bus.clock import Clock, SteadyWallClock
from trogdor_bus.cluster import NOBODY, ClusterView, Quorum
from trogdor_bus.errors import HostError, NotFoundError
from trogdor_bus.kafka import answers
from trogdor_bus.kafka.access import Access, Place
from trogdor_bus.kafka.asking import ANSWER_S, Make, Peer
from trogdor_bus.kafka.brokers import AGAIN_S, QUORUM, Brokers
from trogdor_bus.kafka.merge import best_informed, merge, with_min_in_sync, with_ports

TIMEOUT_S = 5.0


class _Wanted(NamedTuple):
    topics: tuple[str, ...] | None
    coordinators: tuple[str, ...]
    quorum: bool
    ports: bool


class Reader:
    """Asks some brokers at once each time, on connections that are kept; several threads take turns."""

    def __init__(self, access: Access, clock: Clock | None = None) -> None:
        self.brokers = Brokers(access)
        self._clock = clock or SteadyWallClock()
        self._lock = threading.Lock()

    def read(
        self,
        topics: Iterable[str] | None = None,
        coordinators: Iterable[str] = (),
        timeout_s: float = TIMEOUT_S,
        *,
        quorum: bool = True,
        ports: bool = False,
    ) -> ClusterView:
        """Return the cluster: the topics that are there of those named (all by default), and coordinators.

        Up to the deadline it waits for an active controller and for the coordinators; who is not there then is NOBODY.
        With `quorum=False` controllers are not asked for, and the answer comes in milliseconds while they are elected,
        too: `quorum` is None, `controller` NOBODY. With `ports=True` each broker is asked where it listens for whom.
        HostError if no broker answers, or something is forbidden; SpecError if a coordinator is none.
        """
        wanted = _Wanted(None if topics is None else tuple(dict.fromkeys(topics)), tuple(coordinators), quorum, ports)
        for text in wanted.coordinators:
            answers.coordinator(text)
        with self._lock:  # the time of those before is not its own
            return _Reading(self.brokers, self._clock, wanted, time.monotonic() + timeout_s).view()

    def settings(self, broker_id: int, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
        """Return a broker's settings in force, without secrets; NotFoundError if there is none, HostError if silent."""
        if self.brokers.place(broker_id) is None:
            self.read((), timeout_s=timeout_s, quorum=False)
        deadline_s = time.monotonic() + timeout_s
        name = str(broker_id)
        while True:
            place = self.brokers.place(broker_id)
            if place is None:
                known = ", ".join(map(str, self.brokers.known_ids()))
                raise NotFoundError(f"there is no broker {broker_id} in {self.brokers.access}; it has {known}")
            peer = Peer(place)
            with self._lock:
                replies = self.brokers.ask({peer: lambda: answers.settings(answers.BROKER, (name,))})
            if peer in replies.answers and name in (found := answers.settings_seen(replies.answers[peer])):
                return dict(found[name])
            if time.monotonic() + AGAIN_S > deadline_s:
                why = replies.troubles.get(peer, "it says nothing of itself")
                raise HostError(f"broker {broker_id} does not tell its settings: {place}: {why}")
            time.sleep(AGAIN_S)

    def close(self) -> None:
        """Close all connections once nobody reads any more; harmless the second time."""
        with self._lock:
            self.brokers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Reading:
    """One reading: rounds of questions, until everything is answered or the deadline passes."""

    def __init__(self, brokers: Brokers, clock: Clock, wanted: _Wanted, deadline_s: float) -> None:
        self._brokers, self._clock, self._wanted, self._deadline_s = brokers, clock, wanted, deadline_s
        self._troubles: dict[Place, str] = {}
        self._quorums: dict[Place, Quorum] = {}
        self._without_quorum = not wanted.quorum
        self._last = ""

    def view(self) -> ClusterView:
        best: ClusterView | None = None
        while True:
            found = self._round()
            if found is not None and self._is_complete(found):
                return found
            best = found or best
            if time.monotonic() + AGAIN_S > self._deadline_s:
                if best is None:
                    raise HostError(self._last) if self._last else self._brokers.silence(self._troubles)
                return best
            time.sleep(AGAIN_S)

    def _is_complete(self, view: ClusterView) -> bool:
        has_controller = not self._wanted.quorum or view.controller != NOBODY
        return has_controller and all(number != NOBODY for number in view.coordinators.values())

    def _left_s(self) -> float:
        return max(0.0, min(ANSWER_S, self._deadline_s - time.monotonic()))

    def _round(self) -> ClusterView | None:
        """Ask everything once; None if something that every view must have was not answered."""
        self._last = ""
        self._quorums.clear()
        places = self._brokers.several()
        views = self._seen_by(places)
        more = self._more(views, places)
        views |= self._seen_by(more) if more else {}
        if not views:
            return None
        at_ms = self._clock.now_ms()
        merged = merge(list(views.values()))
        self._brokers.learn(merged.brokers or next(iter(views.values())).brokers)
        informed = [list(views)[at] for at in best_informed(list(views.values()))]
        by_topic = self._min_in_sync(sorted({one.topic for one in merged.partitions}), informed)
        if by_topic is None:
            whys = "; ".join(f"{place}: {why}" for place, why in self._troubles.items())
            self._last = f"no broker of {self._brokers.access} tells the settings of its topics: {whys}"
            return None
        quorum = self._quorum(merged.cluster_id)
        controller = merged.controller if quorum is None and self._wanted.quorum else NOBODY
        return replace(
            with_ports(with_min_in_sync(merged, by_topic), self._ports() if self._wanted.ports else {}),
            at_ms=at_ms,
            quorum=quorum,
            controller=controller if quorum is None else quorum.leader,
            coordinators={text: self._coordinator(text, informed) for text in self._wanted.coordinators},
        )

    def _seen_by(self, places: Sequence[Place]) -> dict[Place, ClusterView]:
        """Return what these see of brokers and partitions, and note what they tell of the quorum."""
        questions: dict[Peer, Make] = {Peer(place): lambda: answers.metadata(self._wanted.topics) for place in places}
        if self._wanted.quorum:
            controllers = self._brokers.controllers if self._brokers.asks_controllers else ()
            questions |= {Peer(place, QUORUM): answers.quorum for place in (*places, *controllers)}
        replies = self._brokers.ask(questions, self._left_s())
        self._troubles |= {peer.place: why for peer, why in replies.troubles.items() if not peer.lane}
        views: dict[Place, ClusterView] = {}
        for peer, answer in replies.answers.items():
            if not peer.lane:
                views[peer.place] = answers.seen(answer)
                self._troubles.pop(peer.place, None)
            elif isinstance(told := answers.quorum_seen(answer), Quorum):
                self._quorums[peer.place] = told
        if any(peer.lane for peer in replies.unsupported):
            self._without_quorum = True  # ZooKeeper has the metadata
        return views

    def _quorum(self, cluster_id: str) -> Quorum | None:
        """Return the quorum as it was told, without a leader if nobody knows one; None if it is not wanted, or none.

        Brokers pass the question on to the controller that they believe in. If that one is frozen they wait for it for
        half a minute, and for seconds if it is gone: then the controllers are asked themselves.
        """
        if self._without_quorum:
            return None
        quorum = self._brokers.learn_quorum(cluster_id, self._quorums.values())
        self._brokers.asks_controllers = set(self._quorums) <= set(self._brokers.controllers)
        return quorum or Quorum(leader=NOBODY, epoch=-1)

    def _more(self, views: dict[Place, ClusterView], asked: Sequence[Place]) -> list[Place]:
        """Return whom to ask, too: brokers that were just heard of, unless two that are known by id have answered."""
        told = {Place(one.host, one.port) for view in views.values() for one in view.brokers.values() if one.host}
        if sum(place in told for place in views) >= min(2, len(told)):
            return []
        return [place for place in sorted(told) if place not in asked][:2]

    def _min_in_sync(self, topics: Sequence[str], places: Sequence[Place]) -> dict[str, int] | None:
        """Return the effective min.insync.replicas of topics, without those that nobody knows; None if nobody tells.

        Who has not yet heard of a topic is no witness that it has no such setting: then the others are asked for it.
        """
        found: dict[str, int] = {}
        left, told = list(topics), not topics
        for place in places if topics else ():
            answer = self._first((place,), partial(answers.settings, answers.TOPIC, left, [answers.MIN_IN_SYNC]))
            if answer is not None:
                rows = answers.settings_seen(answer)
                found |= {topic: int(row[answers.MIN_IN_SYNC]) for topic, row in rows.items()}
                left, told = [topic for topic in left if topic not in found], True
            if told and not left:
                break
        return found if told else None

    def _ports(self) -> dict[int, tuple[int, tuple[int, ...]]]:
        """Return where brokers listen for others and for clients, of those that tell: it is a right of its own."""
        asked = {number: Peer(place) for number in self._brokers.known_ids() if (place := self._brokers.place(number))}
        questions: dict[Peer, Make] = {
            peer: partial(answers.settings, answers.BROKER, (str(number),), answers.LISTENERS)
            for number, peer in asked.items()
        }
        told = self._brokers.ask(questions, max(self._left_s(), AGAIN_S)).answers
        found = {}
        for number, peer in asked.items():
            with contextlib.suppress(HostError, KeyError):
                found[number] = answers.listening(answers.settings_seen(told[peer])[str(number)])
        return found

    def _coordinator(self, text: str, places: Sequence[Place]) -> int:
        answer = self._first(places, lambda: answers.coordinator(text))
        return NOBODY if answer is None else answers.coordinator_seen(answer)

    def _first(self, places: Sequence[Place], make: Make) -> Any:
        """Return the answer of the first of the brokers that gives one within its second, None if there is none."""
        for place in places:
            peer = Peer(place)
            replies = self._brokers.ask({peer: make}, max(self._left_s(), AGAIN_S))
            if peer in replies.answers:
                return replies.answers[peer]
            self._troubles[place] = replies.troubles[peer]
        return None
