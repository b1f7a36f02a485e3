"""How the cluster under test is reached: brokers, and a file of librdkafka properties, told to both Kafka clients."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trogdor_bus.errors import SpecError
from trogdor_bus.properties import Properties

DEFAULT_PORT = 9092
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
OFF, ON = ("false", "0", "f"), ("true", "1", "t")
PREFIXES = ("security.", "sasl.", "ssl.", "enable.ssl.", "enable.sasl.", "https.")
"""How the properties begin that say whom to trust and who we are: one that is not understood is refused."""
UNDERSTOOD = frozenset(
    (
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.crl.location",
        "ssl.cipher.suites",
        "ssl.endpoint.identification.algorithm",
        "enable.ssl.certificate.verification",
    )
)
REMEDIES = {
    "ssl.keystore.location": "use ssl.certificate.location and ssl.key.location, PEM files",
    "ssl.certificate.pem": "write it to a file, and use ssl.certificate.location",
    "ssl.key.pem": "write it to a file, and use ssl.key.location",
}
"""What to use in place of some that only librdkafka understands."""


class Place(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Access:
    """`HOST:PORT,...` of some brokers, and the properties file, read once; SpecError names what is wrong in either."""

    def __init__(self, bootstrap: str, properties: Path | None = None) -> None:
        self.bootstrap = bootstrap
        self.places = tuple(dict.fromkeys(_place(text.strip()) for text in bootstrap.split(",")))
        """Where the brokers listen that are asked first."""
        self.properties = Properties(properties, brokers="‹cluster›", option="‹cluster-config›")
        """What the file says; `blame` makes an error of librdkafka's complaints."""
        self._kafka_python = _security(self.properties)

    def librdkafka(self) -> dict[str, str]:
        """Return what a client of librdkafka needs to reach the cluster."""
        return {"client.id": "trogdor-bus", **self.properties, "bootstrap.servers": self.bootstrap}

    def kafka_python(self) -> dict[str, Any]:
        """Return what a client of kafka-python needs to reach the cluster."""
        servers = [str(place) for place in self.places]
        client = self.properties.get("client.id", "trogdor-bus")
        return {"client_id": client, **self._kafka_python, "bootstrap_servers": servers}

    def __str__(self) -> str:
        return f"the cluster at {self.bootstrap}"


def _place(text: str) -> Place:
    remedy = "write HOST:PORT,... of one or more brokers"
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or set(text) & set("@/ ") or (":" in host and not text.startswith("[")):
        raise SpecError(f"{text!r} is no broker", remedy=remedy)
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SpecError(f"{text!r} has no port from 1 to 65535", remedy=remedy)
    return Place(host, int(port))


def _security(properties: Properties) -> dict[str, Any]:
    """Return what kafka-python is told of TLS and SASL; SpecError names a property that has no counterpart there."""
    for name in properties:
        if name.startswith(PREFIXES) and name not in UNDERSTOOD:
            remedy = REMEDIES.get(name, "the cluster under test is asked with TLS, and with SASL's PLAIN and SCRAM")
            raise properties.fault(name, "this is not understood by the client that asks the cluster", remedy)
    protocol = properties.get("security.protocol", "plaintext").upper()
    if protocol not in PROTOCOLS:
        raise properties.fault("security.protocol", f"there is no {protocol}", f"use one of {', '.join(PROTOCOLS)}")
    settings: dict[str, Any] = {"security_protocol": protocol}
    if protocol.startswith("SASL"):
        settings |= _sasl(properties)
    if protocol.endswith("SSL"):
        settings["ssl_context"] = _tls(properties)
    return settings


def _sasl(properties: Properties) -> Mapping[str, str]:
    name = "sasl.mechanism" if "sasl.mechanism" in properties else "sasl.mechanisms"
    mechanism = properties.get(name, "GSSAPI").upper()  # librdkafka's default
    if mechanism not in MECHANISMS:
        raise properties.fault(name, f"{mechanism} cannot be used here", f"set it to one of {', '.join(MECHANISMS)}")
    for needed in ("sasl.username", "sasl.password"):
        if needed not in properties:
            raise properties.fault(needed, f"{mechanism} needs it", "set it")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": properties["sasl.username"],
        "sasl_plain_password": properties["sasl.password"],
    }


def _tls(properties: Properties) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    algorithm = properties.get("ssl.endpoint.identification.algorithm", "https").lower()
    if algorithm not in ("https", "none"):
        raise properties.fault("ssl.endpoint.identification.algorithm", f"there is no {algorithm}", "use https or none")
    verified = properties.get("enable.ssl.certificate.verification", "true").lower()
    if verified not in (*OFF, *ON):
        raise properties.fault("enable.ssl.certificate.verification", f"{verified!r} is no truth", "use true or false")
    context.check_hostname = algorithm == "https" and verified in ON
    if verified in OFF:
        context.verify_mode = ssl.CERT_NONE
    _trust(properties, context)
    _identify(properties, context)
    if suites := properties.get("ssl.cipher.suites"):
        try:
            context.set_ciphers(suites)
        except ssl.SSLError as error:
            raise properties.fault("ssl.cipher.suites", _words(error), "see `openssl ciphers`") from None
    return context


def _trust(properties: Properties, context: ssl.SSLContext) -> None:
    place, text = properties.get("ssl.ca.location", ""), properties.get("ssl.ca.pem", "")
    name = "ssl.ca.location" if place else "ssl.ca.pem"
    try:
        if not place and not text:
            context.load_default_certs()
        elif place and Path(place).is_dir():
            context.load_verify_locations(capath=place)
        else:
            context.load_verify_locations(cafile=place or None, cadata=text.replace("\\n", "\n") or None)
        if revoked := properties.get("ssl.crl.location"):
            name = "ssl.crl.location"
            context.load_verify_locations(cafile=revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as error:
        raise properties.fault(name, _words(error), "give certificates in PEM, readable for this user") from None


def _identify(properties: Properties, context: ssl.SSLContext) -> None:
    certificate, key = properties.get("ssl.certificate.location"), properties.get("ssl.key.location")
    if certificate is None and key is None:
        return
    if certificate is None:
        raise properties.fault("ssl.key.location", "there is no certificate to it", "set ssl.certificate.location, too")
    try:
        context.load_cert_chain(certificate, key, properties.get("ssl.key.password", ""))
    except (OSError, ValueError) as error:
        name = "ssl.certificate.location" if key is None else "ssl.key.location"
        remedy = "give certificate and key in PEM, and ssl.key.password if the key has one"
        raise properties.fault(name, _words(error), remedy) from None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
