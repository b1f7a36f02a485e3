"""The wheel alone, with nothing but its dependencies: every verb works there, or says which extra it needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_verbs import free_port
from tests.e2e.test_demo import nothing_left
from tests.house.repository import ROOT, copy_sources
from tests.house.test_packaging import hatch
from tests.support import require, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # an index may be slow
assert nothing_left  # a fixture

PATIENCE_S = 120
EXTRA = "pip install 'trogdor-bus[lab]'"
HELPS = """
import contextlib, io, json, sys, typer.main
from trogdor_bus.cli import app, main
def walk(command, path=()):
    verbs = getattr(command, "commands", {})
    yield path, not verbs or command.invoke_without_command
    for name, verb in verbs.items():
        yield from walk(verb, (*path, name))
found = []
for path, runs in walk(typer.main.get_command(app)):
    sys.argv = ["trogdor-bus", *path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = main()
    assert code == 0 and told.getvalue().startswith("Usage: trogdor-bus"), (path, code, told.getvalue())
    found += [" ".join(path)] if runs else []
print(json.dumps(found))
"""
"""Prints every verb; each must explain itself."""
VERBS = """
import contextlib, io, json, sys, traceback
from trogdor_bus.cli import main
told = []
for verb, words, given in json.load(sys.stdin):
    sys.argv = ["trogdor-bus", *verb.split(), *words]
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    said = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main()
        except BaseException:
            code = -1
            traceback.print_exc()
    told.append((code, said.buffer.getvalue().decode()))
print(json.dumps(told))
"""
"""Runs one verb after the other, and prints how each ended and what it said."""
DEMO = """
import sys
from trogdor_bus.cli import main
from trogdor_bus.lab import demo
demo.HOLD_S = 0.5
sys.exit(main())
"""
NOOP = '{"class": "noop", "durationMs": 60000}'
EXPERIMENT = '{"class": "experiment", "name": "x", "fault": {"class": "noop", "durationMs": 100}}'
NO_BROKER = ("--cluster", "127.0.0.1:1")
Step = tuple[str, tuple[str, ...], int, str]
LIVE: tuple[Step, ...] = (
    ("nodes", (), 0, "node1"),
    ("status", (), 0, "epoch"),
    ("uptime", (), 0, ""),
    ("submit", ("-", "--id", "t"), 0, "t"),
    ("tasks", (), 0, "t"),
    ("stop", ("t", "--wait"), 0, ""),
    ("show", ("t",), 0, "DONE"),
    ("destroy", ("t",), 0, ""),
    ("forget", ("nobody",), 2, "nobody"),
    ("monitor", ("--json", "--for", "5s"), 0, "node1"),
    ("experiment run", ("-", *NO_BROKER, "--no-wait"), 0, "Experiment"),
    ("experiment show", ("nosuch",), 2, "error:"),
    ("experiment list", (), 0, ""),
    ("abort", (), 0, ""),
    ("resume", (), 0, ""),
    ("keys export", (), 0, "public"),
    ("shutdown", (), 0, ""),
)
"""Verb, arguments, exit code and a word of what is told, in this order, with a coordinator and an agent."""
ALONE: tuple[Step, ...] = (
    ("version", (), 0, ""),
    ("schema", (), 0, "{"),
    ("faults", (), 0, "partition"),
    ("validate", (NOOP,), 0, ""),
    ("keys path", (), 0, "keys"),
    ("experiment gc", (*NO_BROKER, "--coordinator", "127.0.0.1:1"), 4, "error:"),
    ("lab", ("--kafka",), 2, EXTRA),
    ("lab up", ("--kafka",), 2, EXTRA),
    ("lab status", ("--name", "nosuch"), 2, "there is no lab nosuch"),
    ("lab exec", ("--name", "nosuch", "node1", "--", "true"), 2, "there is no lab nosuch"),
    ("lab down", ("--name", "nosuch"), 0, "there is no lab nosuch"),
)
ELSEWHERE = {"coordinator", "agent", "heal", "demo", "keys import"}
"""What is run beside them."""


class Installation:
    """A virtual environment with the wheel, and a place to be in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TROGDOR_BUS_", "PYTHON"))}
        self.environment = {**kept, "TROGDOR_BUS_KEYS": str(folder / "keys")}

    def install(self, wheel: Path, *pins: str) -> None:
        """Install the wheel with the newest dependencies that it allows, but for the pins."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder / "venv"], check=True)
        done = self.pip("install", "--quiet", "--no-compile", "--only-binary", ":all:", str(wheel), *pins)
        if done.returncode != 0:
            asked = self.pip("download", "--quiet", "--no-deps", "--dest", str(self.folder / "asked"), "msgspec")
            require(asked.returncode == 0, "no package index answers", "set PIP_INDEX_URL, or run this with a network")
        assert done.returncode == 0, done.stderr

    def pip(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        return subprocess.run([*command, *words], cwd=self.folder, capture_output=True, text=True, check=False)

    def run(self, *words: str, given: str = "") -> tuple[int, str]:
        """Run a program of the environment; return the exit code and all that it told."""
        command = [self.bin / words[0], *words[1:]]
        done = subprocess.run(
            command,
            input=given,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert "Traceback" not in done.stdout, (words, done.stdout)
        return done.returncode, done.stdout

    def must(self, steps: tuple[Step, ...]) -> None:
        """Run the verbs, in one process that has nothing but this installation; each must end as it should."""
        given = [(verb, words, EXPERIMENT if verb == "experiment run" else NOOP) for verb, words, _, _ in steps]
        code, told = self.run("python", "-c", VERBS, given=json.dumps(given))
        assert code == 0, told
        for (verb, words, wanted, word), (code, said) in zip(steps, json.loads(told), strict=True):
            lost = verb == "shutdown" and code == 4  # it ended, and its answer with it
            assert lost or (code == wanted and word in said), (verb, words, code, said)

    @contextlib.contextmanager
    def daemon(self, *words: str) -> Iterator[subprocess.Popen[Any]]:
        """Run a daemon meanwhile."""
        with (self.folder / f"{words[0]}.log").open("w") as log:
            command = [self.bin / "trogdor-bus", *words]
            child = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
            try:
                yield child
            finally:
                child.terminate()
                child.wait(PATIENCE_S)
        assert "Traceback" not in (self.folder / f"{words[0]}.log").read_text()

    def alive(self) -> bool:
        code, told = self.run("trogdor-bus", "nodes", "--json")
        return code == 0 and any(node.get("alive") for node in json.loads(told)["nodes"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = copy_sources(tmp_path_factory.mktemp("source"))
    return hatch("wheel", source, tmp_path_factory.mktemp("wheel"))


def lower_bounds() -> list[str]:
    """Return our dependencies at the lowest versions that we say we work with."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+),<\d+", requirement) for requirement in wanted]
    assert all(found), wanted
    return [f"{one[1]}=={one[2]}" for one in found if one]


