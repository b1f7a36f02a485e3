"""Operations as data: what the journal hands back is ours, or it is refused."""

from __future__ import annotations

import pytest

from trogdor_bus.agents.platforms.linux.operations import read, step
from trogdor_bus.agents.platforms.linux.operations.freezes import Freeze, Stops, Thaw
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity, Step

PROCESS = ProcessIdentity("boot", 42, 99)
FREEZE = step(Freeze(PROCESS, "java", leave=False), Thaw(PROCESS, "java", leave=False))


def test_what_is_not_ours_is_refused_in_words_that_can_be_shown() -> None:
    with pytest.raises(HostError, match="not an operation") as caught:
        read({"op": "\x1b[2J" + "x" * 1000})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_a_step_that_cannot_be_read_does_not_keep_other_processes_from_running_again() -> None:
    strange = Step(do={"op": "of a newer version"}, undo={})
    steps = (strange, FREEZE)
    stops = Stops(steps)
    assert (stops.of(PROCESS), stops.wanted(PROCESS)) == ([read(FREEZE.do)], True)
    assert not stops.wanted(ProcessIdentity("boot", 43, 99))
    assert stops.among(steps) is stops
    assert not stops.among((strange,)).wanted(PROCESS)
    changing = [strange]
    stops = Stops(changing)
    changing.append(FREEZE)
    assert stops.among(changing).wanted(PROCESS)
