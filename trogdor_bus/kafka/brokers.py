"""Which brokers of the cluster under test are asked, and commands that any of them takes or passes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trogdor_bus.cluster import Quorum, SeenBroker
from trogdor_bus.errors import HostError
from trogdor_bus.kafka.access import Access, Place
from trogdor_bus.kafka.asking import ANSWER_S, Asking, Make, Peer, Replies, named
from trogdor_bus.kafka.merge import newest

MOST = 5
"""How many brokers are asked at once: in a larger cluster these are enough to hear somebody who is up to date."""
AGAIN_S = 0.05
TIMEOUT_S = 45.0
"""How long a change may take: more than brokers wait for a frozen controller (controller.socket.timeout.ms, 30 s)."""
BROKER_MS = 5000
"""How long a broker is told to wait until all know of a change."""
COMMAND_S = 6.0
"""How long one broker has for a command, which is more than it is told to wait for others."""
QUORUM, COMMAND = "quorum", "command"
"""Connections of their own for questions that brokers pass on, and that may take long."""
NOT_CONTROLLER, REQUEST_TIMED_OUT = 41, 7


class Brokers:
    """The brokers as far as they are known: at first those of the access, then all that these tell of."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._asking = Asking(access)
        self.asks_controllers = False
        """Whether controllers are asked themselves, because brokers do not tell who the active one is."""
        self._known: Mapping[int, Place] = {}
        self.controllers: tuple[Place, ...] = ()
        """Where the controllers listen, as far as the cluster tells."""
        self._epochs: dict[str, int] = {}

    def ask(self, questions: Mapping[Peer, Make], limit_s: float = ANSWER_S) -> Replies:
        """Return what is answered within the limit, see Asking."""
        return self._asking.ask(questions, limit_s)

    def learn(self, brokers: Mapping[int, SeenBroker]) -> None:
        """Take note of where the brokers are now."""
        self._known = {number: Place(one.host, one.port) for number, one in brokers.items() if one.host}

    def learn_quorum(self, cluster_id: str, quorums: Iterable[Quorum]) -> Quorum | None:
        """Return the newest of the quorums that were told, and note where its controllers are; None if all are old.

        One that is let go on after it was frozen still answers as the active one that it was.
        """
        quorum = newest(quorums)
        if quorum is None or quorum.epoch < self._epochs.get(cluster_id, 0):
            return None
        self._epochs[cluster_id] = quorum.epoch
        self.controllers = tuple(Place(one.host, one.port) for one in quorum.voters if one.host)
        return quorum

    def place(self, broker_id: int) -> Place | None:
        """Return where a broker listens, None if it is not known."""
        return self._known.get(broker_id)

    def known_ids(self) -> list[int]:
        """Return the ids of the known brokers."""
        return sorted(self._known)

    def several(self) -> list[Place]:
        """Return whom to ask: known brokers, first those that answer, and the first ones unless two of these do."""
        places = list(self._known.values())
        if sum(not self._asking.is_silent(place) for place in places) < 2:
            places += [place for place in self.access.places if place not in places]
        return sorted(places, key=self._asking.is_silent)[:MOST]

    def command(self, make: Make, code: Callable[[Any], int], timeout_s: float) -> Any:
        """Return the answer to a command that any broker takes, or only the active controller; HostError in words.

        `code` finds the answer's error code. It may be carried out twice: a broker that answers too late did it, too.
        """
        deadline_s = time.monotonic() + timeout_s
        troubles: dict[Place, str] = {}
        while True:
            for place in self.several():
                peer = Peer(place, COMMAND)
                left_s = deadline_s - time.monotonic()
                if left_s < 0:
                    break
                replies = self.ask({peer: make}, min(COMMAND_S, max(AGAIN_S, left_s)))
                if peer not in replies.answers:
                    troubles[place] = replies.troubles[peer]
                elif (found := code(replies.answers[peer])) in (NOT_CONTROLLER, REQUEST_TIMED_OUT):
                    troubles[place] = named(found)
                else:
                    return replies.answers[peer]
            if time.monotonic() + AGAIN_S > deadline_s:
                raise HostError(f"no broker of {self.access} did it within {timeout_s:g} s: {_listed(troubles)}")
            time.sleep(AGAIN_S)

    def silence(self, troubles: Mapping[Place, str]) -> HostError:
        """Return the error that no broker answers, and why not."""
        return HostError(f"no broker of {self.access} answers: {_listed(troubles)}")

    def close(self) -> None:
        """Close all connections; harmless the second time."""
        self._asking.close()


def _listed(troubles: Mapping[Place, str]) -> str:
    return "; ".join(f"{place}: {why}" for place, why in troubles.items()) or "none was asked in time"
