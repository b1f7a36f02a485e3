from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import require, wait_until
from trogdor_bus.agents.platforms.linux import commands
from trogdor_bus.agents.platforms.linux.commands import ToolFailedError, find_tool, run
from trogdor_bus.errors import HostError

RUNS_A_TOOL = """
import sys, threading
from trogdor_bus.agents.platforms.linux.commands import run
thread = threading.Thread(target=run, args=(sys.argv[1:],))  # as in another network namespace
thread.start()
thread.join()
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def require_setpriv() -> None:
    require(find_tool("setpriv") is not None, "setpriv is not installed", "apt-get install util-linux")


def test_a_tool_gets_its_input_and_returns_its_output() -> None:
    assert run(["cat"], stdin="a\n'b' $c \\d\n") == "a\n'b' $c \\d\n"


@pytest.mark.parametrize("word", ["", "a b", "$PPID", "`id`", "-x", "--", "'", '"; id; "', "a\nb"])
def test_arguments_arrive_as_they_are(word: str) -> None:
    assert run([sys.executable, "-c", "import sys; sys.stdout.write(sys.argv[1])", word]) == word


def test_only_path_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere")
    monkeypatch.setenv("MINE", "1")
    names = {line.partition("=")[0] for line in run(["env"], environment={"YOURS": "2"}).splitlines()}
    assert {"PATH", "LC_ALL", "YOURS"} <= names and not {"MINE", "LD_PRELOAD"} & names


def test_a_failure_carries_the_tools_own_words_and_its_code() -> None:
    with pytest.raises(ToolFailedError, match=r"^sh failed \(4\): no such thing$") as caught:
        run(["sh", "-c", "echo no such >&2; echo thing >&2; exit 4"])
    assert caught.value.code == 4


def test_a_tool_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "iptables"
    empty.touch(0o755)
    for path in (empty, tmp_path / "nothing"):
        with pytest.raises(HostError, match=f"{path} is not on this machine"):
            run([str(path)])


def test_a_tool_has_its_own_process_group_in_the_session_of_the_agent() -> None:
    pid, _, _, _, group, session = run(["cat", "/proc/self/stat"]).split()[:6]
    assert (group, session) == (pid, str(os.getsid(0)))


def test_after_the_deadline_a_tool_and_everything_it_started_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ >>{tmp_path}/pids; for i in 1 2; do sleep 600 & echo $! >>{tmp_path}/pids; done; wait"
    began = time.monotonic()
    with pytest.raises(HostError, match=r"^sh did not end within 0.5 s; killed$"):
        run(["sh", "-c", script], timeout_s=0.5)
    assert time.monotonic() - began < 5
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert not Path(f"/proc/{pids[0]}").exists()  # reaped
    wait_until(lambda: not any(map(alive, pids)), what="what the tool started to be gone")


def test_a_tool_that_leaves_somebody_on_its_pipes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"did not end within 0.5 s"):
        run(["sh", "-c", f"sleep 600 & echo $! >{tmp_path}/pid"], timeout_s=0.5)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid), what="the one left to be gone")


def test_the_kernel_kills_the_tool_of_a_killed_agent() -> None:
    require_setpriv()
    with subprocess.Popen([sys.executable, "-c", RUNS_A_TOOL, "sleep", "600"]) as agent:
        tools: list[psutil.Process] = []

        def sleeping() -> list[psutil.Process]:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that it ran before
                return [child for child in psutil.Process(agent.pid).children() if child.name() == "sleep"]
            return []

        try:
            wait_until(lambda: tools.extend(sleeping()) or tools, what="the tool to run")
            tool = tools[0]
        finally:
            agent.kill()
    began = time.monotonic()
    wait_until(lambda: not alive(tool.pid), timeout_s=2, what="the tool to be gone")
    assert time.monotonic() - began < 1


def test_the_tool_of_an_agent_that_is_dead_already_is_not_run(tmp_path: Path) -> None:
    require_setpriv()
    words = commands._dies_with(1)  # this process is not pid 1, as one whose parent has died is not that parent's child
    done = subprocess.run([*words, "touch", str(tmp_path / "done")], check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    subprocess.run([*commands._dies_with(os.getpid()), "touch", str(tmp_path / "done")], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@pytest.mark.parametrize(
    "setpriv", [None, "#!/bin/sh\necho 'unrecognized option' >&2\nexit 1\n", "#!/bin/sh\nexec /bin/sleep 20\n"]
)
def test_without_setpriv_tools_are_run_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setpriv: str | None
) -> None:
    for name in ("sh", "cat"):
        (tmp_path / name).symlink_to(find_tool(name) or "")
    if setpriv is not None:
        (tmp_path / "setpriv").write_text(setpriv)
        (tmp_path / "setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(commands, "TIMEOUT_S", 1.0)
    commands._warn_of_orphans.cache_clear()
    assert [run(["cat"], stdin="x") for _ in range(2)] == ["x", "x"]
    assert len([record for record in caplog.records if "install the package util-linux" in record.message]) == 1


def test_an_interrupted_run_leaves_no_tool_behind(tmp_path: Path) -> None:
    code = (
        "from trogdor_bus.agents.platforms.linux.commands import run\n"
        "try: run(['sh', '-c', 'sleep 600 & sleep 601'])\n"
        "except KeyboardInterrupt: pass\n"
        "input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as agent:
        family = psutil.Process(agent.pid)
        try:
            wait_until(lambda: len(family.children(recursive=True)) >= 3, what="the tool and what it started")
            pids = [child.pid for child in family.children(recursive=True)]
            agent.send_signal(signal.SIGINT)
            wait_until(lambda: not any(map(alive, pids)), what="all of them to be gone")
            assert agent.poll() is None
        finally:
            agent.kill()
