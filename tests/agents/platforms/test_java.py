from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agents.platforms.nodes import Node
from tests.support import require, wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux.java import main_line, split_arguments
from trogdor_bus.agents.platforms.linux.namespace import Namespace
from trogdor_bus.platform import Surroundings

SLEEP = "Thread.sleep(600000);"


def no_file(name: str) -> Sequence[str]:
    return ()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A class, a jar, a module and a source file, each of which sleeps."""
    for tool in ("java", "javac", "jar", "jcmd"):
        require(shutil.which(tool) is not None, f"{tool} is not installed", "apt-get install openjdk-17-jdk-headless")
    main = f"public static void main(String[] a) throws Exception {{ {SLEEP} }}"
    (tmp_path / "Sleepy.java").write_text(f"public class Sleepy {{ {main} }}")
    (tmp_path / "src/p").mkdir(parents=True)
    (tmp_path / "src/p/M.java").write_text(f"package p; public class M {{ {main} }}")
    (tmp_path / "src/module-info.java").write_text("module demo {}")
    for command in (
        "javac -d cls Sleepy.java",
        "javac -d mods/demo src/module-info.java src/p/M.java",
        "jar --create --file app.jar --main-class Sleepy -C cls Sleepy.class",
        "jar --create --file demo.jar --main-class p.M -C mods/demo .",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "args").write_text(
        '-Xmx20m -cp cls # comment\n"-Dq=a b" Sleepy \'from file\' e\\nf "con\\\n   tinued"\n'
    )
    return tmp_path


COMMANDS = [
    ["-cp", "cls", "Sleepy", "a", "b c", "-cp", "x"],
    ["-Dkafka.logs.dir=/x", "-XX:+UseSerialGC", "-classpath", "cls", "Sleepy"],
    ["--class-path=cls", "--add-opens", "java.base/java.lang=ALL-UNNAMED", "Sleepy", "", "@args", "@@y"],
    ["-Xint", "-jar", "app.jar", "config/server.properties", "--override", "x=y"],
    ["-jar", "-Dz=1", "./app.jar"],
    ["-p", "mods", "-m", "demo/p.M", "-q", "r"],
    ["--module-path=demo.jar", "--module", "demo", "z"],
    ["--module-path", "demo.jar", "--module=demo/p.M"],
    ["--add-modules", "java.logging", "Sleepy.java", "one"],
    ["--source", "17", "Sleepy.java", "two"],
    ["@args", "more", "@notfile"],
    ["-cp", "cls", "Sleepy", "x" * 1100],
    ["-cp", "cls", "Sleepy", "é"],
]


def test_our_lines_are_those_of_jcmd(classes: Path, node: Node) -> None:
    flags = ["-Xmx24m", "-XX:TieredStopAtLevel=1"]
    pids = {node.spawn("java", *flags, *command, cwd=str(classes)) for command in COMMANDS}
    theirs: dict[int, str] = {}

    def all_listed() -> bool:
        listed = subprocess.run(["jcmd", "-l"], capture_output=True, check=True, text=True).stdout.splitlines()
        theirs.update({int(line.split()[0]): line for line in listed if int(line.split()[0]) in pids})
        return theirs.keys() == pids and not any("Unknown" in line for line in theirs.values())

    wait_until(all_listed, 60, "every JVM in the list of jcmd")
    with Namespace(f"/run/netns/{node.name}") as namespace:
        found = processes.find(ProcessMatch(java=" "), namespace, Surroundings()).processes
        ours = {process.pid: processes.java_line(process) for process in found}
        jar = processes.find(ProcessMatch(java="app.jar config/server"), namespace, Surroundings()).processes
        flag = processes.find(ProcessMatch(java="kafka.logs.dir"), namespace, Surroundings())
    assert ours == theirs
    assert len(jar) == 1
    assert flag.processes == ()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["java"], ""),
        (["java", "-version"], ""),
        (["java", "-cp"], ""),
        (["java", "-m"], ""),
        (["java", "-jar", "x.java", "y"], "x.java y"),
        (["java", "@gone"], ""),
        (["java", "@@x"], "@x"),
        (["java", "@"], "@"),
        (["java", "--add-reads", "a=b", "--patch-module", "c=d", "Main", "-m", "x"], "Main -m x"),
    ],
)
def test_odd_command_lines(argv: list[str], line: str) -> None:
    assert main_line(argv, no_file) == line


@given(argv=st.lists(st.text(), min_size=1), inner=st.lists(st.text()))
def test_no_command_line_is_too_odd(argv: list[str], inner: list[str]) -> None:
    assert isinstance(main_line(argv, lambda name: inner), str)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("a  b\nc", ["a", "b", "c"]),
        ("'a b' \"c d\"e", ["a b", "c de"]),
        (r'a\b "a\\b\n"', [r"a\b", "a\\b\n"]),
        ('""', [""]),
        ("# all of it\nb", ["b"]),
        ("lost#word and all\nb", ["b"]),
        ('"open\nnext', ["open", "next"]),
        ('"con\\\n   tinued"', ["continued"]),
        ('"end\\', ["end\\"]),
    ],
)
def test_argument_files_are_split_as_by_the_launcher(text: str, words: list[str]) -> None:
    assert split_arguments(text) == words


@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))))
def test_quoted_words_survive(words: list[str]) -> None:
    quoted = ['"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words]
    assert split_arguments(" ".join(quoted)) == words
