"""Restart as an undo: who may be started, as whom, exactly once, and what is said when nothing comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agents.platforms.nodes import SLEEP, Node, end, from_journal, known, undone
from tests.supervisor.kept import LEADERLESS, has_lost_its_main_thread
from tests.support import wait_until
from trogdor_bus.actions import ProcessMatch
from trogdor_bus.actions.process import Kill, Restart
from trogdor_bus.agents.platforms.linux import processes
from trogdor_bus.agents.platforms.linux import starter as starter_module
from trogdor_bus.agents.platforms.linux.identities import NamespaceIdentity
from trogdor_bus.agents.platforms.linux.namespace import Namespace, UnseenError
from trogdor_bus.agents.platforms.linux.operations import Nothing, restarts, step
from trogdor_bus.agents.platforms.linux.operations.restarts import Restart as Start
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.agents.platforms.linux.starter import Command
from trogdor_bus.errors import CannotHealError, HostError, RefusedError
from trogdor_bus.host import boot_id
from trogdor_bus.platform import Operation, ProcessIdentity, Step, Surroundings

SERVICE = """
import os, socket, sys, time
with open(sys.argv[1] + "/starts", "a") as starts:
    starts.write(f"{os.getpid()}\\n")
time.sleep(float(sys.argv[2]))
server = socket.create_server(("", 9092))
time.sleep(600)
"""
"""Notes that it was started, and listens after a while."""
STARTER = """
import json, os, signal, sys, time
from trogdor_bus.errors import NotYetError
from trogdor_bus.agents.platforms.linux.platform import LinuxPlatform
from trogdor_bus.platform import Step
attach, argv, undo, noted, dies = json.load(sys.stdin)
def note(operation):
    with open(noted, "w") as file:
        json.dump(operation, file)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
platform = LinuxPlatform(attach, [argv])
while True:
    try:
        platform.undo(Step({"op": "nothing"}, undo), [], note)
        break
    except NotYetError:
        time.sleep(0.05)