@pytest.mark.parametrize("versions", ["lowest", "newest"])
def test_every_verb_of_a_base_installation(
    versions: str, wheel: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = Installation(tmp_path)
    here.install(wheel, *(lower_bounds() if versions == "lowest" else ()))
    code, told = here.run("python", "-c", HELPS)
    assert code == 0, told
    assert {verb for verb, *_ in (*LIVE, *ALONE)} | ELSEWHERE == set(json.loads(told)), "a verb is not run here"
    here.environment["TROGDOR_BUS_COORDINATOR"] = f"127.0.0.1:{(port := free_port())}"
    with here.daemon("coordinator", "--port", str(port), "--state-dir", "coordinator") as coordinator:
        wait_until((tmp_path / "keys" / "member.json").exists, PATIENCE_S, "the keys")
        with here.daemon("agent", "--node", "node1", "--state-dir", "agent") as agent:
            wait_until(here.alive, PATIENCE_S, "the agent to be heard")
            here.must(LIVE)
            assert coordinator.wait(PATIENCE_S) == 0, (tmp_path / "coordinator.log").read_text()
        assert agent.returncode == 0, (tmp_path / "agent.log").read_text()
    assert here.run("trogdor-bus", "heal", "--state-dir", "agent") == (0, "nothing to undo\n")
    exported = here.run("trogdor-bus", "keys", "export")[1]
    assert here.run("trogdor-bus", "keys", "import", "--keys", str(tmp_path / "other"), given=exported)[0] == 0
    del here.environment["TROGDOR_BUS_COORDINATOR"]
    here.must(ALONE)
    if versions == "lowest":
        request.getfixturevalue("nothing_left")
        code, told = here.run("python", "-c", DEMO, "demo", "--json")
        assert code == 0, told
