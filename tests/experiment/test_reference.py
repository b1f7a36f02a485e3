"""The page about experiments names every field, every reason, every verdict and every file."""

from __future__ import annotations

import re
from typing import get_args

import msgspec

from tests.house.repository import ROOT
from trogdor_bus.experiment.litmus_keys import ENV_USED
from trogdor_bus.experiment.result import EXIT_CODES
from trogdor_bus.experiment.verdict import KINDS
from trogdor_bus.faults.experiment import SLACK_MS, ExperimentSpec
from trogdor_bus.faults.stream import ProbeSpec, StreamSpec
from trogdor_bus.spec import Evidence

PAGE = (ROOT / "docs/reference/experiments.md").read_text()


def rows(title: str) -> set[str]:
    """Return what stands in code in the first column of the table under a heading."""
    section = re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name for cell in first for name in re.findall(r"`(\S+?)`", cell)}


def fields(cls: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(cls)}


def test_every_field_is_in_its_table() -> None:
    assert rows("The document") == fields(ExperimentSpec)
    assert rows("The stream") == fields(StreamSpec)
    assert rows("Probes") == fields(ProbeSpec)


def test_the_defaults_are_those_of_the_code() -> None:
    for cls in (ExperimentSpec, StreamSpec, ProbeSpec):
        for field in msgspec.structs.fields(cls):
            if type(field.default) is int and field.default:
                name = field.encode_name
                assert re.search(rf"^\| .*`{name}`.* \| {field.default} \|", PAGE, re.M), name
    assert f"{SLACK_MS // 1000} s for all other steps" in PAGE


def test_every_verdict_reason_evidence_and_variable_is_told() -> None:
    for verdict, code in EXIT_CODES.items():
        (line,) = re.findall(rf"^\| {verdict} \| {code} \| .*$", PAGE, re.M)
        assert set(re.findall(r"`([a-z-]+)`", line)) == {kind for kind, one in KINDS.items() if one == verdict}
    for kind in get_args(Evidence):
        assert f"`{kind}`" in PAGE
    untold = {name for name in ENV_USED if f"`{name}`" not in PAGE}
    assert untold == {"STATUS_CHECK_DELAY"}, "it stands among those that mean nothing here"
