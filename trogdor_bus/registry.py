"""Finds every spec class, and turns JSON objects into specs.

Specs come from `trogdor_bus.faults` and from other packages' entry points in the group "trogdor_bus.faults" (each names
a spec class or a module of them). A package that is broken costs only itself.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from trogdor_bus.errors import DuplicateSpecError, SpecError
from trogdor_bus.limits import MAX_DEPTH, fits, is_too_deep
from trogdor_bus.names import shown
from trogdor_bus.plugins import MEND, Kinds
from trogdor_bus.spec import MAX_DURATION_MS, TaskSpec, guarded

ENTRY_POINT_GROUP = "trogdor_bus.faults"
MAX_SPEC_BYTES = 1 << 20
CLOSE = 0.75
"""How like a known name another must be to be suggested, from 0 to 1 (difflib)."""
TROGDORS = "org.apache.kafka.trogdor."
_NOT_YET = frozenset(
    {
        "DegradedNetworkFaultSpec",
        "FilesUnreadableFaultSpec",
        "ProduceBenchSpec",
        "ConsumeBenchSpec",
        "RoundTripWorkloadSpec",
        "ConnectionStressSpec",
        "SustainedConnectionSpec",
        "ConfigurableProducerSpec",
        "SampleTaskSpec",
    }
)
"""Trogdor's other specs (its packages task, fault and workload, in Kafka 4.0)."""


class Registry:
    """The spec classes by tag and by alias. DuplicateSpecError if two of them claim one.

    Of the classes of `others` those are left out that cannot be had beside them; `broken` says why, a line each.
    """

    def __init__(
        self, classes: Iterable[type[TaskSpec]], others: Iterable[type[TaskSpec]] = (), broken: Iterable[str] = ()
    ) -> None:
        self.by_tag: dict[str, type[TaskSpec]] = {}
        self._by_alias: dict[str, str] = {}
        for cls in classes:
            self._add(cls)
        left_out = list(broken)
        for cls in others:
            try:
                self._add(cls)
            except DuplicateSpecError as error:
                left_out.append(f"{error}; rename it")
            except Exception as error:
                left_out.append(f"{tag_of(cls)} cannot be had: {error!r}; {MEND}")
        self.broken = tuple(left_out)

    def _add(self, cls: type[TaskSpec]) -> None:
        tag = tag_of(cls)
        if self.by_tag.get(tag, cls) is not cls:
            raise DuplicateSpecError(f"{cls.__name__} and {self.by_tag[tag].__name__} both claim the class {tag!r}")
        if tag in self._by_alias:
            raise DuplicateSpecError(f"{self._by_alias[tag]} claims the alias {tag!r}, which is another's class")
        for alias in cls.aliases:
            if self._by_alias.get(alias, tag) != tag:
                raise DuplicateSpecError(f"{self._by_alias[alias]} and {tag} both claim the alias {alias!r}")
            if alias in self.by_tag or alias == tag:
                raise DuplicateSpecError(f"{tag} claims the alias {alias!r}, which is another's class")
        self.by_tag[tag] = cls
        self._by_alias |= dict.fromkeys(cls.aliases, tag)

    def decode(self, data: object, *, checked: bool = True) -> TaskSpec:
        """Return the spec that the JSON object `data` describes; SpecError names the field and the remedy.

        As Trogdor: a scalar stands for a list of one, null for a default, and "12" for 12. `checked` False leaves out
        what only the spec's own `check` finds.
        """
        if is_too_deep(data):
            raise SpecError(f"the spec is nested deeper than {MAX_DEPTH}", remedy="make it flatter")
        if not isinstance(data, Mapping):
            raise SpecError(f"a spec is a JSON object, not {_json_type(data)}", remedy='write {"class": ..., ...}')
        if "class" not in data:
            raise SpecError("the field is missing", path="$.class", remedy="`‹faults›` lists the classes")
        cls = self.lookup(data["class"])
        fields = _fields(cls)
        body: dict[str, Any] = {"class": tag_of(cls)}
        for key, value in data.items():
            if key != "class" and not (value is None and key in fields):
                body[key] = _listed(value, fields[key].type) if key in fields else value
        with guarded(cls):
            try:
                spec = msgspec.convert(body, cls, strict=False)
                given_ms, clamped_ms = spec.duration_ms, max(0, min(spec.duration_ms, MAX_DURATION_MS))
                if clamped_ms != given_ms and not tag_of(cls).startswith(TROGDORS):
                    raise SpecError(
                        f"is {given_ms}", path="$.durationMs", remedy=f"give ms, from 0 to {MAX_DURATION_MS}"
                    )  # Trogdor takes it, and clamps it
                spec = msgspec.structs.replace(spec, duration_ms=clamped_ms)
                _check_json(msgspec.to_builtins(spec), "$")
            except msgspec.ValidationError as error:
                raise _spec_error(error, fields) from None
            except UnicodeEncodeError:
                raise SpecError(
                    "the spec holds half a character (a lone surrogate)", remedy="write it in UTF-8"
                ) from None
            if checked:
                spec.check()
        return spec

    def lookup(self, name: object) -> type[TaskSpec]:
        """Return the class whose tag or alias is `name`; SpecError suggests the nearest one."""
        if not isinstance(name, str):
            raise SpecError(f"expected a class name, got {_json_type(name)}", path="$.class")
        tag = self._by_alias.get(name, name)
        if tag in self.by_tag:
            return self.by_tag[tag]
        remedy = "`‹faults›` lists the classes"
        if _last(name) in _NOT_YET:
            raise SpecError(f"'{shown(name)}' is Trogdor's, and not supported yet", path="$.class", remedy=remedy)
        known = {_last(tag): tag for tag in self.by_tag} | {alias: alias for alias in self._by_alias}
        near = difflib.get_close_matches(_last(name), known, n=1, cutoff=CLOSE)
        hint = f"did you mean {known[near[0]]!r}? " if near else ""
        message = "; ".join((f"unknown class '{shown(name)}'", *self.broken))
        raise SpecError(message, path="$.class", remedy=hint + remedy)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of all specs."""
        classes = tuple(self.by_tag.values())
        refs, components = msgspec.json.schema_components(classes, ref_template="#/$defs/{name}")
        for cls, ref in zip(classes, refs, strict=True):
            component = components[ref["$ref"].removeprefix("#/$defs/")]
            component["description"] = inspect.cleandoc(component["description"])
            component["properties"]["class"]["enum"] = [tag_of(cls), *cls.aliases]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "trogdor-bus specs",
            "anyOf": list(refs),
            "$defs": components,
        }


@functools.cache
def registry() -> Registry:
    """Return the registry of everything installed, read once."""
    kinds = Kinds(TaskSpec, "trogdor_bus.faults", ENTRY_POINT_GROUP)
    return Registry(kinds.ours.values(), kinds.others[0].values(), kinds.broken)


@functools.cache
def _fields(cls: type[TaskSpec]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(cls)}


def _last(name: str) -> str:
    """Return the last part of a class's name."""
    return name.rpartition(".")[2]