"""
"""An agent that undoes, and may die when what it starts was noted and is not yet released."""
DROPPED = f"import os; os.setgroups([1234, 4321]); os.setresgid(*[65533] * 3); os.setresuid(*[65534] * 3); {SLEEP}"


class Service:
    """A service on a node, and how it is to be started again; `slow_s` until it listens on port 9092."""

    def __init__(self, node: Node, folder: Path, slow_s: float = 0.0) -> None:
        self.node, self.folder = node, folder
        self.argv: tuple[str, ...] = (sys.executable, "-c", SERVICE, str(folder), str(slow_s))
        self.match = ProcessMatch(command=str(folder))
        self.platform = self.another_life()

    def another_life(self) -> LinuxPlatform:
        return LinuxPlatform(f"netns:{self.node.name}", [self.argv])

    def killed(self, **how: Any) -> Step:
        """Start a victim that matches, prepare its end with a restart, and kill it."""
        self.node.sleeper(str(self.folder))
        return self.kill(Restart(command=self.argv, **how))

    def kill(self, restart: Restart, signal: str = "SIGKILL", grace_ms: int = 0) -> Step:
        action = Kill(match=self.match, restart=restart, signal=signal, grace_ms=grace_ms)
        (step,) = from_journal(self.platform.prepare(1, action, Surroundings(), []))
        undo = self.platform.do(step)
        return Step(step.do, undo) if undo else step

    def starts(self) -> list[int]:
        """Return the pids of all that were started; they are ended with the node."""
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def running(self) -> list[ProcessIdentity]:
        with Namespace(f"/run/netns/{self.node.name}") as namespace:
            found = processes.find(self.match, namespace, Surroundings()).processes
        for process in found:
            self.node.own(process.pid)
        return [process.identity for process in found]


@pytest.fixture
def service(node: Node, tmp_path: Path) -> Service:
    return Service(node, tmp_path)


@pytest.fixture
def slow(node: Node, tmp_path: Path) -> Service:
    return Service(node, tmp_path, slow_s=6)


LISTENING = ProcessMatch(port=9092)


def test_a_command_is_run_only_if_the_agent_lists_exactly_that(service: Service) -> None:
    service.node.sleeper(str(service.folder))
    action = Kill(match=service.match, restart=Restart(command=("systemctl", "start", "kafka")))
    for allowed in ([], [["systemctl"]], [["systemctl", "start", "kafka", "now"]]):
        with pytest.raises(RefusedError, match="allowCommands"):
            LinuxPlatform(f"netns:{service.node.name}", allowed).prepare(1, action, Surroundings(), [])


def test_what_was_found_in_no_container_and_no_unit_is_refused(service: Service) -> None:
    service.node.sleeper(str(service.folder))
    action = Kill(match=service.match, restart=Restart(found=True))
    with pytest.raises(RefusedError, match=r"restart\.found cannot start it again; say in the spec how to start it"):
        service.platform.prepare(1, action, Surroundings(), [])


def test_a_command_that_does_not_exist_is_no_restart(service: Service, tmp_path: Path) -> None:
    service.node.sleeper(str(service.folder))
    (tmp_path / "no-program").touch()
    for program in ("no-such-program", str(tmp_path / "no-program"), str(tmp_path), "./no-such-program"):
        platform = LinuxPlatform(f"netns:{service.node.name}", [[program]])
        action = Kill(match=service.match, restart=Restart(command=(program,)))
        with pytest.raises(HostError, match="does not exist on this machine"):
            platform.prepare(1, action, Surroundings(), [])


def test_a_command_runs_as_what_was_killed_and_lives_on_by_itself(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("OF_THE_SERVICE", "caf\udcff = é\n")
    pid = node.spawn(sys.executable, "-c", DROPPED, "86754.25", cwd=str(tmp_path))
    monkeypatch.setenv("OF_THE_SERVICE", "of the agent")
    wait_until(lambda: processes.status(pid)["Uid"].startswith("65534"), what="another user")
    before, environment = processes.status(pid), Path(f"/proc/{pid}/environ").read_bytes()
    argv = ("sleep", "86754.25")
    platform = LinuxPlatform(f"netns:{node.name}", [argv])
    action = Kill(match=ProcessMatch(command="86754.25"), restart=Restart(command=argv))
    (step,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    platform.do(step)
    assert platform.by_hand(step).endswith("sleep 86754.25")
    noted: list[Operation] = []
    assert undone(platform, step, noted.append) == ""
    (identity,) = (known(operation["started"]["pid"]) for operation in noted)
    node.own(identity.pid)
    proc = Path(f"/proc/{identity.pid}")
    assert noted[0]["started"] == msgspec.to_builtins(identity)
    assert proc.joinpath("cmdline").read_bytes() == b"sleep\x0086754.25\x00"
    after = processes.status(identity.pid)
    assert [after[key] for key in ("Uid", "Gid", "Groups", "CapEff")] == [
        *("\t".join(["65534"] * 4), "\t".join(["65533"] * 4), "1234 4321", before["CapEff"])
    ]
    assert proc.joinpath("cwd").readlink() == tmp_path
    assert sorted(proc.joinpath("environ").read_bytes().split(b"\0")) == sorted(environment.split(b"\0"))
    assert proc.joinpath("ns/net").stat().st_ino == Path(f"/run/netns/{node.name}").stat().st_ino
    stat = processes.read_stat(str(proc))
    assert stat is not None
    assert stat.session == identity.pid
    assert stat.parent != os.getpid()
    assert {str(file.readlink()) for file in proc.joinpath("fd").iterdir()} == {"/dev/null"}
    of_the_c_library = 0b11 << 31  # signals 32 and 33, which no program can set
    assert int(after["SigIgn"], 16) & ~of_the_c_library == int(after["SigBlk"], 16) == 0
    assert undone(platform, step).startswith("already running")
    end(identity)
    rebooted = Step(do=step.do, undo={**step.undo, "boot_id": "another"})
    assert undone(platform, rebooted).startswith("gone: the machine was booted")


def test_what_was_killed_under_another_root_is_started_as_the_agent(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = node.sleeper("76543.25", f"import os, time; os.chroot({str(tmp_path)!r}); time.sleep(600)")
    wait_until(lambda: str(Path(f"/proc/{pid}/root").readlink()) == str(tmp_path), what="another root")
    argv = ("sleep", "76543.25")
    platform = LinuxPlatform(f"netns:{node.name}", [argv])
    action = Kill(match=ProcessMatch(command="76543.25"), restart=Restart(command=argv))
    (step,) = from_journal(platform.prepare(1, action, Surroundings(), []))
    platform.do(step)
    monkeypatch.setenv("OF_THE_AGENT", "yes")  # its own environment as it is then, which may say where a daemon is
    noted: list[Operation] = []
    assert undone(platform, step, noted.append) == ""
    reborn = noted[0]["started"]["pid"]
    node.own(reborn)
    assert b"OF_THE_AGENT=yes" in Path(f"/proc/{reborn}/environ").read_bytes().split(b"\0")
    assert Path(f"/proc/{reborn}/cwd").readlink() == Path("/")
    assert processes.status(reborn)["Uid"] == "\t".join([str(os.getuid())] * 4)


def test_of_several_that_are_killed_one_restart_speaks_for_all(service: Service) -> None:
    for _ in range(3):
        service.node.sleeper(str(service.folder))
    action = Kill(match=service.match, restart=Restart(command=service.argv))
    steps = from_journal(service.platform.prepare(1, action, Surroundings(), []))
    for one in steps:
        service.platform.do(one)
    assert [undone(service.platform, one) for one in reversed(steps)] == ["", "", ""]
    wait_until(service.starts, what="the start")
    assert len(service.running()) == len(service.starts()) == 1


def starter(service: Service, step: Step, *, dies: bool) -> subprocess.Popen[bytes]:
    """Undo in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", STARTER], stdin=subprocess.PIPE)
    told = [f"netns:{service.node.name}", service.argv, step.undo, str(service.folder / "noted"), dies]
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps(told).encode())
    return process


