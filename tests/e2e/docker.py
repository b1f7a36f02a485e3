"""Docker containers that hold busybox and no network, for agents that stand outside."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Self

import msgspec

from tests.docker import Daemon, require_daemon
from tests.support import require
from trogdor_bus.lab.processes import TOKEN

IMAGE = "tb-busybox"
WORKER = "/bin/busybox sleep 734001"
SERVICE = "/bin/busybox nc -ll -p 9092 -e /bin/busybox cat"
START = f"echo $$ >/run/service.pid\n{WORKER} &\necho $! >/run/worker.pid\nexec {SERVICE}\n"
"""What a container runs: pid 1 echoes on TCP port 9092, and beside it a worker sleeps."""


class Seen(msgspec.Struct, frozen=True):
    """A process of a container as the host sees it: its pid and the letter of its state."""

    pid: int
    state: str


def require_docker() -> None:
    """Skip unless this machine can run a Docker daemon and has something to put into a container."""
    require_daemon()
    for tool, package in (("busybox", "busybox-static"), ("ps", "procps")):
        require(shutil.which(tool) is not None, f"{tool} is not installed", f"apt-get install {package}")
    static = b"ld-linux" not in Path(shutil.which("busybox") or "").read_bytes()[:4096]
    require(static, "busybox is linked dynamically and does not run alone", "apt-get install busybox-static")


class Docker(Daemon):
    """A daemon with one small image."""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.run("import", "-c", 'CMD ["/bin/busybox", "sh", "/start"]', str(self._root()), IMAGE)
        except BaseException:
            self.close()
            raise
        return self

    def create(self, name: str) -> None:
        """Run a container without any network."""
        token = f"{TOKEN}={self.token}"
        self.run("run", "-d", "--name", name, "--network", "none", "--stop-signal", "KILL", "-e", token, IMAGE)

    def pid(self, name: str) -> int:
        """Return the pid of the container's pid 1 as the host knows it, 0 while it does not run."""
        return int(self.run("inspect", "--format", "{{.State.Pid}}", name))

    def processes(self, name: str) -> dict[str, Seen]:
        """Return the processes of a running container by command line."""
        rows = (line.split(None, 2) for line in self.run("top", name, "-eo", "pid,stat,args").splitlines()[1:])
        return {args: Seen(int(pid), state[0]) for pid, state, args in rows}

    def _root(self) -> Path:
        """Return the tar file of a root file system that holds busybox; /var/run is a link, as in Debian's images."""
        root = self.directory / "root"
        for folder in ("bin", "run", "var"):
            (root / folder).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
        (root / "start").write_text(START)
        (root / "var" / "run").symlink_to("/run")
        with tarfile.open(self.directory / "root.tar", "w") as tar:
            tar.add(root, arcname=".")
        return self.directory / "root.tar"
