"""The table of nodes: who beats, who is silent, who only has somebody's name."""

from __future__ import annotations

from typing import Any

import pytest

from trogdor_bus.coordinator.fleet import KEEP_JOURNALS, LONG_SILENT_MS, SILENT_BEATS, Fleet, Heard
from trogdor_bus.coordinator.notes import AGAIN_MS, MOST, Notes
from trogdor_bus.messages import Beat, Echo, Stamp
from trogdor_bus.topology import Node

BEAT_MS = 1_000
NOW = 50_000


def beat(node: str = "a", counter: int = 1, *, journal: str = "j1", **fields: Any) -> Beat:
    return Beat(node=node, journal=journal, counter=counter, **{"addresses": ("10.0.0.1",), **fields})


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(None, BEAT_MS)


@pytest.fixture
def configured() -> Fleet:
    nodes = {
        "a": Node(name="a", hostname="a.example", tags=("rack1",), config={"trogdor.agent.port": "8888"}),
        "boss": Node(name="boss", agent=False),
    }
    return Fleet(nodes, BEAT_MS)


def test_an_agent_announces_itself(fleet: Fleet) -> None:
    stamp = Stamp(1, "c1", 2)
    assert fleet.hear(beat(stamp=stamp, version="0.1"), NOW) == Heard(True, "", new_journal=True)
    node = fleet.nodes["a"]
    assert (node.row.alive, node.row.journal, node.row.heard_ms, node.row.version) == (True, "j1", NOW, "0.1")
    assert (node.row.addresses, node.row.configured, node.stamp) == (("10.0.0.1",), False, stamp)
    assert node.echo() == Echo("j1", 1)


def test_later_beats_count_and_older_ones_do_not(fleet: Fleet) -> None:
    fleet.hear(beat(counter=5), NOW)
    assert fleet.hear(beat(counter=6, addresses=("10.0.0.2",)), NOW + 10) == Heard(True)
    for counter in (6, 5, 1):
        assert fleet.hear(beat(counter=counter), NOW + 20) == Heard(False)
    node = fleet.nodes["a"]
    assert (node.counter, node.heard_ms, node.row.addresses) == (6, NOW + 10, ("10.0.0.2",))


def test_a_node_is_silent_after_three_beats_and_comes_back(fleet: Fleet) -> None:
    fleet.hear(beat("a", 1), NOW)
    fleet.hear(beat("b", 1), NOW + 1)
    end = NOW + SILENT_BEATS * BEAT_MS
    assert fleet.fall_silent(end - 1) == []
    assert [node.row.name for node in fleet.fall_silent(end)] == ["a"]
    assert (fleet.nodes["a"].row.alive, fleet.nodes["a"].row.note) == (False, "its agent is silent")
    assert fleet.fall_silent(end) == [], "said once"
    fleet.hear(beat("a", 2), end + 5)
    assert (fleet.nodes["a"].row.alive, fleet.nodes["a"].row.note) == (True, "")


def test_a_copied_name_is_refused_and_changes_nothing(fleet: Fleet) -> None:
    fleet.hear(beat(counter=5), NOW)
    before = repr(fleet.nodes["a"])
    copy = beat(counter=9, journal="copy-of-a-node", addresses=("10.9.9.9",), leaving=True)
    refused = fleet.hear(copy, NOW + SILENT_BEATS * BEAT_MS - 1)
    assert refused == Heard(False, "two agents call themselves a: the one with journal copy-of- is refused")
    assert fleet.hear(copy, NOW + 10) == Heard(False), "said once"
    fleet.nodes["a"].refused.clear()
    assert repr(fleet.nodes["a"]) == before, "but that it is to be told so"


@pytest.mark.parametrize("how", ["silent", "leaving"])
def test_another_journal_takes_over_once_the_first_is_gone(fleet: Fleet, how: str) -> None:
    fleet.hear(beat(counter=5), NOW)
    later = NOW + 1
    if how == "silent":
        later = NOW + SILENT_BEATS * BEAT_MS
        fleet.fall_silent(later)
    else:
        fleet.hear(beat(counter=6, leaving=True), NOW)
    heard = fleet.hear(beat(counter=1, journal="j2"), later)
    assert heard == Heard(True, "node a has another state directory than before (journal j2)", new_journal=True)
    assert fleet.nodes["a"].echo() == Echo("j2", 1)


