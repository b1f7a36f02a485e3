"""Reading what people write: JSON, JSON with comments, YAML; from a file, from standard input, or inline.

Strict: whatever two readers could understand differently is refused, with file, line and column.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trogdor_bus.errors import NotFoundError, SpecError
from trogdor_bus.limits import MAX_DEPTH
from trogdor_bus.names import shown

MAX_BYTES = 1 << 20
WRITER_S = 10.0
"""How long a named pipe may stay silent; a command in `<(...)` may take its time."""
STDIN = "standard input"
INLINE = "the inline text"

# Strings, comments and brackets of JSON; possessive, so that hostile text costs linear time.
_JSON_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|//[^\n]*|/\*.*?(?:\*/|\Z)|[\[\]{}]', re.S)
_LEADING = re.compile(r"(?:\s++|//[^\n]*+|/\*.*?\*/)*+", re.S)
_YAML_INT = re.compile(r"[-+]?[0-9]+")
_YAML_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_YAML_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_YAML_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def read_source(argument: str) -> tuple[bytes, str]:
    """Return the text that `argument` means and a name for it: "-" is standard input, "{..." inline, else a path.

    Never reads more than one byte above the limit. SpecError or NotFoundError if it cannot be read.
    """
    if argument == "-":
        return _limited(sys.stdin.buffer.read(MAX_BYTES + 1), STDIN), STDIN
    if argument.lstrip().startswith("{"):
        return _limited(argument.encode("utf-8", "surrogateescape"), INLINE), INLINE
    return read_file(Path(argument)), argument


def read_file(path: Path) -> bytes:
    """Return the bytes of a file or of a pipe, at most 1 MiB; SpecError or NotFoundError if it cannot be read."""
    try:
        return _limited(read_path(path, MAX_BYTES), str(path))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise SpecError(f"{str(path)!r} is a directory", remedy="name a file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"cannot read {str(path)!r}: {reason}") from None


def read_path(path: Path, most_bytes: int) -> bytes:
    """Return what is in a file, or comes through a pipe, or one byte more than `most_bytes` of it.

    OSError if it cannot be read, SpecError for what might never end: a device, a FIFO that nobody writes to.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a FIFO opens without a writer
    with os.fdopen(file, "rb", buffering=0) as opened:
        mode = os.fstat(file).st_mode
        if stat.S_ISFIFO(mode) and not _is_anonymous(file):
            return _pieces(file, most_bytes, lambda: _await_writer(file, path))
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or opened.isatty() or os.fspath(path) == os.devnull):
            raise SpecError(f"{str(path)!r} is no file", remedy='name a file, or "-" for standard input')
        os.set_blocking(file, True)
        return _pieces(file, most_bytes, lambda: None)


def _pieces(file: int, most_bytes: int, wait: Callable[[], None]) -> bytes:
    found = b""
    while len(found) <= most_bytes:
        wait()
        piece = os.read(file, most_bytes + 1 - len(found))
        if not piece:
            break
        found += piece
    return found


def _is_anonymous(file: int) -> bool:
    """Return whether a pipe is that of `<(...)`: its writers are known, and its end comes with theirs."""
    return str(Path(f"/proc/self/fd/{file}").readlink()).startswith("pipe:")


def _await_writer(file: int, path: Path) -> None:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(WRITER_S * 1000):
        raise SpecError(
            f"nobody wrote to the pipe {str(path)!r}, or closed it, within {WRITER_S:g} s",
            remedy='start what writes to it first, or name a file, or "-" for standard input',
        )


def parse(text: bytes | str, source: str) -> Any:
    """Return the value that `text` describes: dicts, lists, strings, numbers, booleans, None.

    SpecError names `source`, line and column of what is wrong.
    """
    decoded = _decode(text, source)
    return _parse_yaml(decoded, source) if _is_yaml(decoded, source) else _parse_json(decoded, source)


