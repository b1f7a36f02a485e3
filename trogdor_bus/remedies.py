"""What people can do about an error, as data: a code and fields, which each interface words in its own way.

A text holds a remedy where its words belong, as ‹code› or ‹code field=value›: "nothing starts there until `‹resume›`".
So it passes through journals, stores, logs and peers of every version, and can be read as it stands where nobody has
words for it. The command line, and later REST and the page, each have one table of words.
"""  # noqa: RUF002 (the marks are meant: no program prints them)

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

CODES: Mapping[str, str] = {
    "abort": "end everything",
    "abort-all": "start a coordinator that ends what it finds",
    "adopt": "start a coordinator that keeps what it finds",
    "allow": "create the task so that it may break a `rule` of the data guard",
    "allow-probe": "start a coordinator that lets experiments connect to a place",
    "allow-probe-commands": "start a coordinator that lets probes start programs",
    "bind": "the address at which a coordinator listens",
    "bootstrap": "the brokers of the Kafka that carries the bus",
    "cluster": "the brokers of the Kafka cluster under test",
    "cluster-config": "the file of librdkafka properties for the cluster under test",
    "coordinator": "the address of the coordinator",
    "export-keys": "print the keys for other machines",
    "faults": "list the classes of specs",
    "force": "do it all the same",
    "forget": "forget a `node`, and give up what it may hold",
    "heal": "undo what the journal in a `directory` holds, on that machine",
    "import-keys": "take in the keys of another machine",
    "insecure": "the mode without keys",
    "kafka-config": "the file of librdkafka properties for the Kafka that carries the bus",
    "node": "the name of a node",
    "nodes": "list the nodes",
    "port": "the first port of a coordinator",
    "remove-topics": "delete the topics that experiments have left",
    "replace-keys": "take in other keys than those that are there",
    "resume": "let faults start again",
    "show": "show the task `id`",
    "show-experiment": "tell how the experiment `id` goes",
    "standby-after": "how long a standby waits",
    "start-agent": "start an agent",
    "start-coordinator": "start a coordinator",
    "state-dir": "the directory of a daemon's state",
    "stop": "stop the task `id`",
    "take-over": "start a coordinator that goes on with the state in the log",
    "topic-prefix": "what the names of the bus's topics begin with",
    "transport": "the `kind` of bus",
}
"""The codes that this version uses, with their meaning; another one may have more."""
_VALUE = r'"(?:[^"\\]|\\.)*"|[^\s"‹›\\]+'
_REMEDY = re.compile(rf"‹([a-z]+(?:-[a-z]+)*)((?: [a-z]+=(?:{_VALUE}))*)›")
_FIELD = re.compile(rf" ([a-z]+)=({_VALUE})")
_PLAIN = re.compile(r'[^\s"‹›\\]+')
Words = Mapping[str, str]
"""The words of one interface, by code; "{id}" stands for a field of that name."""


@dataclass(frozen=True)
class Remedy:
    """Something that can be done, or set: one of `CODES`, or of another version's, and what it is about."""

    code: str
    fields: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        told = (f" {name}={_written(value)}" for name, value in self.fields.items())
        return f"‹{self.code}{''.join(told)}›"


def remedies_in(text: str) -> tuple[Remedy, ...]:
    """Return the remedies that a text names, in their order, each once."""
    found = (_read(match) for match in _REMEDY.finditer(text))
    return tuple({str(one): one for one in found if one is not None and one.code in CODES}.values())


def worded(text: str, words: Words) -> str:
    """Return a text with each remedy in the words of an interface; one for which it has none stays as it stands."""

    def word(match: re.Match[str]) -> str:
        remedy = _read(match)
        if remedy is None or remedy.code not in words:
            return match[0]
        return words[remedy.code].format_map(defaultdict(str, remedy.fields)).rstrip()

    return _REMEDY.sub(word, text) if "‹" in text else text


def _read(match: re.Match[str]) -> Remedy | None:
    """Return what stands there; None if somebody else wrote it, and wrongly."""
    try:
        fields = {name: json.loads(value) if value[0] == '"' else value for name, value in _FIELD.findall(match[2])}
    except ValueError:
        return None
    return Remedy(match[1], fields)


def _written(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
