"""Which brokers of the cluster under test are asked, and commands that any of them takes or passes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from trogdor_bus.cluster import SeenBroker
from trogdor_bus.errors import HostError
from trogdor_bus.kafka.access import Access, Place
from trogdor_bus.kafka.asking import ANSWER_S, Asking, Make, Peer, Replies, named

MOST = 5
"""How many brokers are asked at once: in a larger cluster these are enough to hear somebody who is up to date."""
AGAIN_S = 0.05
QUORUM, COMMAND = "quorum", "command"
"""Connections of their own for questions that brokers pass on, and that may take long."""
NOT_CONTROLLER, REQUEST_TIMED_OUT = 41, 7


class Brokers:
    """The brokers as far as they are known: at first those of the access, then all that these tell of."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._asking = Asking(access)
        self._known: Mapping[int, Place] = {}

    def ask(self, questions: Mapping[Peer, Make], limit_s: float = ANSWER_S) -> Replies:
        """Return what is answered within the limit, see Asking."""
        return self._asking.ask(questions, limit_s)

    def learn(self, brokers: Mapping[int, SeenBroker]) -> None:
        """Take note of where the brokers are now."""
        self._known = {number: Place(one.host, one.port) for number, one in brokers.items() if one.host}

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

    def one_after_the_other(self, make: Make, deadline_s: float) -> Iterator[Any]:
        """Yield the answers of brokers to a command, the next one's when the caller asks for more.

        HostError in words if the deadline (on the monotonic clock) passes before the caller is content.
        """
        troubles: dict[Place, str] = {}
        while True:
            for place in self.several():
                peer = Peer(place, COMMAND)
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                replies = self.ask({peer: make}, min(5 * ANSWER_S, left_s))
                if peer in replies.answers:
                    troubles.pop(place, None)
                    yield replies.answers[peer]
                else:
                    troubles[place] = replies.troubles[peer]
            if time.monotonic() + AGAIN_S > deadline_s:
                raise self.silence(troubles)
            time.sleep(AGAIN_S)

    def command(self, make: Make, code: Callable[[Any], int], timeout_s: float) -> Any:
        """Return the answer to a command, of the first broker that is not the wrong one to ask; HostError in words."""
        deadline_s, last = time.monotonic() + timeout_s, ""
        try:
            for answer in self.one_after_the_other(make, deadline_s):
                if code(answer) not in (NOT_CONTROLLER, REQUEST_TIMED_OUT):
                    return answer
                last = named(code(answer))
        except HostError as error:
            raise HostError(f"{self.access} did not do it within {timeout_s:g} s: {last}") if last else error from None
        raise AssertionError("it ends only by the deadline")

    def silence(self, troubles: Mapping[Place, str]) -> HostError:
        """Return the error that no broker answers, and why not."""
        whys = "; ".join(f"{place}: {why}" for place, why in troubles.items()) or "no broker was asked in time"
        return HostError(f"no broker of {self.access} answers: {whys}")

    def close(self) -> None:
        """Close all connections; harmless the second time."""
        self._asking.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
