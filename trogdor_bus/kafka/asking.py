"""Questions to given brokers, many at once, each with a limit: one that is frozen, cut off or gone delays nobody."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kafka import errors
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from trogdor_bus.kafka.access import Access, Place

ANSWER_S = 1.0
"""How long a broker has to answer."""
SETUP_S = 3.0
"""How long a connection may be under way: a handshake of TLS with a broker that is cut off would never end."""
STOP_MS = 2000
NODE = "bootstrap-0"
"""What kafka-python calls the only broker of a connection manager of ours."""
SETTINGS = {
    "receive_message_max_bytes": 100_000_000,
    "proxy_url": "direct://",
    "reconnect_backoff_ms": 50,
    "reconnect_backoff_max_ms": 250,
    "socket_connection_setup_timeout_ms": int(ANSWER_S * 1000),
    "socket_connection_setup_timeout_max_ms": int(ANSWER_S * 1000),
}

Make = Callable[[], Any]
"""Makes a request of kafka-python, which is changed by being sent."""


class _Direct(KafkaNetSocket):  # type: ignore[misc]
    """Connects without a proxy, and unlike its parent closes a socket that does not get connected."""

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, address: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, address, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class Peer(NamedTuple):
    """A broker, by one connection of several: on one of them it answers only one question after the other."""

    place: Place
    lane: str = ""


class Replies:
    """Who answered what, and in words why not; `unsupported` are those who know no such question."""

    def __init__(self) -> None:
        self.answers: dict[Peer, Any] = {}
        self.troubles: dict[Peer, str] = {}
        self.unsupported: set[Peer] = set()


class Asking:
    """Connections, which are kept and made anew as need be; may be used by several threads."""

    def __init__(self, access: Access) -> None:
        self._settings = {**SETTINGS, **access.kafka_python()}
        self._net = NetworkSelector(client_id=self._settings["client_id"])
        self._managers: dict[Peer, Any] = {}  # these two belong to the thread of the network
        self._connections: dict[Peer, Any] = {}
        self._lock = threading.Lock()
        self._unanswered: set[Peer] = set()
        self._silent: set[Peer] = set()
        self._reasons: dict[Peer, str] = {}
        self._closed = False
        self._net.start()

    def ask(self, questions: Mapping[Peer, Make], limit_s: float = ANSWER_S) -> Replies:
        """Return what was answered within the limit.

        Who did not answer the last question in time is waited for only while nobody else on that lane has answered,
        and is asked no other question before that one is answered or given up.
        """
        replies, arrived = Replies(), queue.SimpleQueue[tuple[Peer, Any]]()
        waiting: set[Peer] = set()
        deadline_s = time.monotonic() + limit_s
        for peer, make in questions.items():
            with self._lock:
                if peer in self._unanswered:
                    replies.troubles[peer] = self._reasons.get(peer, "it does not answer")
                    continue
                self._unanswered.add(peer)
            waiting.add(peer)
            future = self._net.call_soon_with_future(self._send, peer, make, max(limit_s, ANSWER_S))
            future.add_both(lambda outcome, peer=peer: self._came(peer, outcome, arrived))
        while self._worth(waiting, replies):
            try:
                peer, outcome = arrived.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(peer)
            self._note(peer, outcome, replies)
        with self._lock:
            self._silent |= waiting
        for peer in waiting:
            replies.troubles[peer] = self._reasons.get(peer, f"no answer within {limit_s:g} s")
        return replies

    def is_silent(self, place: Place) -> bool:
        """Return whether a broker left a question unanswered, and has answered none since, on the first lane."""
        return Peer(place) in self._silent

    def close(self) -> None:
        """Close all connections; harmless the second time."""
        if not self._closed:
            self._closed = True
            self._net.run(self._close_all)
            self._net.stop(STOP_MS)
            self._net.close()

    def _worth(self, waiting: set[Peer], replies: Replies) -> bool:
        """Return whether somebody is to be waited for."""
        answered = {peer.lane for peer in (*replies.answers, *replies.unsupported)}
        return any(peer not in self._silent or peer.lane not in answered for peer in waiting)

    def _note(self, peer: Peer, outcome: Any, replies: Replies) -> None:
        if isinstance(outcome, errors.IncompatibleBrokerVersion):
            replies.unsupported.add(peer)
        if isinstance(outcome, BaseException):
            replies.troubles[peer] = self._reasons.get(peer, words(outcome))
        else:
            replies.answers[peer] = outcome

    # --- in the thread of the network ---------------------------------------------------------------------------------

    def _came(self, peer: Peer, outcome: Any, arrived: queue.SimpleQueue[tuple[Peer, Any]]) -> None:
        failed = isinstance(outcome, BaseException)
        with self._lock:
            self._unanswered.discard(peer)
            if not failed:
                self._silent.discard(peer)
                self._reasons.pop(peer, None)
            elif not isinstance(outcome, errors.NodeNotReadyError):  # that one only says that it is too early to retry
                self._reasons[peer] = self._why(peer, outcome)
            if isinstance(outcome, errors.RequestTimedOutError | errors.KafkaTimeoutError):
                self._silent.add(peer)  # its client gave up before we did
        arrived.put((peer, outcome))

    def _why(self, peer: Peer, error: BaseException) -> str:
        """Return what is wrong in words; a broker that refuses a password hangs up, and kafka-python reads no more."""
        connection, user = self._connections.get(peer), self._settings.get("sasl_plain_username")
        if user and connection is not None and connection.init_future.failed() and "disconnected" in str(error):
            return (
                f"it hung up when we logged in as {user}: check sasl.username and sasl.password, and the broker's log"
            )
        return words(error)

    def _send(self, peer: Peer, make: Make, limit_s: float) -> Any:
        manager = self._managers.get(peer)
        if manager is None or manager.auth_failure(NODE) is not None:  # which it would repeat for ever
            manager = self._new_manager(peer)
        connection = manager.get_connection(NODE, timeout_ms=ANSWER_S * 1000, refresh_metadata_on_err=False)
        if connection is not self._connections.get(peer):
            self._connections[peer] = connection
            self._net.call_later(SETUP_S, lambda: self._give_up(connection))
        return connection.send_request(make(), request_timeout_ms=limit_s * 1000)

    def _new_manager(self, peer: Peer) -> Any:
        if peer in self._managers:
            self._managers[peer].close()
        self._managers[peer] = KafkaConnectionManager(
            self._net, **{**self._settings, "bootstrap_servers": [str(peer.place)]}
        )
        return self._managers[peer]

    def _give_up(self, connection: Any) -> None:
        if connection.initializing:
            connection.close(errors.KafkaConnectionError(f"no connection within {SETUP_S:g} s"))

    def _close_all(self) -> None:
        for manager in self._managers.values():
            manager.close()


def words(error: BaseException) -> str:
    """Return what kafka-python says is wrong, without the name of its class if there is more."""
    text = str(error)
    return text.removeprefix(f"{type(error).__name__}: ") or type(error).__name__


def named(code: int) -> str:
    """Return the name that kafka-python has for an error code of a broker, such as `TopicAlreadyExistsError`."""
    return str(errors.for_code(code).__name__)
