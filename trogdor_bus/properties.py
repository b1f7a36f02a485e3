"""A file of librdkafka properties (TLS, SASL, whatever a cluster needs): one `key=value` a line, `#` for comments."""

from __future__ import annotations

import re
from pathlib import Path

from trogdor_bus.document import read_path
from trogdor_bus.errors import SpecError

MAX_BYTES = 1 << 20
LIST = "the properties are those of librdkafka, see its CONFIGURATION.md"
BROKERS = ("bootstrap.servers", "metadata.broker.list")
RELIED_ON = frozenset(
    (
        *BROKERS,
        "acks",
        "allow.auto.create.topics",
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "enable.partition.eof",
        "isolation.level",
        "log.queue",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.max.bytes",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "partitioner",
        "plugin.library.paths",
        "receive.message.max.bytes",
        "request.required.acks",
        "transactional.id",
    )
)
"""What must not be set: it is said elsewhere, or trogdor-bus would break with another value."""
OF_JAVA = {
    "sasl.jaas.config": "use sasl.username and sasl.password",
    "ssl.truststore.location": "use ssl.ca.location, a PEM file",
    "ssl.truststore.password": "use ssl.ca.location, a PEM file",
    "ssl.truststore.type": "use ssl.ca.location, a PEM file",
    "ssl.keystore.type": "use ssl.keystore.location (PKCS#12), or ssl.certificate.location and ssl.key.location",
}
Where = dict[str, int]


class Properties(dict[str, str]):
    """The properties by name; `blame` finds the line that librdkafka complains about, `fault` that of a name.

    `brokers` and `option` name the settings that say where the brokers are, and which file this is.
    """

    def __init__(
        self, path: Path | None = None, *, brokers: str = "‹bootstrap›", option: str = "‹kafka-config›"
    ) -> None:
        super().__init__()
        self._path, self._brokers = path, brokers
        self._lines: Where = {}
        if path is not None:
            for number, line in enumerate(_text(path, option).splitlines(), 1):
                self._take(number, line.strip())

    def blame(self, complaint: str) -> SpecError | None:
        """Return the error that names the line of the property that a complaint of librdkafka names, None without."""
        named = [name for name in re.findall(r"[a-z0-9._-]+", complaint) if name in self._lines]
        return self._error(self._lines[named[0]], complaint, LIST) if named else None

    def fault(self, name: str, message: str, remedy: str) -> SpecError:
        """Return the error that names the line in which a property is set, or the file if it is not set."""
        if name in self._lines:
            return self._error(self._lines[name], f"{name}: {message}", remedy)
        return SpecError(f"{self._path or 'the properties'}: {name}: {message}", remedy=remedy)

    def _take(self, number: int, line: str) -> None:
        if not line or line[0] in "#!":
            return
        key, equals, value = (part.strip() for part in line.partition("="))
        if not key or not equals:
            raise self._error(number, "this is no key=value", "write one property a line, and # before a comment")
        if key in RELIED_ON:
            elsewhere = f"{self._brokers} says where the brokers are"
            why = elsewhere if key in BROKERS else "trogdor-bus relies on its own value"
            raise self._error(number, f"{key} may not be set: {why}", "remove the line")
        if key in OF_JAVA:
            raise self._error(number, f"{key} is a property of Java's clients", OF_JAVA[key])
        if key in self:
            raise self._error(number, f"{key} is set in line {self._lines[key]} already", "remove one of them")
        self[key], self._lines[key] = value, number

    def _error(self, number: int, message: str, remedy: str) -> SpecError:
        return SpecError(f"{self._path}, line {number}: {message}", remedy=remedy)


def _text(path: Path, option: str) -> str:
    remedy = f"give {option} a text file of librdkafka properties"
    try:
        if path.stat().st_mode & 0o022:
            raise SpecError(f"others may write {path}, and it says whom we trust", remedy=f"run `chmod go-w {path}`")
        content = read_path(path, MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise SpecError(f"{path} is larger than {MAX_BYTES} bytes", remedy=remedy)
        return content.decode()
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", remedy=remedy) from None
    except ValueError as error:
        raise SpecError(f"{path} is no text: {error}", remedy=remedy) from None