def tag_of(cls: type[TaskSpec]) -> str:
    """Return the `class` of a spec class on the wire."""
    return str(cls.__struct_config__.tag)


def _listed(value: Any, annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (tuple, list, frozenset, set):
        return value
    if isinstance(value, list):
        return [_listed(item, typing.get_args(annotation)[0]) for item in value]
    return _listed([value], annotation) if isinstance(value, str | int | float) else value


def _check_json(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError("is no number that JSON can hold", path=path, remedy="write another number, or a text")
    if isinstance(value, int) and not fits(value):
        raise SpecError("is a number of more than 64 bits", path=path, remedy="write it as a text")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SpecError("a field name is not text", path=path, remedy="put it in quotes")
            _check_json(key, path)
            _check_json(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{path}[{index}]")
    elif isinstance(value, str) and "\0" in value:
        raise SpecError("holds the character U+0000", path=path, remedy="remove it")
    elif isinstance(value, str):
        value.encode()


def _spec_error(error: msgspec.ValidationError, fields: Mapping[str, Any]) -> SpecError:
    text, _, path = str(error).partition(" - at `")
    path = path.rstrip("`") or "$"
    if path.startswith("key` in `"):
        where = shown(path.removeprefix("key` in `"))
        return SpecError("a field name is not text", path=where, remedy="put it in quotes")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.S)
    if unknown:
        near = difflib.get_close_matches(unknown[1], fields, n=1) if path == "$" else []
        known = f"the fields are {', '.join(fields)}" if path == "$" else "mend its name, or remove it"
        hint = f"did you mean {near[0]!r}?" if near else known
        return SpecError("unknown field", path=f"{path}.{shown(unknown[1])}", remedy=hint)
    missing = re.fullmatch(r"Object missing required field `(.*)`", text, re.S)
    if missing:
        return SpecError("the field is missing", path=f"{path}.{missing[1]}", remedy="add it")
    field = fields.get(path.removeprefix("$."))
    choices = typing.get_args(field.type) if field and typing.get_origin(field.type) is typing.Literal else ()
    remedy = f"one of {', '.join(map(str, choices))}" if choices else ""
    return SpecError(shown(text[:1].lower() + text[1:].replace("`", "")), path=shown(path), remedy=remedy)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