def test_a_late_beat_of_a_former_journal_is_not_a_new_agent(fleet: Fleet) -> None:
    fleet.hear(beat(counter=5, journal="j1"), NOW)
    fleet.fall_silent(NOW + 60_000)
    fleet.hear(beat(counter=1, journal="j2"), NOW + 60_000)
    fleet.fall_silent(NOW + 120_000)
    assert fleet.hear(beat(counter=4, journal="j1"), NOW + 120_000) == Heard(False)
    assert fleet.nodes["a"].row.journal == "j2"
    assert fleet.hear(beat(counter=6, journal="j1"), NOW + 120_000).accepted, "it does beat again"


def test_an_agent_that_ends_takes_its_addresses_with_it(fleet: Fleet) -> None:
    fleet.hear(beat(counter=1), NOW)
    fleet.hear(beat(counter=2, leaving=True), NOW)
    row = fleet.nodes["a"].row
    assert (row.alive, row.note, row.addresses) == (False, "its agent ended", ("10.0.0.1",))
    assert fleet.topology((), ()).nodes["a"].addresses == ()
    fleet.hear(beat(counter=3), NOW)
    assert fleet.topology((), ()).nodes["a"].addresses == ("10.0.0.1",)


def test_a_silent_agent_keeps_its_addresses(fleet: Fleet) -> None:
    fleet.hear(beat(), NOW)
    fleet.fall_silent(NOW + 60_000)
    assert fleet.topology((), ()).nodes["a"].addresses == ("10.0.0.1",)


def test_a_node_that_has_lost_what_it_acts_on_says_so_and_has_no_address(fleet: Fleet) -> None:
    fleet.hear(beat(counter=1), NOW)
    fleet.hear(beat(counter=2, addresses=(), trouble="process 7 has ended"), NOW)
    assert (fleet.nodes["a"].row.note, fleet.nodes["a"].addresses) == ("process 7 has ended", ())
    fleet.hear(beat(counter=3), NOW)
    assert fleet.nodes["a"].row.note == ""


def test_only_configured_names_may_join(configured: Fleet) -> None:
    ignored = configured.hear(beat("z"), NOW)
    assert ignored == Heard(False, "node z is not in the configuration, its agent is ignored")
    assert configured.hear(beat("z", 2), NOW) == Heard(False), "said once"
    assert sorted(configured.nodes) == ["a", "boss"]
    assert configured.hear(beat("a"), NOW).accepted


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 1000])
def test_a_name_that_no_node_may_have_is_refused(fleet: Fleet, name: str) -> None:
    heard = fleet.hear(beat(name), NOW)
    assert not heard.accepted
    assert heard.note.startswith("a beat was refused: the node name")
    assert fleet.nodes == {}


@pytest.mark.parametrize("name", ["-x", " ", "a\u202eb"])
def test_an_agent_of_0_1_whose_name_is_refused_today_is_still_heard(fleet: Fleet, name: str) -> None:
    assert fleet.hear(beat(name), NOW).accepted


def test_a_node_that_was_never_heard_has_nothing_to_echo(configured: Fleet) -> None:
    node = configured.nodes["a"]
    assert (node.echo(), node.row.alive, node.row.heard_ms, node.row.configured) == (None, False, -1, True)
    assert configured.fall_silent(NOW) == []


def test_what_is_configured_and_what_is_announced_count_both_and_changes_are_told_once(configured: Fleet) -> None:
    configured.hear(beat("a", addresses=("10.0.0.1", "192.0.2.7", "fd00::1")), NOW)
    changed = configured.resolve({"a": ("192.0.2.7",), "nobody": ("192.0.2.8",)})
    assert [node.row.name for node in changed] == ["a"]
    assert configured.resolve({"a": ("192.0.2.7",)}) == []
    assert configured.nodes["a"].addresses == ("192.0.2.7", "10.0.0.1", "fd00::1")
    node = configured.topology((), ()).nodes["a"]
    assert (node.addresses, node.given) == (("192.0.2.7", "10.0.0.1", "fd00::1"), ("192.0.2.7",))
    assert configured.nodes["a"].seat().addresses == ("192.0.2.7",), "where it is, the configuration says"
    configured.hear(beat("a", 2, addresses=("10.0.0.2",), leaving=True), NOW)
    assert configured.nodes["a"].row.addresses == ("192.0.2.7", "10.0.0.2")
    assert configured.topology((), ()).nodes["a"].addresses == ("192.0.2.7",), "its agent ended"
    configured.resolve({"a": ()})
    assert configured.nodes["a"].row.addresses == ("10.0.0.2",)