def parse_all(text: bytes | str, source: str) -> list[Any]:
    """Return the value of each document in `text`: several only in YAML, empty ones left out; SpecError as `parse`."""
    decoded = _decode(text, source)
    if not _is_yaml(decoded, source):
        return [_parse_json(decoded, source)]
    return [value for value in _yaml_values(decoded, source, several=True) if value is not None]


def is_yaml(text: bytes | str, source: str) -> bool:
    """Return whether `parse` reads this text as YAML: by the extension of `source`, else by the first character."""
    return _is_yaml(_decode(text, source), source)


def _is_yaml(text: str, source: str) -> bool:
    extension = Path(source).suffix.lower()
    if extension in (".yaml", ".yml", ".json"):
        return extension != ".json"
    leading = _LEADING.match(text)
    return not text.startswith(("{", "["), leading.end() if leading else 0)


def _limited(data: bytes, source: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise SpecError(f"{source} is larger than 1 MiB", remedy="a spec or a configuration is a few kilobytes")
    return data


def _decode(text: bytes | str, source: str) -> str:
    data = _limited(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"), source)
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        raise _at(source, before, len(before), f"the byte 0x{data[error.start]:02x} is not UTF-8") from None
    if not decoded.strip():
        raise SpecError(f"{source} is empty")
    return decoded


def _at(source: str, text: str, position: int, message: str) -> SpecError:
    line = text.count("\n", 0, position) + 1
    return _at_mark(source, line, position - text.rfind("\n", 0, position), message)


def _at_mark(source: str, line: int, column: int, message: str) -> SpecError:
    return SpecError(f"{source}, line {line}, column {column}: {message}")


# --- JSON -------------------------------------------------------------------------------------------------------------


def _parse_json(text: str, source: str) -> Any:
    plain = _without_comments(text, source)
    try:
        value = json.loads(
            plain,
            object_pairs_hook=lambda pairs: _unique(pairs, source),
            parse_constant=lambda word: _refuse(f"{word} is not JSON", source),
            parse_int=lambda digits: _int(digits, source),
            parse_float=lambda digits: _float(digits, source),
        )
    except json.JSONDecodeError as error:
        raise _at(source, text, min(error.pos, len(text.rstrip())), _json_words(error, plain)) from None
    if r"\ud" in text.lower():
        _refuse_lone_surrogates(value, source)
    return value


def _without_comments(text: str, source: str) -> str:
    """Return `text` with blanks for comments, so that positions stay."""
    parts, end, depth = [], 0, 0
    for mark in _JSON_MARKS.finditer(text):
        found = mark.group()
        if found in ("{", "["):
            depth += 1
            if depth > MAX_DEPTH:
                raise _at(source, text, mark.start(), f"nested deeper than {MAX_DEPTH}")
        elif found in ("}", "]"):
            depth -= 1
        elif found.startswith("/"):
            if found.startswith("/*") and (len(found) < 4 or not found.endswith("*/")):
                raise _at(source, text, mark.start(), "the comment is not closed")
            parts += [text[end : mark.start()], re.sub(r"[^\n]", " ", found)]
            end = mark.end()
    return "".join([*parts, text[end:]])


def _json_words(error: json.JSONDecodeError, text: str) -> str:
    if error.pos >= len(text.rstrip()):
        return "the text ends too early"
    found = repr(text[error.pos])
    match error.msg:
        case "Invalid control character at":
            return "the string is not closed on its line" if text[error.pos] == "\n" else f"{found} in a string"
        case "Extra data":
            return f"{found} after the end of the value"
        case "Expecting property name enclosed in double quotes" | "Illegal trailing comma before end of object":
            return f"expected a name in double quotes, found {found}"
        case "Illegal trailing comma before end of array":
            return "a comma before the end of the list"
        case "Unterminated string starting at":
            return "the string is not closed"
        case "Expecting value":
            return f"expected a value, found {found}"
        case message:
            return f"{message[:1].lower()}{message[1:]}, found {found}".replace("expecting", "expected")


def _unique(pairs: Iterable[tuple[str, Any]], source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise SpecError(f"{source}: the name {shown(repr(key))} stands twice in one object", remedy="keep one")
        result[key] = value
    return result


def _refuse(message: str, source: str) -> Any:
    raise SpecError(f"{source}: {message}")


def _int(digits: str, source: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= (number := int(digits)) < 1 << 63:
        raise SpecError(f"{source}: the number {digits[:30]} does not fit into 64 bits")
    return number


def _float(digits: str, source: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise SpecError(f"{source}: the number {digits[:30]} is too large")
    return number


def _refuse_lone_surrogates(value: Any, source: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise SpecError(f"{source}: an escape \\ud800 to \\udfff stands without its other half") from None


# --- YAML -------------------------------------------------------------------------------------------------------------


def _parse_yaml(text: str, source: str) -> Any:
    return _yaml_values(text, source, several=False)[0]


def _yaml_values(text: str, source: str, *, several: bool) -> list[Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return _YamlValue(source, several=several).read(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = shown(" ".join((error.problem or error.context or "not YAML").split()))
        if mark is None:
            raise SpecError(f"{source}: {problem}") from None
        raise _at_mark(source, mark.line + 1, mark.column + 1, problem) from None
    except YAMLError as error:
        position = getattr(error, "position", None)
        if isinstance(position, int):
            raise _at(source, text, position, "a character that YAML does not allow") from None
        raise SpecError(f"{source}: {shown(' '.join(str(error).split()))}") from None


class _YamlValue:
    """Builds a JSON-like value from YAML events: strings as keys, the scalars of YAML 1.2, no tags, no aliases."""

    def __init__(self, source: str, *, several: bool) -> None:
        self._source, self._several = source, several
        self._open: list[dict[str, Any] | list[Any]] = []
        self._keys: list[str | None] = []
        self._roots: list[Any] = []

    def read(self, events: Iterable[Any]) -> list[Any]:
        for event in events:
            kind = type(event).__name__
            if kind == "AliasEvent":
                raise self._error(event, "aliases (*name) are not accepted; write the value out")
            if kind == "DocumentStartEvent" and self._roots and not self._several:
                raise self._error(event, "a second document begins; one is expected")
            if kind in ("ScalarEvent", "MappingStartEvent", "SequenceStartEvent") and event.ctag is not None:
                raise self._error(event, f"tags are not accepted, found {shown(str(event.ctag))}")
            if kind == "ScalarEvent":
                self._add(event, self._scalar(event) if event.implicit[0] else event.value)
            elif kind in ("MappingStartEvent", "SequenceStartEvent"):
                if len(self._open) >= MAX_DEPTH:
                    raise self._error(event, f"nested deeper than {MAX_DEPTH}")
                value: dict[str, Any] | list[Any] = {} if kind == "MappingStartEvent" else []
                self._add(event, value)
                self._open.append(value)
                self._keys.append(None)
            elif kind in ("MappingEndEvent", "SequenceEndEvent"):
                self._open.pop()
                self._keys.pop()
        if not self._roots:
            raise SpecError(f"{self._source} is empty")
        return self._roots

    def _add(self, event: Any, value: Any) -> None:
        if not self._open:
            self._roots.append(value)
            return
        parent = self._open[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif (key := self._keys[-1]) is not None:
            parent[key] = value
            self._keys[-1] = None
        else:
            if type(event).__name__ != "ScalarEvent":
                raise self._error(event, "a name must be text, not a list or an object")
            if event.value in parent:
                raise self._error(event, f"the name {shown(repr(event.value))} stands twice in one object")
            self._keys[-1] = event.value

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if text in _YAML_WORDS:
            return _YAML_WORDS[text]
        if _YAML_NOT_FINITE.fullmatch(text):
            raise self._error(event, f"{text} is not a number that JSON knows")
        if _YAML_INT.fullmatch(text):
            return _int(text, self._source)
        if _YAML_FLOAT.fullmatch(text):
            return _float(text, self._source)
        return text

    def _error(self, event: Any, message: str) -> SpecError:
        return _at_mark(self._source, event.start_mark.line + 1, event.start_mark.column + 1, message)
