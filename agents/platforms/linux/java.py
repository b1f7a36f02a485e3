"""What jcmd prints for a JVM, derived from its command line; nothing is attached to the JVM.

The rules are those of the `java` launcher (JDK 17, src/java.base/share/native/libjli/java.c and args.c): which options
take a separate value, where the main class stands, how files of arguments (`@file`) are split. JDK 22 and newer call
the launcher of source files differently; the file and its arguments are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trogdor_bus.agents.platforms.linux.files import read_regular
from trogdor_bus.supervisor import tree

CLASS_PATH = ("-cp", "-classpath", "--class-path")
MODULES = ("-p", "--module-path", "--upgrade-module-path", "--add-modules", "--limit-modules", "--enable-native-access")
MODULE_PATCHES = ("--add-exports", "--add-opens", "--add-reads", "--patch-module")
WITH_VALUE = frozenset((*CLASS_PATH, *MODULES, *MODULE_PATCHES, "--source", "-d", "--describe-module"))
SOURCE_LAUNCHER = "jdk.compiler/com.sun.tools.javac.launcher.Main"
MAX_LINE_BYTES = 1024
MAX_FILE_BYTES = 1 << 20

ReadArguments = Callable[[str], Sequence[str]]
ReadFile = Callable[[str, int, str], bytes]
"""Reads a file as `files.read_regular` does."""


def main_line(argv: Sequence[str], read_file: ReadArguments) -> str:
    """Return main class (or jar, or module) and arguments of a JVM started as `argv`, as jcmd prints them.

    `read_file` returns the arguments in a file named by `@file`. "" if the command line names no main class.
    """
    words = _Words(argv[1:], read_file)
    jar = source = False
    while (word := words.next()) is not None:
        if word in ("-m", "--module"):
            return _line([words.next() or "", *words.rest()])
        if word.startswith("--module="):
            return _line([word.removeprefix("--module="), *words.rest()])
        if word in WITH_VALUE:
            words.next()
            source = source or word == "--source"
        elif word == "-jar":
            jar = True
        elif not word.startswith("-"):
            source = source or (not jar and word.endswith(".java"))
            return _line([*([SOURCE_LAUNCHER] if source else []), word, *words.rest()])
    return ""


class _Words:
    """The launcher's arguments; files are expanded only up to the main class, and do not nest."""

    def __init__(self, words: Sequence[str], read_file: ReadArguments) -> None:
        self._pending = [(word, word.startswith("@")) for word in reversed(words)]
        self._read_file = read_file

    def next(self) -> str | None:
        while self._pending:
            word, expand = self._pending.pop()
            if not expand or word == "@":
                return word
            if word.startswith("@@"):
                return word[1:]
            self._pending += [(inner, False) for inner in reversed(self._read_file(word[1:]))]
        return None

    def rest(self) -> list[str]:
        return [word for word, _ in reversed(self._pending)]


def read_argument_file(pid: int, name: str, read: ReadFile = read_regular) -> Sequence[str]:
    """Return the arguments in the file that process `pid` knows as `name`; () if it cannot be read."""
    folder = tree.folder(pid)
    path, root = (name, f"{folder}/root") if name.startswith("/") else (f"{folder}/cwd/{name}", "")
    try:
        return split_arguments(read(path, MAX_FILE_BYTES, root).decode(errors="replace"))
    except OSError:
        return ()


def split_arguments(text: str) -> list[str]:
    """Return the words of an argument file: quotes group, a backslash escapes inside quotes.

    `#` starts a comment, and in the middle of a word it takes the word with it, as in the launcher.
    """
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if quote and char == "\\" and at < len(text):
            char, at = text[at], at + 1
            if char in "\r\n":  # the line goes on, without its indentation
                at += len(text[at:]) - len(text[at:].lstrip(" \t\f\n"))
            else:
                (word := word or []).append({"n": "\n", "r": "\r", "t": "\t", "f": "\f"}.get(char, char))
        elif quote and char == quote:
            quote = ""
        elif quote and char not in "\r\n":
            (word := word or []).append(char)
        elif char in "\"'":
            quote, word = char, word or []
        elif char.isspace() or char == "#":
            quote = ""
            if word is not None and char != "#":
                words.append("".join(word))
            word = None
            if char == "#":
                at = text.find("\n", at) if "\n" in text[at:] else len(text)
        else:
            (word := word or []).append(char)
    return words if word is None else [*words, "".join(word)]


def _line(words: Sequence[str]) -> str:
    """Join the words as the JVM does; it keeps 1024 bytes."""
    return " ".join(words).encode()[:MAX_LINE_BYTES].decode(errors="replace")
