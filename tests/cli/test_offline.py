"""What the command line does without a coordinator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import clean_environment, run
from trogdor_bus import __version__
from trogdor_bus.lab.demo import examples
from trogdor_bus.registry import registry

PARTITION = (
    b'{"class":"org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec",'
    b'"startMs":1000,"durationMs":30000,"partitions":[["node1","node2"],["node3"]]}'
)
README_SPEC = """
// Trogdor's README example
{
    "class": "org.apache.kafka.trogdor.fault.NetworkPartitionFaultSpec",
    "startMs": 1000,
    "durationMs": 30000, /* half a minute */
    "partitions": [["node1", "node2"], ["node3"]]
}
"""
YAML_SPEC = """
class: partition
startMs: 1000
durationMs: 30000
partitions: [[node1, node2], [node3]]
"""


@pytest.mark.parametrize("name", ["spec.json", "spec.yaml", "-", "inline"])
def test_validate_prints_the_wire_bytes(tmp_path: Path, name: str) -> None:
    text = YAML_SPEC if name == "spec.yaml" else README_SPEC
    (tmp_path / "spec").with_suffix(Path(name).suffix).write_text(text)
    argument = {"-": "-", "inline": README_SPEC.partition("example")[2]}.get(name) or str(tmp_path / name)
    ran = run("validate", argument, "--json", stdin=text)
    assert (ran.code, ran.out.encode(), ran.err) == (0, PARTITION + b"\n", "")


def test_validate_says_what_it_understood() -> None:
    ran = run("validate", YAML_SPEC.replace("\n", "", 1), "--json")
    assert ran.code == 2  # neither a path nor inline
    ran = run("validate", '{"class": "noop", "durationMs": 3661000}')
    assert ran.out == "Valid: org.apache.kafka.trogdor.task.NoOpTaskSpec, starts at once, lasts 1h1m1s.\n"


def test_validate_says_which_number_counts_instead() -> None:
    ran = run("validate", '{"class": "noop", "durationMs": -1}')
    assert ran.out.splitlines()[-1] == "durationMs -1 counts as 0 ms, as in Trogdor."


def test_validate_knows_chaos_engines() -> None:
    path = str(examples() / "litmus" / "charts-engine.yaml")
    ran = run("validate", path)
    assert ran.code == 0 and ran.out.startswith("Valid: trogdor_bus.faults.experiment.ExperimentSpec, starts at once")
    assert "not used here: KAFKA_NAMESPACE" in ran.out
    told = json.loads(run("validate", path, "--json").out)
    assert told["litmus"]["experiment"] == "kafka-broker-pod-failure"
    ran = run("submit", path)
    assert ran.code == 2 and "kind: is a ChaosEngine of Litmus (`trogdor-bus experiment run` takes it)" in ran.err


TEN_MEGABYTES = b'{"class": "noop", "x": "' + b"x" * (10 << 20) + b'"}'
BAD_SPECS = {
    "unknown class": ('{"class": "partitoin"}', "class: unknown class 'partitoin' (did you mean 'partition'?"),
    "unknown field": ('{"class": "noop", "durationMS": 1}', "durationMS: unknown field (did you mean 'durationMs'?)"),
    "two groups": (
        '{"class": "partition", "partitions": [["a"], ["a"]]}',
        "partitions: Node a appears in more than one partition.",
    ),
    "port": ('{"class": "port-block", "nodes": ["a"], "ports": [70000]}', "ports[0]: "),
    "broken": ('{"class": "noop",\n  "durationMs" 5}', "standard input, line 2, column 16: expected ':' delimiter"),
    "large": (TEN_MEGABYTES, "standard input is larger than 1 MiB"),
    "empty": ("", "standard input is empty"),
    "bytes": (b'{"class": "\xff"}', "standard input, line 1, column 12: the byte 0xff is not UTF-8"),
    "list": ("[]", "a spec is a JSON object, not an array"),
}


@pytest.mark.parametrize("verb", ["validate", "submit"])
@pytest.mark.parametrize("name", BAD_SPECS)
def test_bad_specs_exit_2_with_one_clear_message(name: str, verb: str) -> None:
    text, expected = BAD_SPECS[name]
    ran = run(verb, "-", stdin=text)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith(f"error: {expected}")
    assert ran.err.count("\n") == 1


def test_bad_input_as_json() -> None:
    ran = run("validate", '{"class": "noop", "durationMS": 1}', "--json")
    assert (ran.code, ran.out) == (2, "")
    assert json.loads(ran.err) == {
        "error": "SpecError",
        "message": "unknown field",
        "path": "$.durationMS",
        "remedy": "did you mean 'durationMs'?",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("submit", '{"class":"noop"}', "--id", "a\x1bb"), "the task id 'a\\x1bb' holds the control character U+001B"),
        (("submit", '{"class":"noop"}', "--id", ""), "the task id is empty"),
        (("agent", "--node", "a/b"), "the node name 'a/b' holds a slash"),
        (("agent", "--node", "a", "--transport", "memory"), "the memory transport works inside one process only"),
        (("agent", "--node", "a", "--attach", "x:y"), "--attach 'x:y' names nothing"),
        (("agent", "--node", "a", "--lease", "5"), "the lease is '5'"),
        (("agent", "--node", "a", "--log-level", "loud"), "there is no log level 'loud'"),
        (("agent", "--node", "a", "-c", "/nowhere.yaml"), "there is no file '/nowhere.yaml'"),
        (("coordinator", "--adopt", "--abort-all"), "--adopt and --abort-all exclude each other"),
        (("coordinator", "--take-over", "--standby"), "--take-over and --standby exclude each other"),
        (("coordinator", "--take-over"), "take-over: there is no log to take a coordinator's state over from"),
        (("coordinator", "--standby"), "standby: there is no log to take a coordinator's state over from"),
        (("coordinator", "--standby", "--standby-after", "1s"), "--standby-after is 1s"),
        (("coordinator", "--standby-after", "soon"), "--standby-after is 'soon'"),
        (("coordinator", "--bind", "a b"), "'a b' is not an address"),
        (("status", "--coordinator", "h:99999"), "the port of the address 'h:99999'"),
        (("status", "--coordinator", "h/x"), "'h/x' is not an address"),
        (("status", "--transport", "pigeon"), "no transport is called 'pigeon'"),
        (("status", "--insecure", "--keys", "/tmp"), "--keys and --insecure exclude each other"),
        (("tasks", "--state", "LOST"), "State LOST is invalid. Must be one of [PENDING, RUNNING, STOPPING, DONE]"),
        (("monitor", "--for", "5"), "--for is '5'"),
        (("faults", "nosuchthing"), "class: unknown class 'nosuchthing'"),
    ],
)
def test_bad_arguments_exit_2_with_one_clear_message(arguments: tuple[str, ...], expected: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {expected}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--nonsense",), ("submit",), ("coordinator", "--port", "0"), ("nosuchverb",)])
def test_bad_usage_exits_2(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_nothing_shown_holds_a_control_character(tmp_path: Path) -> None:
    ran = run("validate", str(tmp_path / "\x1b[31mred\x07\u202e"))
    assert ran.code == 2
    assert not [char for char in ran.err.removesuffix("\n") if not char.isprintable()]


def test_schema_describes_every_class() -> None:
    ran = run("schema")
    schema = json.loads(ran.out)
    classes = [entry["properties"] for entry in schema["$defs"].values() if "class" in entry.get("properties", {})]
    assert {properties["class"]["enum"][0] for properties in classes} == set(registry().by_tag)
    restart = schema["$defs"]["RestartSpec"]["properties"]
    assert {"unit", "container", "command", "found", "unless", "aliveMs"} == set(restart)


def test_faults_lists_every_class_and_its_example_is_valid() -> None:
    listed = json.loads(run("faults", "--json").out)
    assert {fault["class"] for fault in listed} == set(registry().by_tag)
    for fault in listed:
        assert registry().decode(fault["example"])
        assert {"startMs", "durationMs"} <= set(fault["fields"])
        assert set(fault["example"]) - {"class"} <= set(fault["fields"])


def test_faults_shows_one() -> None:
    ran = run("faults", "port-block", COLUMNS="60")
    assert ran.code == 0
    assert "list of integer from 1 to 65535" in " ".join(ran.out.split())
    assert '"class": "port-block"' in ran.out
    assert max(map(len, run("faults", COLUMNS="60").out.splitlines())) <= 60


def test_version() -> None:
    assert run("version").out == run("--version").out == f"{__version__}\n"


def test_help_imports_no_room_and_no_driver() -> None:
    code = (
        "import sys; from trogdor_bus.cli import main; sys.argv = ['trogdor-bus', '--help']; main();"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment()
    )
    loaded = set(done.stderr.split())
    assert "submit" in done.stdout
    assert "trogdor_bus.cli" in loaded
    rooms = ("trogdor_bus.agents", "trogdor_bus.coordinator", "trogdor_bus.transports")
    heavy = {"zmq", "psutil", "msgspec", "ruamel.yaml", "sqlite3", "asyncio", "rich.console", *rooms}
    assert loaded & heavy == set()


def test_every_command_has_an_example_in_its_help() -> None:
    from trogdor_bus.cli import app

    for command in [
        *app.registered_commands,
        *(c for group in app.registered_groups for c in group.typer_instance.registered_commands),
    ]:  # type: ignore[union-attr]
        assert command.epilog, command
        assert command.epilog.startswith("Example: trogdor-bus ")


def test_keys_travel(tmp_path: Path) -> None:
    from trogdor_bus.keys import ensure

    here, there = tmp_path / "here", tmp_path / "there"
    pairs = iter([(b"a" * 32, b"b" * 32), (b"c" * 32, b"d" * 32)])
    ensure(here, lambda: next(pairs))
    exported = run("keys", "export", "--keys", str(here))
    assert exported.code == 0
    assert run("keys", "import", "-", "--keys", str(there), stdin=exported.out).code == 0
    assert run("keys", "export", "--keys", str(there)).out == exported.out
    refused = run("keys", "import", "-", "--keys", str(there), stdin="nonsense")
    assert (refused.code, refused.out) == (2, "")
    assert run("keys", "path", TROGDOR_BUS_KEYS="/somewhere").out == "/somewhere\n"
