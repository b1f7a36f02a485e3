"""Text that people wrote, or did not: JSON, JSON with comments, YAML."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz.judge import decoded, keeps_nothing
from tests.fuzz.mutants import SPLINTERS, mangled
from trogdor_bus import document
from trogdor_bus.errors import SpecError
from trogdor_bus.registry import registry

SOURCES = ("s", "s.json", "s.yaml", "dir.json/s.YML")
JSON = [json.dumps({**cls.example, "é": [1.5, -0, None, True, "\\\n"]}).encode() for cls in registry().by_tag.values()]
YAML = [
    b"class: noop # c\ndurationMs: 30000\nnodes:\n  - node1\n  - 'node 2'\n  - \"node\\t3\"\ntext: |\n  two\n  lines\n",
    b"%YAML 1.2\n---\nagent: {lease: off, ceiling: 24h}\nplain: a b\n  c\nfolded: >-\n  x\n\n  y\n? k\n: v\n...\n",
]
MEBIBYTE = document.MAX_BYTES


def judge(text: bytes | str, source: str, limit_s: float = 5.0) -> None:
    result = decoded(lambda: document.parse(text, source), limit_s)
    if isinstance(result, Exception):
        assert isinstance(result, SpecError)
    else:
        json.dumps(result, allow_nan=False).encode()  # nothing that JSON does not know
        decoded(lambda: registry().decode(result))
        assert document.is_yaml(text, source) in (True, False)


@examples(250)
@given(st.data(), st.sampled_from(SOURCES))
def test_nearly_right(data: st.DataObject, source: str) -> None:
    judge(data.draw(mangled(data.draw(st.sampled_from(JSON + YAML)))), source)


@examples(150)
@given(
    st.lists(st.sampled_from(SPLINTERS), max_size=4).map(b"".join) | st.binary(max_size=60), st.sampled_from(SOURCES)
)
def test_any_bytes(data: bytes, source: str) -> None:
    judge(data, source)


@examples(200)
@given(st.text(st.characters(), max_size=40), st.sampled_from(SOURCES))
def test_any_text(text: str, source: str) -> None:
    judge(text, source)


BOMBS: dict[str, tuple[bytes, str]] = {
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "s.json"),
    "deep objects": (b'{"a":' * 100_000, "s.json"),
    "closed before they open": (b"]" * 5_000 + b"[" * 100_000, "s.json"),
    "deep yaml": (b"- " * 100_000, "s.yaml"),
    "deep flow": (b"[{a: " * 50_000, "s.yaml"),
    "deep by indentation": (b"".join(b" " * n + b"a:\n" for n in range(300)), "s.yaml"),
    "aliases": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n + 1, n + 1, b",".join([b"*%c" % n] * 9)) for n in range(97, 120)),
        "s.yaml",
    ),
    "an alias of itself": (b"a: &a [*a]\n", "s.yaml"),
    "a merge": (b"a: &a {b: 1}\nc:\n  <<: *a\n", "s.yaml"),
    "a tag": (b"a: !!python/object/apply:os.system [id]\n", "s.yaml"),
    "a long number": (b"9" * 100_000, "s.json"),
    "a long fraction": (b"0." + b"9" * 100_000, "s.json"),
    "a long exponent": (b"1e" + b"9" * 100_000, "s.yaml"),
    "a long name twice": (b'{"%s": 1, "%s": 2}' % (b"n" * 50_000, b"n" * 50_000), "s.json"),
    "a long name twice, yaml": (b"%s: 1\n%s: 2\n" % (b"n" * 1_000, b"n" * 1_000), "s.yaml"),
    "a long tag": (b"a: !%s x\n" % (b"t" * 50_000), "s.yaml"),
    "a long alias": (b"a: *%s\n" % (b"t" * 50_000), "s.yaml"),
    "a long wrong key": (b'{"class": "noop", "%s": 1}' % (b"k" * 50_000), "s.json"),
    "a long class": (b'{"class": "%s"}' % (b"k" * 50_000), "s.json"),
    "ten megabytes": (b"[" + b"1," * (5 << 20), "s.json"),
    "ten megabytes of yaml": (b"- a\n" * (5 << 19), "s.yaml"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_time(bomb: str) -> None:
    text, source = BOMBS[bomb]
    judge(text, source)


FULL: dict[str, Callable[[int], bytes]] = {
    "strings": lambda size: b'["' + b'","' * (size // 3 - 2) + b'"]',
    "objects": lambda size: b"[" + b"{}," * (size // 3 - 2) + b"{}]",
    "comments": lambda size: b"/**/" * (size // 4) + b"1",
    "unclosed comments": lambda size: b"/*" * (size // 2),
    "escapes": lambda size: b'"' + b"\\u00e9" * (size // 6 - 1) + b'"',
    "names": lambda size: b"{" + b",".join(b'"%x":1' % n for n in range(size // 10)) + b"}",
}


@pytest.mark.parametrize("kind", FULL)
def test_the_largest_json_that_is_accepted_is_read_in_time(kind: str) -> None:
    judge(FULL[kind](MEBIBYTE), "s.json")


YAMLS: dict[str, Callable[[int], bytes]] = {
    "items": lambda size: b"- a\n" * (size // 4),
    "names": lambda size: b"".join(b"k%x: v\n" % n for n in range(size // 10)),
    "flow": lambda size: b"[" + b"[]," * (size // 3) + b"]",
    "flow names": lambda size: b"{" + b",".join(b"k%x: v" % n for n in range(size // 10)) + b"}",
    "one plain": lambda size: b"x " * (size // 2),
    "folded": lambda size: b"x\n" * (size // 2),
    "quoted": lambda size: b'"' + b"\\x41" * (size // 4) + b'"',
    "comments": lambda size: b"# c\n" * (size // 4) + b"a",
    "block": lambda size: b"|\n" + b" a\n" * (size // 3),
    "keys that are none": lambda size: b"a\n" * 10 + b"'" + b"a\n" * (size // 2),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_costs_linear_time(kind: str) -> None:
    """The parser is slow, 5 to 10 s for 1 MiB, but no text may make it much slower than others of its size."""
    judge(YAMLS[kind](MEBIBYTE // 32), "s.yaml", limit_s=2.0)


BAD: list[tuple[bytes, str]] = [
    (b'{"a": 1, "a": 2}', "s.json"),
    (b'{"a": "\\ud800"}', "s.json"),
    (b"[" * 5_000, "s.json"),
    (b"[" * 101, "s.yaml"),
    (b"a: &a [x]\nb: *a\n", "s.yaml"),
    (b"a: \x00", "s.yaml"),
    (b"a: 1\n---\nb: 1", "s.yaml"),
    (b"\xff", "s"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_text_keeps_no_memory(number: int) -> None:
    text, source = BAD[number]
    keeps_nothing(lambda: document.parse(text, source))