def noted(service: Service, step: Step) -> Step:
    return Step(step.do, json.loads((service.folder / "noted").read_text()))


def test_if_the_agent_dies_before_the_release_nothing_was_started(service: Service) -> None:
    step = service.killed()
    assert starter(service, step, dies=True).wait(20) == -signal.SIGKILL
    step = noted(service, step)
    waiting = ProcessIdentity(**step.undo["started"])
    wait_until(lambda: not processes.session_lives(waiting), what="the end of what waited")
    assert (service.starts(), service.running()) == ([], [])
    assert undone(service.another_life(), step) == ""
    wait_until(service.starts, what="the start")
    assert service.starts() == [process.pid for process in service.running()]
    assert len(service.starts()) == 1


def test_if_the_agent_dies_after_the_release_it_is_not_started_twice(slow: Service) -> None:
    step = slow.killed(unless=LISTENING)
    agent = starter(slow, step, dies=False)
    try:
        wait_until(slow.starts, what="the start")
    finally:
        agent.kill()
        agent.wait(5)
    step = noted(slow, step)
    (started,) = slow.running()
    assert step.undo["started"] == msgspec.to_builtins(started)
    assert ":9092" not in slow.node.run("ss", "-Hltn")
    assert undone(slow.another_life(), step, lambda _: pytest.fail("started again")) == ""
    assert ":9092" in slow.node.run("ss", "-Hltn")
    assert slow.starts() == [started.pid]


def test_a_slow_service_is_waited_for(slow: Service) -> None:
    assert undone(slow.platform, slow.killed(unless=LISTENING)) == ""
    assert len(slow.running()) == len(slow.starts()) == 1


