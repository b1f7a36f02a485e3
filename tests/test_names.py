"""Ids and names: what is refused, and that everything accepted is safe to print, encode and put in a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trogdor_bus.errors import SpecError
from trogdor_bus.names import MAX_NAME_CHARS, check_heard_name, check_name, check_tag


@pytest.mark.parametrize("name", ["a", "node-1.example.com", "näme", "日本", "a b", "$(reboot)", "x" * MAX_NAME_CHARS])
def test_ordinary_and_odd_names_are_fine(name: str) -> None:
    assert check_name(name, "id") == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the id is empty"),
        ("x" * (MAX_NAME_CHARS + 1), "the id has 201 characters"),
        ("a\nb", "holds the control character U+000A"),
        ("a\x00", "holds the control character U+0000"),
        ("\x1b[31m", "holds the control character U+001B"),
        ("a\x7f", "holds the control character U+007F"),
        ("a\u2028b", "holds the control character U+2028"),
        ("a\u2029b", "holds the control character U+2029"),
        ("\ud800", "holds the control character U+D800"),
        ("a/b", "holds a slash"),
        ("a\u202eb", "'a\\u202eb' holds U+202E, which does not print"),
        ("a\u00a0b", "holds U+00A0, which does not print"),
        ("\u3164", "holds U+3164, which does not print"),
        (" ", "the id is blank"),
        ("a ", "begins or ends with a blank"),
        ("-x", "begins with '-', as options do"),
    ],
)
def test_what_is_wrong_is_said_with_path_and_remedy(name: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_name(name, "id", path="$.id")
    assert said in caught.value.message
    assert caught.value.path == "$.id"
    assert caught.value.remedy
    str(caught.value).encode()
    assert str(caught.value).isprintable()


@given(st.text(st.characters()))
def test_a_name_is_refused_or_safe(name: str) -> None:
    try:
        accepted = check_name(name, "name")
    except SpecError as error:
        str(error).encode()
        return
    assert accepted == name
    assert 0 < len(name.encode()) <= 4 * MAX_NAME_CHARS
    assert "/" not in name
    assert "\0" not in name
    assert len(name.splitlines()) == 1
    assert name.isprintable() and name.strip() == name and not name.startswith("-")


@pytest.mark.parametrize("name", ["a", "-x", " ", "a\u202eb"])
def test_what_a_node_of_0_1_may_be_called_is_still_heard(name: str) -> None:
    assert check_heard_name(name, "node name") == name


@pytest.mark.parametrize("tag", ["", " ", "-x", "a\u202eb", "a\nb"])
def test_a_tag_can_be_seen(tag: str) -> None:
    with pytest.raises(SpecError, match="the tag"):
        check_tag(tag, "tag")
    assert check_tag("zone/a", "tag") == "zone/a"


@pytest.mark.parametrize("begin", ["\ufeff", " ", "-"])
def test_of_a_long_tag_little_is_shown(begin: str) -> None:
    with pytest.raises(SpecError) as raised:
        check_tag(f"{begin}{'x' * 5_000}", "tag")
    assert len(str(raised.value)) < 300
