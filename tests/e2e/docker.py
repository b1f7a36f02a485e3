"""A Docker of the tests' own: its files in one directory, its daemon in its own mount and network namespaces.

Nothing of the host's Docker, network or firewall is used or changed; no image is ever downloaded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path

import msgspec

from tests.support import require, wait_until
from trogdor_bus.lab.processes import TOKEN, end_all

IMAGE = "tb-busybox"
WORKER = "/bin/busybox sleep 734001"
SERVICE = "/bin/busybox nc -ll -p 9092 -e /bin/busybox cat"
START = f"echo $$ >/run/service.pid\n{WORKER} &\necho $! >/run/worker.pid\nexec {SERVICE}\n"
"""What a container runs: pid 1 echoes on TCP port 9092, and beside it a worker sleeps."""
CGROUPS = Path("/sys/fs/cgroup")
PACKAGE = "'^docker\\.io$'"  # Debian's, as a pattern that apt-get takes: its name is also that of an image registry
# The daemon's /run and /etc/docker are its own; the last program takes the place of all before it, under one pid.
LAUNCH = """
mount -t tmpfs tmpfs /run && mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker && exec "$@"
"""


class Seen(msgspec.Struct, frozen=True):
    """A process of a container as the host sees it: its pid and the letter of its state."""

    pid: int
    state: str


def require_docker() -> None:
    """Skip unless this machine can run a Docker daemon and has something to put into a container."""
    for tool, package in (
        ("dockerd", PACKAGE),
        ("docker", PACKAGE),
        ("busybox", "busybox-static"),
        ("setpriv", "util-linux"),
        ("ps", "procps"),
    ):
        require(shutil.which(tool) is not None, f"{tool} is not installed", f"apt-get install {package}")
    static = b"ld-linux" not in Path(shutil.which("busybox") or "").read_bytes()[:4096]
    require(static, "busybox is linked dynamically and does not run alone", "apt-get install busybox-static")


class Docker:
    """A daemon with one small image; as a context manager it is up inside, and gone after with all it made."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.directory = Path(tempfile.mkdtemp(prefix="tb-docker-"))
        self.host = f"unix://{self.directory}/docker.sock"
        self._cgroup = f"tb-docker-{os.getpid()}"
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment variables by which a client finds this daemon."""
        return {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.directory / "client")}

    def __enter__(self) -> Docker:
        try:
            self._start()
            self.run("import", "-c", 'CMD ["/bin/busybox", "sh", "/start"]', str(self._root()), IMAGE)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *argv: str) -> str:
        """Return what the client prints."""
        done = subprocess.run(
            ["docker", *argv], env=self._environment(), capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr}\n{self._log()}"
        return done.stdout.strip()

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
        for made in [CGROUPS / self._cgroup, *CGROUPS.glob(f"*/{self._cgroup}")]:
            for folder, _, _ in os.walk(made, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    Path(folder).rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        directory = self.directory
        (directory / "daemon.json").write_text("{}")
        daemon = [
            *("dockerd", "--host", self.host, "--config-file", f"{directory}/daemon.json"),
            *("--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec"),
            *("--pidfile", f"{directory}/pid", "--cgroup-parent", f"/{self._cgroup}"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "vfs", "--oom-score-adjust", "0"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
        ]
        # setpriv: should the tests be killed, the daemon ends as well, and its containers with it
        apart = ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--net", "--propagation", "private"]
        with self._log_path.open("ab") as log:
            self._daemon = subprocess.Popen(
                [*apart, "sh", "-c", LAUNCH, "sh", *daemon],
                env=self._environment() | {TOKEN: self.token},
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
        done = subprocess.run(version, env=self._environment(), capture_output=True, check=False, timeout=30)
        return done.returncode == 0

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

    def _environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return others | self.settings

    @property
    def _log_path(self) -> Path:
        return self.directory / "dockerd.log"

    def _log(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-8:])
