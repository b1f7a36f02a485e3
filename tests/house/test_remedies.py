"""Below the command line nobody knows it: no option, no verb. What can be done is a code, which one table words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import click
import pytest
import typer

from tests.house.repository import ROOT
from trogdor_bus.cli import app
from trogdor_bus.cli.wording import WORDS
from trogdor_bus.remedies import CODES

ROOMS = ("agents", "coordinator", "transports", "trogdor_bus")
ABOVE = ("trogdor_bus/cli", "trogdor_bus/lab")
OTHERS = {
    "agents/__main__.py": "what the processes of an agent call themselves, and each other",
    "agents/guard.py": "what the processes of an agent call themselves, and each other",
    "agents/heal.py": "what the processes of an agent call themselves, and each other",
    "agents/platforms/linux/commands.py": "options of setpriv",
    "transports/kafka/access.py": "options of Kafka's own tools, to paste",
    "transports/kafka/topics.py": "options of Kafka's own tools, to paste",
}
"""Where options stand that are not ours, or not the command line's."""
REMEDY = re.compile("‹([a-z-]+)")


def below() -> list[Path]:
    """Return the modules that know nothing of the command line."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if not path.is_symlink()]
    own = [path for path in found if not str(path.relative_to(ROOT)).startswith(ABOVE)]
    return [path for path in own if not any((ROOT / "trogdor_bus" / room) in path.parents for room in ROOMS[:3])]


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every verb with what stands before it."""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, one in command.commands.items():  # type: ignore[attr-defined]
            yield from commands(one, *words, name)
    if words:
        yield " ".join(words), command


COMMANDS = dict(commands(typer.main.get_command(app)))
OPTIONS = {
    option
    for command in COMMANDS.values()
    for parameter in command.params
    for option in parameter.opts
    if option.startswith("--")
}
VERBS = sorted(verb for verb, command in COMMANDS.items() if not hasattr(command, "commands"))
NAMED = re.compile(
    rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(OPTIONS, key=len, reverse=True)))})(?![\w-])"
    rf"|trogdor-bus (?:{'|'.join(VERBS)})\b"
)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each text of a module with its line, docstrings included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_the_command_line_is_known() -> None:
    assert {"--force", "--allow", "--adopt", "--state-dir", "--take-over", "--coordinator"} <= OPTIONS
    assert {"submit", "keys export", "experiment gc", "lab up"} <= COMMANDS.keys()


@pytest.mark.parametrize("text", ["`--force` allows it", "run `trogdor-bus keys export`", "use --allow x", "--node"])
def test_an_option_or_a_verb_would_be_found(text: str) -> None:
    assert NAMED.search(text)


@pytest.mark.parametrize("text", ["--forced", "--noflush", "trogdor-bus itself", "this is trogdor-bus"])
def test_other_words_are_not_found(text: str) -> None:
    assert not NAMED.search(text)


def test_nobody_below_names_an_option_or_a_verb() -> None:
    modules = below()
    assert len(modules) > 150
    named = {
        f"{path.relative_to(ROOT)}:{line}": found[0]
        for path in modules
        if str(path.relative_to(ROOT)) not in OTHERS
        for line, text in texts(path)
        if (found := NAMED.search(text))
    }
    assert not named, "write ‹code› there, and the words in trogdor_bus/cli/wording.py"


def test_every_code_has_words_and_is_used() -> None:
    used = {
        code
        for path in below()
        if path.name != "remedies.py"
        for _, text in texts(path)
        for code in REMEDY.findall(text)
    }
    made = {
        node.args[0].value
        for path in below()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Remedy"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert used | made == CODES.keys() == WORDS.keys()


@pytest.mark.parametrize("code", sorted(WORDS))
def test_the_words_are_of_the_command_line(code: str) -> None:
    words = [word for word in WORDS[code].split(" ") if not word.startswith("{")]
    options = [word for word in words if word.startswith("--")]
    assert set(options) <= OPTIONS
    verb = " ".join(word for word in words if not word.startswith("--")).removeprefix("trogdor-bus").strip()
    assert not verb or verb in COMMANDS
    if verb:
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
        assert set(options) <= known
    assert {name for _, name, _, _ in Formatter().parse(WORDS[code]) if name} <= {
        word.strip("`") for word in re.findall("`[a-z]+`", CODES[code])
    }