def test_what_never_comes_alive_is_loud_and_started_again_later(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.argv = (sys.executable, "-c", SERVICE.replace("600", "0"), str(service.folder), "0")
    service.platform = service.another_life()
    step = service.killed(unless=ProcessMatch(port=7), alive_ms=800)
    said = r"(?s)ran .*python.* 0, but the process that listens on TCP port 7 did not appear within 0.8 s"
    undos: list[Operation] = [step.undo]
    for _ in range(3):  # as the agent tries, at once
        with pytest.raises(CannotHealError, match=said):
            undone(service.platform, Step(step.do, undos[-1]), undos.append)
    assert len(service.starts()) == len(undos) - 1 == 1
    monkeypatch.setattr(restarts, "REST_S", 0)
    for starts in (2, 3):  # another life, and later in the same
        service.platform = service.another_life() if starts == 2 else service.platform
        with pytest.raises(CannotHealError, match=said):
            undone(service.platform, Step(step.do, undos[-1]), undos.append)
        assert len(service.starts()) == starts


def test_what_runs_and_is_not_what_is_waited_for_is_loud_and_not_started_again(service: Service) -> None:
    step = service.killed(unless=ProcessMatch(port=7), alive_ms=800)
    undos: list[Operation] = [step.undo]
    for platform in (service.platform, service.platform, service.another_life()):
        with pytest.raises(CannotHealError, match="did not appear"):
            undone(platform, Step(step.do, undos[-1]), undos.append)
    assert len(service.running()) == len(service.starts()) == 1


def test_what_goes_on_in_the_background_counts_as_started(service: Service) -> None:
    script = '"$@" >/dev/null 2>&1 </dev/null & exit 0'  # as kafka-server-start.sh -daemon
    service.argv = ("sh", "-c", script, "sh", *service.argv[:-1], "3")
    service.platform = service.another_life()
    step = service.killed(unless=LISTENING, alive_ms=1000)
    undos: list[Operation] = [step.undo]
    with pytest.raises(CannotHealError):
        undone(service.platform, step, undos.append)
    assert processes.thread_states(ProcessIdentity(**undos[-1]["started"])) == {}
    for platform in (service.platform, service.another_life()):
        with pytest.raises(CannotHealError):
            undone(platform, Step(step.do, undos[-1]), undos.append)
    assert len(service.running()) == len(service.starts()) == 1


def test_a_program_that_cannot_be_run_says_why(service: Service) -> None:
    program = service.folder / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    service.argv = (str(program),)
    service.platform = service.another_life()
    step = service.killed()
    program.chmod(0o755)
    with pytest.raises(
        CannotHealError, match=r"program: it cannot be run: /.*program: its interpreter .* does not exist"
    ):
        undone(service.platform, step)


@pytest.mark.parametrize("way", ["match", "pid_file", "port"])
def test_what_runs_already_is_not_started(service: Service, way: str) -> None:
    file = service.folder / "it.pid"
    matches = {
        "match": ProcessMatch(command="the-other-one"),
        "pid_file": ProcessMatch(pid_file=str(file)),
        "port": LISTENING,
    }
    step = service.killed(unless=matches[way])
    code = f"import socket; server = socket.create_server(('', 9092)); {SLEEP}"
    file.write_text(str(service.node.sleeper("the-other-one", code)))
    wait_until(lambda: ":9092" in service.node.run("ss", "-Hltn"), what="the listener")
    assert undone(service.platform, step) == f"already running: {matches[way].describe()}"
    assert service.starts() == []


def test_whether_it_runs_is_looked_at_directly_before_the_start(service: Service) -> None:
    step = service.killed()
    waiting: list[ProcessIdentity] = []

    def note(operation: Operation) -> None:
        waiting.append(ProcessIdentity(**operation["started"]))
        service.node.sleeper(str(service.folder))

    assert undone(service.platform, step, note).startswith("already running")
    wait_until(lambda: not processes.session_lives(waiting[0]), what="the end of what waited")
    assert service.starts() == []


def test_who_is_still_ending_does_not_run_already(service: Service) -> None:
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit())); {SLEEP}"
    pid = service.node.sleeper(str(service.folder), code)
    wait_until(lambda: processes.signal_mask(pid, "SigCgt") & (1 << signal.SIGTERM - 1), what="the handler")
    step = service.kill(Restart(command=service.argv), signal="SIGTERM")
    assert service.platform.disturbance(step) == ""
    assert undone(service.platform, step) == ""
    wait_until(service.starts, what="the start")
    assert [process.pid for process in service.running()] == service.starts()
    assert len(service.starts()) == 1


