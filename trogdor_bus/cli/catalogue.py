"""The list of faults, made from the spec classes themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from trogdor_bus.cli import render
from trogdor_bus.registry import tag_of
from trogdor_bus.spec import TaskSpec

LONG_MAX = 2**63 - 1


def show_all(classes: Sequence[type[TaskSpec]]) -> None:
    """Print name and summary of each class."""
    table = render.table("NAME", "WHAT IT DOES")
    for cls in sorted(classes, key=_name):
        render.add_row(table, _name(cls), cls.summary)
    render.console().print(table)
    print("\n`trogdor-bus faults NAME` shows the fields and an example.")


def show(cls: type[TaskSpec]) -> None:
    """Print everything about one class."""
    console = render.console()
    console.print(render.text(_name(cls), "bold"))
    console.print(render.text(inspect.cleandoc(cls.__doc__ or cls.summary)))
    console.print()
    table = render.table("FIELD", "TYPE", "DEFAULT")
    render.add_row(table, "class", f"{tag_of(cls)}" + "".join(f", or {alias}" for alias in cls.aliases), "")
    for name, field in _fields(cls).items():
        render.add_row(table, name, field["type"], json.dumps(field["default"]))
    console.print(table)
    print(f"\nExample:\n{json.dumps(cls.example, indent=2)}")


def described(cls: type[TaskSpec]) -> dict[str, Any]:
    """Return everything about one class as a JSON-like value."""
    return {
        "class": tag_of(cls),
        "aliases": list(cls.aliases),
        "summary": cls.summary,
        "fields": _fields(cls),
        "example": cls.example,
    }


def _name(cls: type[TaskSpec]) -> str:
    return cls.aliases[0] if cls.aliases else tag_of(cls)


def _fields(cls: type[TaskSpec]) -> dict[str, dict[str, Any]]:
    schemas, components = msgspec.json.schema_components([cls], ref_template="{name}")
    own = components[schemas[0]["$ref"]]["properties"]
    return {
        name: {"type": _words(schema, components), "default": schema.get("default")}
        for name, schema in own.items()
        if name != "class"
    }


def _words(schema: dict[str, Any], components: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _words(components[schema["$ref"]], components)
    if "anyOf" in schema:
        return " or ".join(_words(option, components) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) or '""' for choice in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items') or {}, components)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_words(schema['additionalProperties'], components)}"
    kind = str(schema.get("type", "any value"))
    if "minimum" in schema and "maximum" in schema and schema["maximum"] < LONG_MAX:
        return f"{kind} from {schema['minimum']} to {schema['maximum']}"
    return kind
