from __future__ import annotations

import importlib.metadata

import pytest

from trogdor_bus.actions.network import BlockPorts
from trogdor_bus.agents import platforms
from trogdor_bus.agents.platforms import open_platform
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.errors import SpecError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Platform, Surroundings
from trogdor_bus.testing import ManualClock, RecordingPlatform, unnoted


def recording(settings: object) -> Platform:
    return RecordingPlatform()


@pytest.mark.parametrize("name", ["basic", "linux", "org.apache.kafka.trogdor.basic.BasicPlatform"])
def test_linux_has_three_names(name: str) -> None:
    platform = open_platform(name, {"attach": "", "allowCommands": [["true"]], "somethingElse": 1})
    assert isinstance(platform, LinuxPlatform)
    assert platform.boot_id() == boot_id()


def test_other_packages_bring_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("recording", f"{__name__}:recording", platforms.ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[recording.__module__])
    assert isinstance(open_platform("recording", {}), RecordingPlatform)
    with pytest.raises(SpecError, match=r"unknown platform 'windows' \(the platforms are basic, linux, recording"):
        open_platform("windows", {})


@pytest.mark.parametrize(
    "attach", ["netns:", "netns:../x", "netns:a/b", "netns:..", "pid:", "pid:0", "pid:-1", "pid:self", "container:-x"]
)
def test_a_wrong_attachment_says_how_it_is_written(attach: str) -> None:
    with pytest.raises(SpecError, match=r"attach: .*netns:NAME, pid:PID or container:NAME"):
        open_platform("basic", {"attach": attach})


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SpecError, match=r"allowCommands\[0\]"):
        open_platform("basic", {"allowCommands": ["systemctl start kafka"]})


def test_a_recording_platform_remembers() -> None:
    platform = RecordingPlatform(addresses=("10.0.0.1",))
    action = BlockPorts(ports=(9092,))
    (step,) = platform.prepare(7, action, Surroundings(), []).steps
    assert platform.addresses() == ("10.0.0.1",)
    assert platform.boot_id() == "boot-1"
    assert platform.asked == [action]
    assert step.do["action"] == {"action": "block-ports", "ports": [9092]}
    assert platform.disturbance(step) == "the step is not in force"
    platform.do(step)
    platform.do(step)
    assert platform.in_force == [step]
    assert platform.disturbance(step) == ""
    assert platform.residue(step, []) == ("step 1 is in force",)
    assert platform.undo(step, [], unnoted) == platform.undo(step, [], unnoted) == ""
    assert platform.residue(step, []) == ()
    assert platform.calls == [("do", 1), ("do", 1), ("undo", 1), ("undo", 1)]
    assert ManualClock(5).advance(1) == 6