def test_who_does_not_end_by_itself_is_killed_before_the_start(service: Service) -> None:
    pid = service.node.sleeper(
        str(service.folder), f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    )
    wait_until(lambda: processes.signal_mask(pid, "SigIgn") & (1 << signal.SIGTERM - 1), what="the deafness")
    began, victim = time.monotonic(), known(pid)
    step = service.kill(Restart(command=service.argv), signal="SIGTERM", grace_ms=700)
    assert undone(service.another_life(), step) == ""
    assert 0.69 < time.monotonic() - began < 20
    assert processes.thread_states(victim) == {}
    wait_until(service.starts, what="the start")
    assert [process.pid for process in service.running()] == service.starts()


def test_in_a_node_of_the_same_name_nothing_is_started(service: Service) -> None:
    step = service.killed()
    subprocess.run(["ip", "netns", "del", service.node.name], check=True)
    assert undone(service.platform, step).startswith("gone: the node is another one")
    subprocess.run(["ip", "netns", "add", service.node.name], check=True)
    assert undone(service.platform, step).startswith("gone: the node is another one")
    assert service.starts() == []


def test_what_cannot_be_seen_is_not_started_beside_what_may_run(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = service.killed()

    def unseen(*_: object) -> processes.Found:
        raise UnseenError("no process can be started to look")

    with monkeypatch.context() as patch:
        patch.setattr(processes, "find", unseen)
        with pytest.raises(CannotHealError, match="no process can be started to look"):
            undone(service.platform, step)
    assert service.starts() == []
    assert undone(service.platform, step) == ""
    assert [process.pid for process in service.running()] == service.starts()


def test_what_was_in_a_container_is_not_started_outside_while_its_engine_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker, started = tmp_path / "docker", tmp_path / "started"
    docker.write_text("#!/bin/sh\necho Cannot connect to the Docker daemon. Is it running? >&2; exit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Namespace("/proc/self/ns/net") as namespace:
        command = Command("/usr/bin/touch", ("touch", str(started)), namespace.identity)
    undo = Start(boot_id=boot_id(), how=command, unless=ProcessMatch(command="nobody-is-called-so"), alive_ms=1_000)
    with pytest.raises(CannotHealError, match="Cannot connect to the Docker daemon"):
        undone(LinuxPlatform("container:broker", [command.argv]), step(Nothing(), undo))
    assert not started.exists()


def test_a_launcher_that_does_not_read_a_large_order_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starter_module, "PATIENCE_S", 0.5)
    launchers: list[subprocess.Popen[bytes]] = []

    def frozen(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        launchers.append(start())
        launchers[0].send_signal(signal.SIGSTOP)
        return launchers[0]

    def begin() -> None:
        large = starter_module.Origin(0, 0, (), "/", (f"LARGE={'x' * 400_000}",))
        command = starter_module.Command("/bin/true", ("true",), NamespaceIdentity("", "", ""), large)
        with pytest.raises(HostError, match=r"it did not read within 0\.5 s"), starter_module.waiting(command, frozen):
            pass

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(10)
    blocked = thread.is_alive()
    launchers[0].kill()
    thread.join(10)
    assert not blocked and launchers[0].poll() == -signal.SIGKILL


def test_a_process_whose_main_thread_has_ended_is_started_again_as_it_was(node: Node) -> None:
    pid = node.sleeper("the-one", LEADERLESS)
    wait_until(lambda: has_lost_its_main_thread(pid), what="the end of its main thread")
    found = starter_module.origin(known(pid))
    assert found is not None and any(entry.startswith("PATH=") for entry in found.environment)
