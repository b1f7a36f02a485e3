"""The seal of a record: who has no key of this bus can neither make nor change what we read.

A seal is a keyed BLAKE2b over topic, key, the other headers and the value, in a record's header `seal`; its key comes
from the secret that the members share. The value stays readable, as on any topic. Without keys there is no seal.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from hashlib import blake2b
from pathlib import Path

from trogdor_bus import keys as key_files
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.transports.kafka.record import Record

HEADER = "seal"
RELOAD_S = 1.0
TOLD = 10
"""Of the records that are dropped, so many are said in the log."""

log = logging.getLogger("trogdor_bus.transports.kafka")


Headers = list[tuple[str, str | bytes | None]]
"""As librdkafka's producer takes them."""


class Seal:
    """Seals and checks records with the keys of a directory; with None it makes and demands plain records."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._key = b"" if directory is None else _derive(directory)
        self._lock = threading.Lock()
        self._reload_s = 0.0
        self._dropped = 0

    def headers(self, record: Record) -> Headers:
        """Return the headers of a record: its fields, and the seal if there are keys."""
        seal: Headers = [(HEADER, _mac(self._key, record))] if self._key else []
        return [*record.fields.items(), *seal]

    def trouble(self, record: Record) -> str:
        """Return "" if the record is from one of us, else what is wrong and what to do, which goes to the log, too.

        Keys that were imported meanwhile count: after a wrong seal the directory is read again, once a second at most.
        """
        wrong = self._wrong(record)
        if wrong:
            self._dropped += 1
            if self._dropped <= TOLD:
                last = " (more will not be told)" if self._dropped == TOLD else ""
                log.warning("dropped a record of %s: %s%s", record.topic, wrong, last)
        return wrong

    def _wrong(self, record: Record) -> str:
        seal = record.fields.get(HEADER)
        if self._directory is None:
            return "" if seal is None else "the others use keys and we do not: leave out ‹insecure›"
        if seal is None:
            return "it has no seal: somebody uses no keys (‹insecure›), or it is a stranger's"
        if hmac.compare_digest(seal, _mac(self._key, record)):
            return ""
        if self._reloaded() and hmac.compare_digest(seal, _mac(self._key, record)):
            return ""
        return f"it was sealed with other keys: {key_files.GET_KEYS}"

    def _reloaded(self) -> bool:
        assert self._directory is not None
        with self._lock:
            if time.monotonic() < self._reload_s:
                return False
            self._reload_s = time.monotonic() + RELOAD_S
        try:
            key = _derive(self._directory)
        except TrogdorBusError:  # somebody is changing the keys
            return False
        changed, self._key = key != self._key, key
        return changed


def _derive(directory: Path) -> bytes:
    secret = bytes.fromhex(key_files.load_member(directory).secret)
    return blake2b(key=secret, digest_size=32, person=b"trogdor kafka").digest()


def _mac(secret: bytes, record: Record) -> bytes:
    mac = blake2b(key=secret, digest_size=32, person=b"trogdor record")
    fields = [part for name in sorted(record.fields.keys() - {HEADER}) for part in (name.encode(), record.fields[name])]
    parts = [record.topic.encode(), record.key, *fields, b"" if record.value is None else record.value]
    mac.update(bytes([record.value is None]) + len(parts).to_bytes(4, "big"))
    for part in parts:
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()
