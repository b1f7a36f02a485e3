"""What a properties file means for both of Kafka's clients, and what is refused in it."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support import require
from trogdor_bus.errors import SpecError
from trogdor_bus.kafka.access import Access, Place


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "client.properties"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signed itself, in cert.pem; its key in key.pem has the password `secret`."""
    directory = tmp_path_factory.mktemp("tls")
    argv = "openssl req -x509 -newkey rsa:2048 -passout pass:secret -keyout key.pem -out cert.pem -days 1 -subj /CN=x"
    try:
        subprocess.run(argv.split(), cwd=directory, check=True, capture_output=True)
    except FileNotFoundError:
        require(False, "openssl is not installed", "apt-get install openssl")
    return directory


def test_without_a_file_it_is_plain() -> None:
    access = Access("a, b:9093 ,[::1]:9094,a:9092")
    assert access.places == (Place("a", 9092), Place("b", 9093), Place("::1", 9094))
    assert access.librdkafka() == {"client.id": "trogdor-bus", "bootstrap.servers": "a, b:9093 ,[::1]:9094,a:9092"}
    assert access.kafka_python() == {
        "client_id": "trogdor-bus",
        "bootstrap_servers": ["a:9092", "b:9093", "[::1]:9094"],
        "security_protocol": "PLAINTEXT",
    }


@pytest.mark.parametrize("text", ["", "a,", "a:x", "a:0", "a:65536", "me@a:1", "kafka://a:1", "::1", "a b:1"])
def test_what_is_no_broker_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="write HOST:PORT"):
        Access(text)


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_a_name_and_a_password(tmp_path: Path, name: str) -> None:
    lines = ["security.protocol=sasl_plaintext", f"{name}=scram-sha-256", "sasl.username=me", "sasl.password=a=b"]
    access = Access("a", written(tmp_path, *lines, "linger.ms=5"))
    assert access.kafka_python() == {
        "client_id": "trogdor-bus",
        "bootstrap_servers": ["a:9092"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "me",
        "sasl_plain_password": "a=b",
    }
    assert access.librdkafka()["linger.ms"] == "5"


def test_certificates(tmp_path: Path, certificate: Path) -> None:
    lines = [
        "security.protocol=ssl",
        f"ssl.ca.location={certificate}/cert.pem",
        f"ssl.certificate.location={certificate}/cert.pem",
        f"ssl.key.location={certificate}/key.pem",
        "ssl.key.password=secret",
    ]
    context = Access("a", written(tmp_path, *lines)).kafka_python()["ssl_context"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert len(context.get_ca_certs()) == 1
    any_name = written(tmp_path, *lines, "ssl.endpoint.identification.algorithm=none")
    context = Access("a", any_name).kafka_python()["ssl_context"]
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_REQUIRED)
    anybody = written(tmp_path, "security.protocol=ssl", "enable.ssl.certificate.verification=false")
    context = Access("a", anybody).kafka_python()["ssl_context"]
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_NONE)
    wrong = written(tmp_path, *lines[:-1], "ssl.key.password=wrong")
    with pytest.raises(SpecError, match=r"client.properties, line 4: ssl.key.location: .*ssl.key.password"):
        Access("a", wrong)
    without = written(tmp_path, *lines[:-1])
    with pytest.raises(SpecError, match=r"line 4: ssl.key.location"):
        Access("a", without)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("security.protocol=tls", "line 1: security.protocol: there is no TLS .use one of PLAINTEXT, SSL"),
        ("security.protocol=sasl_ssl", "sasl.mechanisms: GSSAPI cannot be used here .set it to one of PLAIN"),
        ("security.protocol=sasl_ssl\nsasl.mechanism=OAUTHBEARER", "line 2: sasl.mechanism: OAUTHBEARER cannot"),
        ("security.protocol=sasl_ssl\nsasl.mechanism=PLAIN\nsasl.username=x", "sasl.password: PLAIN needs it"),
        ("ssl.keystore.location=/x", "line 1: ssl.keystore.location: .*use ssl.certificate.location"),
        ("sasl.kerberos.keytab=/x", "line 1: sasl.kerberos.keytab: this is not understood"),
        ("sasl.jaas.config=x", "line 1: sasl.jaas.config is a property of Java's clients"),
        ("security.protocol=ssl\nssl.ca.location=/no/such", "line 2: ssl.ca.location: No such file"),
        ("security.protocol=ssl\nssl.key.location=/no/such", "line 2: ssl.key.location: there is no certificate"),
        ("security.protocol=ssl\nssl.cipher.suites=none-such", "line 2: ssl.cipher.suites"),
        ("security.protocol=ssl\nssl.endpoint.identification.algorithm=x", "line 2: .*use https or none"),
        ("security.protocol=ssl\nenable.ssl.certificate.verification=x", "line 2: .*use true or false"),
        ("bootstrap.servers=x", "line 1: bootstrap.servers may not be set: ‹cluster› says where the brokers are"),
        ("acks=1", "line 1: acks may not be set: trogdor-bus relies on its own value"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Access("a", written(tmp_path, text))


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="‹cluster-config›"):
        Access("a", tmp_path / "none")
