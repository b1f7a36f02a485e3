"""Reading what people write: every mistake is a SpecError that says where."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trogdor_bus import document, properties
from trogdor_bus.errors import NotFoundError, SpecError


def test_json_with_comments_and_a_byte_order_mark() -> None:
    text = b'\xef\xbb\xbf// licence\n/* more\n{ */\n{"a": [1, 2.5, null, true], "b": "// no /* comment"} // end\n'
    assert document.parse(text, "spec.json") == {"a": [1, 2.5, None, True], "b": "// no /* comment"}


def test_yaml_1_2_scalars() -> None:
    text = "a: on\nb: true\nc: 12\nd: 1.5e3\ne: ~\nf: '12'\ng: 2020-01-01\n1: x\nh: [a, {b: c}]\ni: |\n  two\n  lines\n"
    assert document.parse(text, "spec.yaml") == {
        "a": "on",
        "b": True,
        "c": 12,
        "d": 1500.0,
        "e": None,
        "f": "12",
        "g": "2020-01-01",
        "1": "x",
        "h": ["a", {"b": "c"}],
        "i": "two\nlines\n",
    }


@pytest.mark.parametrize(
    ("source", "text", "yaml"),
    [
        ("a.yaml", '{"a": 1}', True),
        ("a.yml", "a: 1", True),
        ("a.json", "a: 1", False),
        ("a.conf", " // x\n/* y */ {}", False),
        ("standard input", "[]", False),
        ("standard input", "# x\na: 1", True),
    ],
)
def test_the_format_follows_extension_then_content(source: str, text: str, yaml: bool) -> None:
    assert document.is_yaml(text, source) is yaml


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("s.json", '{"a": 1,\n "b" 2}', "s.json, line 2, column 6: expected ':' delimiter, found '2'"),
        ("s.json", '// c\n{"a": /* x */ }', "s.json, line 2, column 15: expected a value, found '}'"),
        ("s.json", '{"a": 1', "s.json, line 1, column 8: the text ends too early"),
        ("s.json", '{"a": "b\n"}', "s.json, line 1, column 9: the string is not closed on its line"),
        ("s.json", '{"a": 1} x', "s.json, line 1, column 10: 'x' after the end of the value"),
        ("s.json", '{"a": /* 1}', "s.json, line 1, column 7: the comment is not closed"),
        ("s.json", '{"a": 1, "a": 2}', "s.json: the name 'a' stands twice in one object (keep one)"),
        ("s.json", '{"a": NaN}', "s.json: NaN is not JSON"),
        ("s.json", '{"a": -Infinity}', "s.json: -Infinity is not JSON"),
        ("s.json", '{"a": 1e999}', "s.json: the number 1e999 is too large"),
        ("s.json", '{"a": 9223372036854775808}', "s.json: the number 9223372036854775808 does not fit into 64 bits"),
        ("s.json", '{"a": "\\ud800"}', "s.json: an escape \\ud800 to \\udfff stands without its other half"),
        ("s.json", "[" * 101 + "]" * 101, "s.json, line 1, column 101: nested deeper than 100"),
        ("s.json", b'{"a":\n "\xff"}', "s.json, line 2, column 3: the byte 0xff is not UTF-8"),
        ("s.json", "", "s.json is empty"),
        ("s.yaml", " \n\t\n", "s.yaml is empty"),
        ("s.yaml", "# nothing\n", "s.yaml is empty"),
        ("s.yaml", "a: 1\na: 2", "s.yaml, line 2, column 1: the name 'a' stands twice in one object"),
        (
            "s.yaml",
            "a: &x [1]\nb: *x",
            "s.yaml, line 2, column 4: aliases (*name) are not accepted; write the value out",
        ),
        ("s.yaml", "a: !!python/name:os.system x", "s.yaml, line 1, column 4: tags are not accepted"),
        ("s.yaml", "a: .nan", "s.yaml, line 1, column 4: .nan is not a number that JSON knows"),
        ("s.yaml", "? [a]\n: b", "s.yaml, line 1, column 3: a name must be text, not a list or an object"),
        ("s.yaml", "a: 1\n---\nb: 2", "s.yaml, line 2, column 1: a second document begins; one is expected"),
        ("s.yaml", "a: [1", "s.yaml, line 1, column 6: "),
        ("s.yaml", "a: \x00", "s.yaml, line 1, column 4: a character that YAML does not allow"),
        ("s.yaml", "[" * 101, "s.yaml, line 1, column 101: nested deeper than 100"),
    ],
)
def test_every_mistake_says_where(source: str, text: str | bytes, expected: str) -> None:
    with pytest.raises(SpecError) as raised:
        document.parse(text, source)
    assert str(raised.value).startswith(expected)


def test_the_limit_is_one_mebibyte() -> None:
    most = '"' + "x" * (document.MAX_BYTES - 2) + '"'
    assert document.parse(most, "s.json") == most[1:-1]
    with pytest.raises(SpecError, match=r"s\.json is larger than 1 MiB"):
        document.parse(most + " ", "s.json")


@pytest.mark.parametrize("text", ['\\"' * 500_000, '"' + '\\"' * 500_000, "/*" * 500_000, '"' * 1_000_001])
def test_hostile_text_costs_linear_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(SpecError):
        document.parse(text, "s.json")
    assert time.process_time() - start < 5


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spec.json"
    file.write_text("{}")
    assert document.read_source(str(file)) == (b"{}", str(file))
    assert document.read_source(' {"a": 1}') == (b' {"a": 1}', document.INLINE)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[]")))
    assert document.read_source("-") == (b"[]", document.STDIN)


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        document.read_source(str(tmp_path / "absent"))
    with pytest.raises(SpecError, match="is a directory"):
        document.read_source(str(tmp_path))
    with pytest.raises(SpecError, match="cannot read"):
        document.read_source("a\0b")
    with pytest.raises(SpecError, match="cannot read"):
        document.read_source("x" * 5000)
    with pytest.raises(SpecError, match="not UTF-8"):
        document.parse(*document.read_source('{"a": "\udcff"}'))
    with pytest.raises(SpecError, match="'/dev/zero' is no file"):
        document.read_source("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * (document.MAX_BYTES + 1))
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        document.read_source(str(tmp_path / "large"))


def test_a_fifo_that_nobody_writes_to_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(document, "WRITER_S", 0.1)
    for read in (document.read_source, lambda path: properties.Properties(Path(path))):
        with pytest.raises(SpecError, match=r"nobody wrote to the pipe .*fifo', or closed it, within 0.1 s"):
            read(str(fifo))
    held = os.open(fifo, os.O_RDWR)  # there is a writer, which writes half and nothing more
    os.write(held, b"{")
    with pytest.raises(SpecError, match="nobody wrote to the pipe"):
        document.read_source(str(fifo))
    os.close(held)


def test_a_fifo_with_a_writer_and_the_pipe_of_a_shell_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = b'{"class": "noop"}' + b" " * 200_000  # more than a pipe holds
    writer = threading.Thread(target=fifo.write_bytes, args=(text,))
    writer.start()
    assert document.read_file(fifo) == text
    writer.join()
    shell = 'sleep 0.3; echo \'{"class": "noop"}\''
    argv = ["bash", "-c", f"{sys.executable} -m trogdor_bus validate <({shell})"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Valid")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["s", "s.json", "s.yaml"]))
def test_arbitrary_bytes_raise_nothing_else(data: bytes, source: str) -> None:
    with contextlib.suppress(SpecError):
        document.parse(data, source)


_YAMLISH = st.text(alphabet="ab01:-?,[]{}&*!|>'\"%@`# \n\t~.<=\\/\x85\u2028\ud7ff\ufeff", max_size=60)


@settings(max_examples=700, deadline=None)
@given(_YAMLISH, st.sampled_from(["s", "s.json", "s.yaml"]))
def test_arbitrary_marks_raise_nothing_else(text: str, source: str) -> None:
    with contextlib.suppress(SpecError):
        document.parse(text, source)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert document.parse("/* c */" + text + "// c", "s.json") == value


def test_several_documents_are_several_values_where_they_are_asked_for() -> None:
    text = "---\na: 1\n---\n# nothing\n---\n- b\n..."
    assert document.parse_all(text, "x.yaml") == [{"a": 1}, ["b"]]
    assert document.parse_all('{"a": 1}', "x.json") == [{"a": 1}]
    with pytest.raises(SpecError, match=r"x\.yaml, line 3, column 1: a second document begins"):
        document.parse("---\na: 1\n---\nb: 1\n", "x.yaml")
    with pytest.raises(SpecError, match=r"x\.yaml, line 5, column 1: the name 'b' stands twice"):
        document.parse_all("---\na: 1\n---\nb: 1\nb: 2\n", "x.yaml")
