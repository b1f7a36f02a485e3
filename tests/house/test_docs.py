"""What the documents say is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.house import reference
from tests.house.repository import ROOT, pages
from trogdor_bus import document
from trogdor_bus.agents.perform import RESTARTED
from trogdor_bus.cli.addresses import DEFAULT_PORT
from trogdor_bus.config import DEFAULT_CEILING_MS, DEFAULT_LEASE_MS, load_config
from trogdor_bus.registry import registry
from trogdor_bus.states import EXIT_CODES, Outcome

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
WHERE = [str(path.relative_to(ROOT)) for path in pages()]


def blocks(page: str, *kinds: str) -> list[str]:
    return [text for kind, text in FENCE.findall((ROOT / page).read_text()) if kind in kinds]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made on the web."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_lines(page: str) -> list[str]:
    joined = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line.removeprefix("$ ").removeprefix("sudo ").strip() for line in joined.splitlines()]


@pytest.mark.parametrize("page", WHERE)
def test_links_resolve(page: str) -> None:
    for target in LINK.findall(FENCE.sub("", (ROOT / page).read_text())):
        if re.match("[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}"


@pytest.mark.parametrize("page", WHERE)
def test_commands_exist_and_take_these_options(page: str) -> None:
    known = reference.commands()
    for line in shell_lines(page):
        for call in re.findall(r"\btrogdor-bus (?!bus)([a-z].*?)(?=[|;&]|$)", line):
            words = shlex.split(call, comments=True)
            path = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
            assert path, f"{page}: trogdor-bus {call}"
            own = words[: words.index("--")] if "--" in words else words
            asked = {word.partition("=")[0] for word in own if re.match("--?[a-z]", word)}
            assert asked <= reference.options(known[path]), f"{page}: trogdor-bus {call}"


@pytest.mark.parametrize("page", WHERE)
def test_make_verbs_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in shell_lines(page):
        if found := re.match(r"make ([a-z-]+)", line):
            assert found[1] in targets, f"{page}: {line}"


@pytest.mark.parametrize("page", WHERE)
def test_specs_are_valid(page: str) -> None:
    for text in blocks(page, "json", "yaml"):
        if '"class"' in text or text.startswith("class:"):
            registry().decode(document.parse(text.encode(), page))


@pytest.mark.parametrize("page", WHERE)
def test_configurations_are_valid(page: str, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "json", "yaml")):
        if not re.search(r'^class:|"class"', text, re.M):
            path = tmp_path / f"{number}.{'json' if text.lstrip().startswith('{') else 'yaml'}"
            path.write_text(text)
            load_config(path)


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == reference.page(name), "type: make reference"


def test_the_table_of_outcomes_is_complete_and_right() -> None:
    text = (ROOT / "docs/reference/outcomes.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|.*?\| (\d) \| `(\{.*?\})` \|$", text, re.M)
    assert {Outcome(name): int(code) for name, code, _ in rows} == EXIT_CODES
    for name, _, shown in rows:
        body = json.loads(shown)
        assert body["state"] == "DONE"
        assert ("error" in body) == (name not in ("done", "cancelled"))
        assert body["cancelled"] == (name in ("cancelled", "aborted"))
    assert RESTARTED in text


def test_the_pages_know_the_numbers() -> None:
    ports = (ROOT / "docs/reference/files-and-ports.md").read_text()
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 4):
        assert f"| {port} |" in ports
    configuration = (ROOT / "docs/reference/configuration.md").read_text()
    assert f"Default: `{DEFAULT_LEASE_MS // 1000}s`" in configuration
    assert f"Default: `{DEFAULT_CEILING_MS // 3_600_000}h`" in configuration


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(shell_lines("README.md"))