def test_the_topology_is_what_specs_see(configured: Fleet) -> None:
    configured.hear(beat("a"), NOW)
    topology = configured.topology(("10.0.0.9",), (7000,))
    assert topology.names() == ("a",)
    assert topology.nodes["a"] == Node(
        name="a",
        addresses=("10.0.0.1",),
        hostname="a.example",
        tags=("rack1",),
        config={"trogdor.agent.port": "8888"},
    )
    assert (topology.coordinator_addresses, topology.coordinator_ports) == (("10.0.0.9",), (7000,))


def test_notes_do_not_pile_up_and_are_told_again_after_an_hour() -> None:
    notes = Notes()
    told = [notes.once(f"note {number}", NOW + number) for number in range(2 * MOST)]
    assert sum(map(bool, told)) == MOST
    assert notes.once("note 1", NOW + AGAIN_MS) == "" and notes.once("one more", NOW + AGAIN_MS) == "one more"
    assert notes.once("note 1", NOW + 2 * AGAIN_MS) == "note 1"


def test_a_refused_agent_is_told_until_it_is_gone(fleet: Fleet) -> None:
    fleet.hear(beat(counter=1), NOW)
    for number in range(9):
        fleet.hear(beat(journal=f"copy{number}"), NOW + number)
    assert list(fleet.nodes["a"].refused) == ["copy5", "copy6", "copy7", "copy8"]
    fleet.hear(beat(counter=2), NOW + 10)
    assert len(fleet.nodes["a"].refused) == 4
    fleet.hear(beat(counter=3), NOW + 2_900)
    fleet.hear(beat(counter=4), NOW + 5_800)
    assert fleet.nodes["a"].refused == {}


def test_of_a_node_the_last_journals_are_remembered(fleet: Fleet) -> None:
    for number in range(100):
        fleet.hear(beat(counter=9, journal=f"j{number}"), NOW + number * 60_000)
    assert len(fleet.nodes["a"].counters) == KEEP_JOURNALS
    assert not fleet.hear(beat(counter=8, journal="j99"), NOW).accepted
    assert not fleet.hear(beat(counter=8, journal="j90"), NOW + 200 * 60_000).accepted


def test_a_node_that_is_long_silent_blocks_no_address_of_a_live_one(fleet: Fleet) -> None:
    fleet.hear(beat("old", addresses=("10.0.0.1", "10.0.0.2")), NOW)
    fleet.fall_silent(NOW + 10_000)
    fleet.hear(beat("new", addresses=("10.0.0.1",)), NOW + 10_000)
    assert fleet.topology((), ()).nodes["old"].addresses == ("10.0.0.1", "10.0.0.2"), "not silent for long yet"
    fleet.hear(beat("new", 2, addresses=("10.0.0.1",)), NOW + LONG_SILENT_MS)
    topology = fleet.topology((), ())
    assert topology.nodes["old"].addresses == ("10.0.0.2",)
    assert topology.peer("other", "new").addresses == ("10.0.0.1",)
    fleet.hear(beat("old", 2, addresses=("10.0.0.1",)), NOW + LONG_SILENT_MS)
    assert fleet.topology((), ()).nodes["old"].addresses == ("10.0.0.1",), "both claim it again"


def test_the_links_of_a_node_and_what_is_news(fleet: Fleet) -> None:
    fleet.hear(beat("a", 1), NOW)

    def seen(links: dict[str, bool], at_ms: int = NOW) -> list[str]:
        return [text for _, text in fleet.see_links({"a": links, "nobody": {"zmq": True}}, at_ms)]

    assert seen({}) == []
    assert seen({"zmq": True}) == [""], "a link that is there is no news"
    assert seen({"kafka": False, "zmq": True}) == ["node a: link kafka is silent"]
    assert seen({"kafka": False, "zmq": True}) == []
    assert seen({"kafka": True, "zmq": False}) == ["node a: link kafka is back, link zmq is silent"]
    fleet.hear(beat("a", 2), NOW)
    assert fleet.nodes["a"].row.links == {"kafka": True, "zmq": False}, "a beat does not speak of links"
    dead = NOW + SILENT_BEATS * BEAT_MS
    assert seen({"kafka": False, "zmq": False}, dead) == [], "of a node that is not heard it is no news"
    fleet.fall_silent(dead)
    assert seen({"kafka": False, "zmq": False}) == []
    fleet.hear(beat("a", 3), dead)
    assert seen({"kafka": True, "zmq": True}, dead) == ["node a: link zmq is back"]
    assert seen({}, dead) == [""], "the agent has one link now"
    assert "nobody" not in fleet.nodes
