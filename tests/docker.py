"""A Docker of the tests' own: its files in one directory, its daemon in namespaces of its own.

Nothing of the host's Docker, network or firewall is used or changed; no image is ever downloaded.

As a program it runs a command beside such a daemon: `python -m tests.docker COMMAND [ARG]...`, see `main`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.support import require, wait_until
from trogdor_bus.lab.interrupts import Interrupted, Interrupts
from trogdor_bus.lab.processes import TOKEN, end_all

CGROUPS = Path("/sys/fs/cgroup")
PACKAGE = "'^docker\\.io$'"  # Debian's, as a pattern that apt-get takes: its name is also that of an image registry
TOOLS = (("dockerd", PACKAGE), ("docker", PACKAGE), ("setpriv", "util-linux"), ("iptables", "iptables"))
# The daemon's /run and /etc/docker are its own; the last program takes the place of all before it, under one pid.
LAUNCH = """
mount -t tmpfs tmpfs /run && mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker && exec "$@"
"""
APART = ("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", LAUNCH, "sh")
WITHOUT_NETWORK = (
    *("--storage-driver", "vfs"),
    *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
)


def require_daemon() -> None:
    """Skip unless this machine can run a Docker daemon."""
    for tool, package in TOOLS:
        require(shutil.which(tool) is not None, f"{tool} is not installed", f"apt-get install {package}")


class Daemon:
    """A Docker daemon; as a context manager it is up inside, and gone after with all its containers.

    Without `network` it lives in a network namespace of its own, and its containers get none; with it, it makes
    bridges and rules where the caller lives, who has seen to it that this is nobody else's.
    """

    def __init__(self, *, network: bool = False, owner: int = 0) -> None:
        """Choose; `owner` is the pid that the control groups are named after, ours if 0."""
        self.token = secrets.token_hex(16)
        self.directory = Path(tempfile.mkdtemp(prefix="tb-docker-"))
        self.host = f"unix://{self.directory}/docker.sock"
        self._network = network
        self._cgroup = f"tb-docker-{owner or os.getpid()}-{self.token[:8]}"
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment variables by which a client finds this daemon."""
        return {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.directory / "client")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *argv: str) -> str:
        """Return what the client prints."""
        done = subprocess.run(
            ["docker", *argv], env=self.environment(), capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr}\n{self._log()}"
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """Return our environment, in which clients find this daemon and no other."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return others | self.settings

    def close(self) -> None:
        """End the daemon and every container, and remove their files and control groups; harmless if done before."""
        daemon = self._daemon
        if daemon is not None and daemon.poll() is None:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                if containers := self.run("ps", "-aq").split():
                    self.run("rm", "-f", *containers)
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        end_all(self.token)
        if daemon is not None:
            daemon.wait(10)
        remove_groups(lambda name: name == self._cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        directory = self.directory
        (directory / "daemon.json").write_text("{}")
        daemon = [
            *("dockerd", "--host", self.host, "--config-file", f"{directory}/daemon.json"),
            *("--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec"),
            *("--pidfile", f"{directory}/pid", "--cgroup-parent", f"/{self._cgroup}"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--oom-score-adjust", "0"),
        ]
        room: tuple[str, ...] = ()
        if not self._network:
            room, daemon = APART, [*daemon, *WITHOUT_NETWORK]
        # setpriv: should we be killed, the daemon ends as well, and its containers with it
        with self._log_path.open("ab") as log:
            self._daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *room, *daemon],
                env=self.environment() | {TOKEN: self.token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, 20, "the Docker daemon to answer")

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            require(False, f"dockerd does not run here: {self._log()}", "allow mounts and control groups, as root")
        version = ["docker", "version", "--format", "{{.Server.Version}}"]
        done = subprocess.run(version, env=self.environment(), capture_output=True, check=False, timeout=30)
        return done.returncode == 0

    @property
    def _log_path(self) -> Path:
        return self.directory / "dockerd.log"

    def _log(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-8:])


def remove_groups(which: Callable[[str], bool]) -> None:
    """Remove the control groups of daemons by name; those that somebody is in stay."""
    for made in [*CGROUPS.glob("tb-docker-*"), *CGROUPS.glob("*/tb-docker-*")]:
        if which(made.name):
            for folder, _, _ in os.walk(made, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def sweep_groups() -> None:
    """Remove the control groups of those who were killed."""
    remove_groups(lambda name: (pid := name.split("-")[2]).isdecimal() and not Path("/proc", pid).exists())


# --- a command beside a daemon ----------------------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x00020000, 0x40000000, 0x20000000
# What the first process of the new pid namespace does before it becomes this program again.
ROOM = """
mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs tmpfs /run &&
mkdir -p /etc/docker /run/tmp && mount -t tmpfs tmpfs /etc/docker && ip link set lo up && TMPDIR=/run/tmp exec "$@"
"""


def main(argv: list[str]) -> int:
    """Run a command beside a Docker daemon, in network, mount and pid namespaces of their own; return its exit code.

    There are a loopback address and what Docker makes, and no way out. All files of the daemon are in memory. Whoever
    of us dies, by whatever signal: the namespaces end with their first process, and all that was in them is gone.
    """
    if argv[:1] == ["--inside"]:
        return _beside(int(argv[1]), argv[2:])
    if os.geteuid() != 0:
        sys.exit("with-docker: needs root; run it with sudo")
    for tool, package in TOOLS:
        if shutil.which(tool) is None:
            sys.exit(f"with-docker: {tool} is not installed; apt-get install {package}")
    sweep_groups()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID) != 0:
        sys.exit(f"with-docker: no namespaces here: {os.strerror(ctypes.get_errno())}")
    again = [sys.executable, "-m", "tests.docker", "--inside", str(os.getpid()), *argv]
    with Interrupts():
        child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "sh", "-c", ROOM, "sh", *again])
        try:
            code = child.wait()
        except Interrupted as told:
            if told.number != signal.SIGINT or not sys.stdin.isatty():  # a terminal told the child, too
                child.send_signal(told.number)
            code = child.wait()
    remove_groups(lambda name: name.startswith(f"tb-docker-{os.getpid()}-"))
    return code if code >= 0 else 128 - code


def _beside(owner: int, argv: list[str]) -> int:
    """Do the work of `main` as the first process of the namespaces; `owner` is its pid outside."""
    with Daemon(network=True, owner=owner) as daemon, Interrupts():
        child = subprocess.Popen(argv, env=daemon.environment())
        try:
            code = _reap_until(child.pid)
        except Interrupted as told:
            if told.number != signal.SIGINT or not sys.stdin.isatty():
                child.send_signal(told.number)
            code = _reap_until(child.pid)
        child.returncode = code
    return code if code >= 0 else 128 - code


def _reap_until(wanted: int) -> int:
    """Return how that child ended; meanwhile bury the orphans, as the first process of a pid namespace has to."""
    while True:
        pid, status = os.wait()
        if pid == wanted:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
