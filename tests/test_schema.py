"""The JSON Schema of the specs: it accepts what we accept and refuses what we refuse."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from trogdor_bus.errors import SpecError
from trogdor_bus.registry import registry, tag_of
from trogdor_bus.spec import TaskSpec, wire

CLASSES = list(registry().by_tag.values())


def matches(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Return whether `value` satisfies the part of JSON Schema that our schema uses; KeyError for any other part."""
    checks: dict[str, Callable[[Any], bool]] = {
        "$ref": lambda ref: matches(value, resolve(ref, root), root),
        "anyOf": lambda options: any(matches(value, option, root) for option in options),
        "enum": lambda allowed: value in allowed,
        "type": lambda name: isinstance(
            value,
            {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}[name],
        ),
        "required": lambda names: all(name in value for name in names),
        "properties": lambda known: all(matches(value[key], known[key], root) for key in value if key in known),
        "additionalProperties": lambda allowed: allowed or all(key in schema["properties"] for key in value),
        "items": lambda item: all(matches(each, item, root) for each in value),
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
    }
    silent = {"title", "description", "default", "$schema", "$defs"}
    return all(checks[key](part) for key, part in schema.items() if key not in silent)


def resolve(ref: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return typing.cast("Mapping[str, Any]", found)


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [ref for item in value.values() for ref in references(item)]
    return [ref for item in value for ref in references(item)] if isinstance(value, list) else []


def test_the_schema_stands_alone_and_is_json() -> None:
    schema = json.loads(json.dumps(registry().schema()))
    assert len(references(schema)) >= len(CLASSES)
    for ref in references(schema):
        assert resolve(ref, schema)["type"] == "object"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_schema_accepts_what_we_accept_and_refuses_what_we_refuse(cls: type[TaskSpec]) -> None:
    schema = registry().schema()
    good = cls.example
    assert matches(good, schema, schema)
    assert matches(json.loads(wire(registry().decode(good))), schema, schema)
    for name in (tag_of(cls), *cls.aliases):
        assert matches({**good, "class": name}, schema, schema)
    for bad in ({**good, "zzz": 1}, {**good, "class": "zzz"}, {**good, "startMs": "soon"}, {**good, "startMs": 2**63}):
        assert not matches(bad, schema, schema)
        with pytest.raises(SpecError):
            registry().decode(bad)
    assert not matches({key: value for key, value in good.items() if key != "class"}, schema, schema)
