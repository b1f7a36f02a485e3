"""docs/how-to/add-an-action.md is true: its action, operations, test and entry points work as they stand there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.house.packages import install, python
from tests.house.test_docs import blocks

PAGE = "docs/how-to/add-an-action.md"
FILES = ("my_files.py", "my_file_operations.py", "test_my_files.py")
AGENT = """
import sys
from pathlib import Path
from tests.agents.inline import Inline
from trogdor_bus.actions import decode_action
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.messages import Order
from trogdor_bus.platform import Surroundings
file, state = map(Path, sys.argv[1:])
action = decode_action(b'{"action": "my-take-away", "path": "%s"}' % str(file).encode())
order = Order(worker=1, journal="", task="t", actions=(action,), duration_ms=60_000, remaining_ms=60_000)
first = Inline(Journal(FileDisk(state)), LinuxPlatform())
first.inject(order, 10**15, Surroundings())
assert not file.exists()
second = Inline(Journal(FileDisk(state)), LinuxPlatform())
print(*second.recover())
"""
"""An agent that dies while the file is away, and its next life."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a directory with the page's package, installed as a package manager would."""
    for name, text in zip(FILES, blocks(PAGE, "python"), strict=True):
        (tmp_path / name).write_text(text)
    install(tmp_path, PAGE)
    return tmp_path


def test_its_own_test_passes(package: Path) -> None:
    assert "1 passed" in python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", FILES[2])


def test_the_command_line_knows_the_fault(package: Path) -> None:
    told = json.loads(python(package, "-m", "trogdor_bus", "faults", "missing-file", "--json"))
    assert told["class"] == "my_files.MissingFileFaultSpec"
    assert python(package, "-m", "trogdor_bus", "validate", json.dumps(told["example"])).startswith("Valid: my_files.")


BROKEN = """
import sys
from trogdor_bus.actions import decode_action
from trogdor_bus.agents.platforms.linux.operations import Nothing, performing, plain, read
from trogdor_bus.errors import TrogdorBusError
block = decode_action(b'{"action": "block-ports", "ports": [1]}')
print(performing(block).__name__, read(plain(Nothing())))
for asked in (lambda: decode_action(b'{"action": "my-take-away", "path": "x"}'), lambda: read({"op": "my-take"})):
    try:
        print(asked())
    except TrogdorBusError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('half an upgrade')", "RuntimeError('half an upgrade')"),
        ("import sys; sys.exit(3)", "SystemExit(3)"),
        ("import a_package_that_is_gone", "ModuleNotFoundError"),
    ],
)
def test_a_package_that_is_broken_costs_only_itself(package: Path, code: str, why: str) -> None:
    for name in FILES[:2]:
        (package / name).write_text(code)
    ours, action, operation = python(package, "-c", BROKEN).splitlines()
    assert ours == "Block Nothing()"
    assert f"the action 'my-take-away'; the entry point my-files = my_files cannot be loaded: {why}" in action
    assert f"my-take; the entry point my-files = my_file_operations cannot be loaded: {why}" in operation


WRONG = """
import sys
from pathlib import Path
from tests.agents.driver import order
from tests.agents.inline import Inline
from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.journal import Journal
from trogdor_bus.agents.lanes import Call, carry_out
from trogdor_bus.agents.perform import Performer
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.agents.threads import run_in_lanes
from trogdor_bus.actions import decode_action
from trogdor_bus.errors import TrogdorBusError
from trogdor_bus.platform import Surroundings
file, state = map(Path, sys.argv[1:])
file.touch()
taken = decode_action(b'{"action": "my-take-away", "path": "%s"}' % str(file).encode())
first = Performer(Journal(FileDisk(state)), LinuxPlatform())
run_in_lanes(first.inject(order(1, actions=(taken,)), 10**15, Surroundings()))
second = Performer(Journal(FileDisk(state)), LinuxPlatform())
print(*run_in_lanes(second.recover()))
print(second.journal.entries[1].state)
"""


@pytest.mark.parametrize(
    ("method", "error", "state"),
    [
        ("lane", "KeyError(1)", "undone"),
        ("resource", "KeyError(1)", "undone"),
        ("batch", "KeyError(1)", "undone"),
        ("undo", "SystemExit(3)", "stuck"),
    ],
)
def test_what_a_package_does_wrong_ends_no_agent(
    package: Path, tmp_path: Path, method: str, error: str, state: str
) -> None:
    file = package / FILES[1]
    file.write_text(f"{file.read_text()}\ndef wrong(*_): raise {error}\nBringBack.{method} = wrong\n")
    said = python(package, "-c", WRONG, str(tmp_path / "a-file"), str(tmp_path / "state"))
    assert said.splitlines()[-1] == state, said


def test_who_claims_what_is_ours_or_says_nonsense_of_what_it_performs_is_not_heard(package: Path) -> None:
    file = package / FILES[1]
    wrong = file.read_text().replace("performs = (TakeAway,)", "performs = TakeAway")
    file.write_text(wrong)
    assert "Take.performs is no tuple of actions" in python(package, "-c", BROKEN)
    file.write_text(file.read_text().replace('tag="my-take"', 'tag="block"').replace("= TakeAway", "= (TakeAway,)"))
    ours, *_, operation = python(package, "-c", BROKEN).splitlines()
    assert ours == "Block Nothing()" and "my_file_operations claims 'block', which is another's; rename it" in operation


def test_an_agent_that_dies_brings_the_file_back(package: Path) -> None:
    file = package / "server.properties"
    file.write_text("broker.id=1")
    assert "undone" in python(package, "-c", AGENT, str(file), str(package / "state"))
    assert file.read_text() == "broker.id=1"


def test_an_agent_without_the_package_says_what_it_does_not_know() -> None:
    from trogdor_bus.actions import decode_action
    from trogdor_bus.errors import BusError

    with pytest.raises(BusError, match="the action 'my-take-away'"):
        decode_action(b'{"action": "my-take-away", "path": "/etc/passwd"}')
