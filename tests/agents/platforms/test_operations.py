"""Operations as data: what the journal hands back is ours, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from trogdor_bus.agents.disk import FileDisk
from trogdor_bus.agents.heal import AgentNote, heal, leave_note
from trogdor_bus.agents.journal import Entry, Journal, JournalState
from trogdor_bus.agents.platforms.linux.operations import read, step
from trogdor_bus.agents.platforms.linux.operations.freezes import Freeze, Stops, Thaw
from trogdor_bus.errors import HostError
from trogdor_bus.platform import ProcessIdentity, Step
from trogdor_bus.spec import Texts

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


def dry(directory: Path, steps: Sequence[Step]) -> tuple[list[str], int]:
    """Return what a dry run says of these steps, each of a task of its own."""
    disk = FileDisk(directory)
    leave_note(disk, AgentNote(platform="linux"))
    journal = Journal(disk)
    for worker, one in enumerate(steps, 1):
        entry = Entry(
            worker=worker,
            task=f"t{worker}",
            state=JournalState.APPLIED,
            boot_id="b",
            ends_ms=0,
            spec=msgspec.Raw(b"{}"),
            texts=Texts("", "", "", ""),
            steps=(one,),
        )
        journal.put(entry)
    return heal(directory, dry_run=True)


def test_a_dry_run_tells_of_what_cannot_be_read_and_of_all_others(tmp_path: Path) -> None:
    lines, code = dry(tmp_path, (FREEZE, Step(do=FREEZE.do, undo={"op": "newer", "x": 1}), FREEZE))
    assert (lines[0], lines[2], code) == (
        "would undo task t1; by hand: kill -CONT 42",
        "would undo task t3; by hand: kill -CONT 42",
        1,
    )
    assert lines[1] == (
        "cannot say how to undo task t2: not an operation of the Linux platform: newer; "
        'look what it left and undo it: {"op":"newer","x":1}'
    )


def test_what_is_typed_is_known_where_only_the_undo_can_be_read(tmp_path: Path) -> None:
    lines, code = dry(tmp_path, (Step(do={"op": "newer"}, undo=FREEZE.undo),))
    assert (lines, code) == (["would undo task t1; by hand: kill -CONT 42"], 0)


def test_a_dry_run_of_a_file_that_cannot_be_read_says_that_something_may_be_left(tmp_path: Path) -> None:
    (tmp_path / "worker-7.json").write_text("{")
    lines, code = dry(tmp_path, (FREEZE,))
    assert (lines[1], code) == ("cannot be read: worker-7.json", 1)
