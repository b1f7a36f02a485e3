"""Inputs that are nearly right: JSON values and bytes with a few things changed, and what usually breaks readers."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from trogdor_bus.topology import Node, Topology

TOPOLOGY = Topology(nodes={f"node{n}": Node(name=f"node{n}", addresses=(f"10.0.0.{n}",)) for n in (1, 2, 3)})
"""The nodes that the examples of the faults name."""
DEEP = 3_000
"""Deeper than the recursion limit."""


def nested(depth: int, leaf: Any = 1) -> Any:
    """Return lists in lists."""
    value = leaf
    for _ in range(depth):
        value = [value]
    return value


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.text(st.characters(), max_size=4),  # lone surrogates, too
    st.sampled_from(
        [
            "",
            " ",
            "\0",
            "a\0b",
            "\ud800",
            "é",
            "x" * 5_000,
            "12",
            "-1",
            "1e3",
            "9" * 30,
            "9" * 5_000,
            "30s",
            "off",
            "node1",
            "10.0.0.1",
            "::1",
            "a/b",
            "$.x",
            "`",
            " - at `$.y`",
            2**31,
            2**53,
            2**63 - 1,
            2**63,
            2**64,
            -(2**63) - 1,
            10**30,
            10**400,
            1e308,
            float("nan"),
            float("inf"),
            -0.0,
            1.5,
        ]
    ),
)
values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from([200, DEEP]).map(nested),
    st.sampled_from([[["n1"], ["n2"]], {"class": "noop"}]).map(copy.deepcopy),
)


@st.composite
def mutated(draw: st.DrawFn, base: Any) -> Any:
    """Return a JSON value with one to three places replaced, removed, renamed, added or put into a list."""
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(values) if draw(st.booleans()) else [value]
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    way = draw(st.sampled_from(["inside", "replace", "replace", "remove", "rename", "add"]))
    if way == "inside":
        value[key] = _change(draw, value[key])
    elif way == "replace":
        value[key] = draw(values)
    elif way == "remove":
        del value[key]
    elif isinstance(value, dict):
        name = draw(st.text(max_size=8) | st.sampled_from(["x" * 3_000, "class ", "\0", "`", "a.b", "{}"]))
        value[name] = value.pop(key) if way == "rename" else draw(values)
    else:
        value.insert(key, draw(values) if way == "add" else value[key])
    return value


def written(value: Any) -> bytes:
    """Return a value as JSON; what Python cannot write is deep, and so is what comes instead."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"


SPLINTERS = [
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",  # a surrogate in UTF-8
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"null",
    b"true",
    b"1e400",
    b"9" * 25,
    b"9" * 5_000,
    b"-" + b"9" * 19,
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'"' + b"x" * 5_000 + b'"',
    b"//",
    b"/*",
    b"*a",
    b"&a ",
    b"!!python/name:os.system ",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\t",
]


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes with one to four pieces cut, doubled, overwritten or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        way = draw(st.sampled_from(["put", "put", "over", "cut", "double", "bits", "end"]))
        if way == "put":
            data = data[:start] + draw(st.sampled_from(SPLINTERS)) + data[start:]
        elif way == "over":
            data = data[:start] + draw(st.sampled_from(SPLINTERS)) + data[end:]
        elif way == "cut":
            data = data[:start] + data[end:]
        elif way == "double":
            data = data[:end] + data[start:]
        elif way == "end":
            data = data[:start]
        elif data:
            at = min(start, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    return data
