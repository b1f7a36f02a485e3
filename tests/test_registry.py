"""The registry: lenient where Jackson is, strict elsewhere, and never anything but a SpecError."""

from __future__ import annotations

import datetime
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trogdor_bus.errors import DuplicateSpecError, SpecError
from trogdor_bus.registry import Registry, registry, tag_of
from trogdor_bus.spec import MAX_DURATION_MS, FaultSpec, TaskSpec, wire

CLASSES = list(registry().by_tag.values())
PARTITION = "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec"


def decode(alias: str, **fields: Any) -> TaskSpec:
    return registry().decode({"class": alias, **fields})


def error_of(data: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        registry().decode(data)
    return caught.value


# --- tags and aliases -------------------------------------------------------------------------------------------------


def test_our_tags_are_our_python_names_and_trogdors_are_trogdors() -> None:
    ours = {tag_of(cls): cls for cls in CLASSES if not tag_of(cls).startswith("org.apache.kafka.trogdor.")}
    assert len(ours) >= 4
    for tag, cls in ours.items():
        assert tag == f"{cls.__module__}.{cls.__qualname__}"
    assert {tag for tag in registry().by_tag if tag not in ours} == {
        PARTITION,
        "org.apache.kafka.trogdor.fault.ProcessStopFaultSpec",
        "org.apache.kafka.trogdor.task.NoOpTaskSpec",
        "org.apache.kafka.trogdor.workload.ExternalCommandSpec",
    }


@pytest.mark.parametrize(
    "alias",
    ["partition", "directed-partition", "port-block", "java-process-stop", "process-stop", "process-kill", "noop"],
)
def test_every_alias_is_known_and_never_written(alias: str) -> None:
    cls = registry().lookup(alias)
    assert alias in cls.aliases
    assert json.loads(wire(registry().decode({**cls.example, "class": alias})))["class"] == tag_of(cls)


def test_a_tag_or_alias_claimed_twice_is_an_error() -> None:
    class One(TaskSpec, frozen=True, kw_only=True, tag="example.One"):
        aliases = ("one", "first")

    class SameTag(TaskSpec, frozen=True, kw_only=True, tag="example.One"):
        pass

    class SameAlias(TaskSpec, frozen=True, kw_only=True, tag="example.Two"):
        aliases = ("first",)

    class AliasIsTag(TaskSpec, frozen=True, kw_only=True, tag="example.Three"):
        aliases = ("example.One",)

    with pytest.raises(DuplicateSpecError, match=r"SameTag and One both claim the class 'example\.One'"):
        Registry([One, SameTag])
    with pytest.raises(DuplicateSpecError, match=r"example\.One and example\.Two both claim the alias 'first'"):
        Registry([One, SameAlias])
    for order in ([One, AliasIsTag], [AliasIsTag, One]):
        with pytest.raises(DuplicateSpecError, match=r"example\.Three claims the alias 'example\.One'"):
            Registry(order)
    assert Registry([One, One]).lookup("first") is One, "the same class twice is no clash"


# --- other packages ---------------------------------------------------------------------------------------------------

PLUGIN = """
from trogdor_bus.spec import FaultSpec

class ColdFaultSpec(FaultSpec, frozen=True, kw_only=True, tag="plugin_of_a_test.ColdFaultSpec"):
    aliases = ("cold",)

class _Base(FaultSpec, frozen=True, kw_only=True):
    pass

number = 5
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], Registry]]:
    """Return what installs a package whose entry point has the given value, and then reads the registry anew."""

    def installed(value: str) -> Callable[[], Registry]:
        info = tmp_path / "plugin_of_a_test-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[trogdor_bus.faults]\ncold = {value}\n")
        (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)
        return registry.__wrapped__

    return installed


@pytest.mark.parametrize("value", ["plugin_of_a_test", "plugin_of_a_test:ColdFaultSpec"])
def test_other_packages_bring_specs_by_entry_point(
    install: Callable[[str], Callable[[], Registry]], value: str
) -> None:
    found = install(value)()
    assert found.lookup("cold").__name__ == "ColdFaultSpec"
    assert found.by_tag.keys() - registry().by_tag.keys() == {"plugin_of_a_test.ColdFaultSpec"}
    assert json.loads(wire(found.decode({"class": "cold"})))["class"] == "plugin_of_a_test.ColdFaultSpec"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("plugin_of_a_test_that_is_missing", "cannot be loaded: ModuleNotFoundError"),
        ("plugin_of_a_test:Missing", "cannot be loaded: AttributeError"),
        ("plugin_of_a_test:number", "cannot be loaded: TypeError.*neither a TaskSpec nor a module of them"),
        ("plugin_that_exits", "cannot be loaded: SystemExit"),
    ],
)
def test_a_broken_package_costs_only_itself_and_is_named_where_somebody_asks_for_what_it_may_have(
    install: Callable[[str], Callable[[], Registry]], tmp_path: Path, value: str, said: str
) -> None:
    (tmp_path / "plugin_that_exits.py").write_text("raise SystemExit(3)")
    found = install(value)()
    assert found.by_tag == registry().by_tag
    assert found.decode({"class": "noop"}) == registry().decode({"class": "noop"})
    pattern = f"the entry point cold = {value} {said}.*uninstall"
    with pytest.raises(SpecError, match=f"class: unknown class 'cold'; {pattern}"):
        found.lookup("cold")
    (line,) = found.broken
    assert re.match(pattern, line)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"plugin_of_a_test.ColdFaultSpec"', '"org.apache.kafka.trogdor.task.NoOpTaskSpec"', "NoOpTaskSpec'"),
        ('("cold",)', '("cold", "noop")', "the alias 'noop'"),
        ('("cold",)', '("org.apache.kafka.trogdor.task.NoOpTaskSpec",)', "the alias 'org.apache.kafka"),
        ('("cold",)', "5", "TypeError"),
    ],
)
def test_what_is_ours_stays_ours_whoever_claims_it(
    install: Callable[[str], Callable[[], Registry]], tmp_path: Path, old: str, new: str, said: str
) -> None:
    make = install("plugin_of_a_test")
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN.replace(old, new))
    found = make()
    assert found.by_tag == registry().by_tag
    assert found.lookup("noop") is registry().lookup("noop")
    (line,) = found.broken
    assert said in line and ("rename it" in line or "mend its package" in line)
    with pytest.raises(SpecError, match="unknown class 'cold'"):
        found.lookup("cold")


def test_of_two_packages_that_claim_one_name_the_first_has_it(
    install: Callable[[str], Callable[[], Registry]], tmp_path: Path
) -> None:
    make = install("plugin_of_a_test\nother = another_plugin_of_a_test")
    (tmp_path / "another_plugin_of_a_test.py").write_text(PLUGIN.replace("plugin_of_a_test.C", "another.C"))
    found = make()
    assert found.lookup("cold").__module__ == "plugin_of_a_test"
    (line,) = found.broken
    assert "another.ColdFaultSpec" in line and "'cold'" in line and "rename it" in line


# --- leniency, as Jackson's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "field", "lenient", "exact"),
    [
        ("noop", "startMs", "12", 12),
        ("noop", "startMs", "-12", -12),
        ("noop", "startMs", 12.0, 12),
        ("noop", "startMs", None, 0),
        ("noop", "durationMs", None, 0),
        ("partition", "partitions", None, []),
        ("partition", "partitions", "a", [["a"]]),
        ("partition", "partitions", ["a", ["b", "c"]], [["a"], ["b", "c"]]),
        ("partition", "partitions", [], []),
    ],
)
def test_lenient_input_means_the_exact_one(alias: str, field: str, lenient: object, exact: object) -> None:
    assert decode(alias, **{field: lenient}) == decode(alias, **{field: exact})


def test_scalars_stand_for_lists_of_one() -> None:
    assert decode("port-block", nodes="a", ports="9092") == decode("port-block", nodes=["a"], ports=[9092])
    assert decode("process-stop", nodes=["a"], match="12", port=None) == decode("process-stop", nodes="a", match="12")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "path", "message", "remedy"),
    [
        ([], "$", "a spec is a JSON object, not an array", 'write {"class": ..., ...}'),
        (None, "$", "a spec is a JSON object, not null", 'write {"class": ..., ...}'),
        (True, "$", "a spec is a JSON object, not a boolean", 'write {"class": ..., ...}'),
        ("{}", "$", "a spec is a JSON object, not a string", 'write {"class": ..., ...}'),
        (1.5, "$", "a spec is a JSON object, not a number", 'write {"class": ..., ...}'),
        ({}, "$.class", "the field is missing", "`‹faults›` lists the classes"),
        ({"class": None}, "$.class", "expected a class name, got null", ""),
        (
            {"class": "partitoin"},
            "$.class",
            "unknown class 'partitoin'",
            "did you mean 'partition'? `‹faults›` lists the classes",
        ),
        (
            {"class": "org.apache.kafka.trogdor.fault.NetworkPartitionFault"},
            "$.class",
            "unknown class 'org.apache.kafka.trogdor.fault.NetworkPartitionFault'",
            f"did you mean '{PARTITION}'? `‹faults›` lists the classes",
        ),
        ({"class": "zzz"}, "$.class", "unknown class 'zzz'", "`‹faults›` lists the classes"),
        (
            {"class": "org.apache.kafka.trogdor.workload.ProduceBenchSpec"},
            "$.class",
            "'org.apache.kafka.trogdor.workload.ProduceBenchSpec' is Trogdor's, and not supported yet",
            "`‹faults›` lists the classes",
        ),
        (
            {"class": "ConsumeBenchSpec"},
            "$.class",
            "'ConsumeBenchSpec' is Trogdor's, and not supported yet",
            "`‹faults›` lists the classes",
        ),
        (
            {"class": "org.apache.kafka.trogdor.workload.SomethingElse"},
            "$.class",
            "unknown class 'org.apache.kafka.trogdor.workload.SomethingElse'",
            "`‹faults›` lists the classes",
        ),
        (
            {"class": "port-block", "nodes": "a", "ports": 1, "durationMs": -1},
            "$.durationMs",
            "is -1",
            "give ms, from 0 to 1000000000000000",
        ),
        (
            {"class": "a\x1b[31m" + "z" * 5000},
            "$.class",
            "unknown class 'a\\x1b[31m" + "z" * 111 + "...'",
            "`‹faults›` lists the classes",
        ),
        ({"class": "partition", "partition": []}, "$.partition", "unknown field", "did you mean 'partitions'?"),
        (
            {"class": "noop", "zzz": 1},
            "$.zzz",
            "unknown field",
            "the fields are startMs, durationMs",
        ),
        (
            {"class": "noop", "\x1b]0;\n": 1},
            "$.\\x1b]0;\\n",
            "unknown field",
            "the fields are startMs, durationMs",
        ),
        ({"class": "noop", "nodes": None}, "$.nodes", "unknown field", "the fields are startMs, durationMs"),
        ({"class": "noop", "startMs": "soon"}, "$.startMs", "expected int, got str", ""),
        ({"class": "noop", "startMs": 1.5}, "$.startMs", "expected int, got float", ""),
        ({"class": "noop", "startMs": True}, "$.startMs", "expected int, got bool", ""),
        ({"class": "noop", "startMs": []}, "$.startMs", "expected int, got array", ""),
        ({"class": "partition", "partitions": [["a", 1]]}, "$.partitions[0][1]", "expected str, got int", ""),
        ({"class": "partition", "partitions": [None]}, "$.partitions[0]", "expected array, got null", ""),
        ({"class": "partition", "partitions": {}}, "$.partitions", "expected array, got object", ""),
        (
            {"class": "port-block", "nodes": "a", "ports": 1, "direction": "up"},
            "$.direction",
            "invalid enum value 'up'",
            "one of in, out, both",
        ),
        ({"class": "noop", 5: 1}, "$", "a field name is not text", "put it in quotes"),
        (
            {"class": "partition", "partitions": [["\ud800"]]},
            "$",
            "the spec holds half a character (a lone surrogate)",
            "write it in UTF-8",
        ),
        (
            {"class": "noop", "\ud800": 1},
            "$",
            "the spec holds half a character (a lone surrogate)",
            "write it in UTF-8",
        ),
    ],
)
def test_errors_say_where_what_and_the_remedy(data: object, path: str, message: str, remedy: str) -> None:
    error = error_of(data)
    assert (error.path, error.message, error.remedy) == (path, message, remedy)
    where = "" if path == "$" else f"{path.removeprefix('$.')}: "
    assert str(error) == where + message + (f" ({remedy})" if remedy else "")


def test_a_required_field_that_is_missing_is_named() -> None:
    class Needy(TaskSpec, frozen=True, kw_only=True, tag="example.Needy"):
        topic_name: str

    with pytest.raises(SpecError, match=r"^topicName: the field is missing \(add it\)$"):
        Registry([Needy]).decode({"class": "example.Needy"})
    with pytest.raises(SpecError, match=r"^topicName: the field is missing \(add it\)$"):
        Registry([Needy]).decode({"class": "example.Needy", "topicName": None})


def test_a_long_unknown_field_makes_a_short_error() -> None:
    assert len(str(error_of({"class": "noop", "x" * 1_000_000: 1}))) < 300


# --- nothing but SpecError --------------------------------------------------------------------------------------------


def nested(depth: int, make: Any) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize("make", [lambda value: [value], lambda value: {"a": value}])
@pytest.mark.parametrize("alias_and_field", [("partition", "partitions"), ("noop", "startMs"), ("noop", "zzz")])
def test_deep_nesting_is_a_spec_error(make: Any, alias_and_field: tuple[str, str]) -> None:
    alias, field = alias_and_field
    error_of({"class": alias, field: nested(100_000, make)})


class FreeSpec(TaskSpec, frozen=True, kw_only=True, tag="example.Free"):
    workload: Any = None
    conf: dict[str, str] = {}


FREE = Registry([FreeSpec])


def test_deep_nesting_in_a_free_field_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="nested deeper than 100"):
        FREE.decode({"class": "example.Free", "workload": nested(200, lambda value: [value])})


def test_half_characters_and_nul_in_a_free_field_are_spec_errors() -> None:
    for bad in ({"a": ["\ud800"]}, {"\ud800": 1}, "\ud800"):
        with pytest.raises(SpecError, match="lone surrogate"):
            FREE.decode({"class": "example.Free", "workload": bad})
    with pytest.raises(SpecError, match=r"^conf: a field name is not text \(put it in quotes\)$"):
        FREE.decode({"class": "example.Free", "conf": {1: "x"}})
    with pytest.raises(SpecError, match=r"^workload\.a\[1\]: holds the character U\+0000"):
        FREE.decode({"class": "example.Free", "workload": {"a": ["", "\0"]}})


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**30), 2**63, 2**64, 65536, 0]),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["12", "-0", "1e3", "a", "b", "SIGKILL", "in", "tcp", "\ud800", "\0", "null", "9" * 5000]),
    # What a YAML reader may hand over, and JSON cannot:
    st.sampled_from([datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), b"bytes", {1, 2}, object()]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = sorted({field.encode_name for cls in CLASSES for field in msgspec.structs.fields(cls)})
NAMES = [name for cls in CLASSES for name in (tag_of(cls), *cls.aliases)]


@settings(max_examples=400)
@given(
    st.sampled_from(NAMES) | values,
    st.dictionaries(st.sampled_from(FIELDS) | st.text(st.characters(), max_size=4) | st.integers(), values, max_size=5),
    st.booleans(),
)
def test_whatever_comes_in_only_a_spec_error_comes_out(name: Any, fields: dict[Any, Any], whole: bool) -> None:
    data = {"class": name, **fields} if whole else name
    try:
        spec = registry().decode(data)
    except SpecError as error:
        assert error.message
        assert error.path.startswith("$")
        str(error).encode()
        return
    assert isinstance(data, Mapping)
    assert registry().decode(json.loads(wire(spec))) == spec


# --- every spec comes back the same -----------------------------------------------------------------------------------


def field_values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of the JSON values that a field's type allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [item for item in arguments[1:] if isinstance(item, msgspec.Meta)]
        return st.integers(int(bounds[0].ge or 0), int(bounds[0].le or 0))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(field_values(arguments[0]), max_size=4)
    if annotation is int:
        return st.integers(-5, 10 * MAX_DURATION_MS)
    if annotation is bool:
        return st.booleans()
    if annotation is type(None):
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        inner = {field.encode_name: field_values(field.type) for field in msgspec.structs.fields(annotation)}
        return st.fixed_dictionaries({}, optional=inner)
    if origin is dict:
        return near_examples() if annotation == dict[str, Any] else st.dictionaries(st.text(max_size=3), st.none())
    if annotation is str:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["a", "b", "/run/x"])
    return st.one_of([field_values(argument) for argument in arguments])


def bodies(cls: type[TaskSpec]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {field.encode_name: field_values(field.type) for field in msgspec.structs.fields(cls)}
    return st.fixed_dictionaries({"class": st.sampled_from([tag_of(cls), *cls.aliases])}, optional=fields)


@st.composite
def near_examples(draw: st.DrawFn) -> dict[str, Any]:
    """Return an example with a few fields replaced: mostly valid, unlike a body made of chance alone."""
    cls = draw(st.sampled_from(CLASSES))
    body = dict(cls.example)
    drawn = draw(bodies(cls))
    for field in draw(st.sets(st.sampled_from(sorted(drawn)), max_size=2)):
        body[field] = drawn[field]
    return body


def test_decode_of_wire_is_the_same_spec() -> None:
    seen = []

    @settings(max_examples=300, derandomize=True)
    @given(near_examples())
    def check(body: dict[str, Any]) -> None:
        try:
            spec = registry().decode(body)
        except SpecError:
            return
        seen.append(type(spec))
        once = wire(spec)
        again = registry().decode(json.loads(once))
        assert again == spec
        assert wire(again) == once
        assert 0 <= spec.duration_ms <= MAX_DURATION_MS
        assert msgspec.json.decode(once, type=type(spec)) == spec, "a frame's spec needs no leniency"

    check()
    assert len(seen) > 100
    assert set(seen) == set(CLASSES)


class Odd(FaultSpec, frozen=True, kw_only=True, tag="example.Odd"):
    """A fault that is made by code of its own."""

    how: str = ""

    def __post_init__(self) -> None:
        if self.how:
            raise {"key": KeyError, "exit": SystemExit}[self.how]("a package's mistake")


@pytest.mark.parametrize("fields", [{"how": "key"}, {"how": "exit"}])
def test_a_class_that_fails_when_it_is_made_is_named(fields: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=r"the class example\.Odd fails"):
        Registry([Odd]).decode({"class": "example.Odd", **fields})
