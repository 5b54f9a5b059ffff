"""Real container engines in mount, network and PID namespaces of their own, with images that are made on the spot.

An image is a handful of empty directories; a container sees this machine's programs through read-only mounts, so nothing is
pulled and nothing compiled. The container waits at a pipe in a directory it shares with the test, and each time it is asked
fetches its SVIDs with `node-agent api fetch`. Whoever kills process 1 of the namespaces ends the engine and all containers.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from deploy.demo.stack import BIN
from tests.interop.peers import ROOT, lacking, until

IMAGE = "localhost/muniment:1"
START_SECONDS = 30.0
_TOP = ("usr", "bin", "sbin", "lib", "lib64", "etc")
_LOOP = """
while :; do
  read -r n < {shared}/{name}.ask || continue
  {fetch} > {shared}/{name}.$n 2>&1; echo $? > {shared}/{name}.$n.part; mv {shared}/{name}.$n.part {shared}/{name}.$n.code
done
"""


class Engine:
    """One engine. `socket` is where its API is; `name` its command and its word in MUNIMENT_REQUIRE."""

    name = ""
    programs: tuple[str, ...] = ()

    def __init__(self, folder: Path, api_socket: Path) -> None:
        self.folder = folder
        self._api_socket = api_socket
        self.socket = folder / f"{self.name}.sock"
        self.log = folder / f"{self.name}.log"
        self._asked = 0
        self._containers: dict[str, str] = {}

    @classmethod
    def required(cls) -> None:
        """Skip, or fail where it is required, unless it can be started here."""
        for program in ("setpriv", "unshare", "nsenter", *cls.programs):
            if shutil.which(program) is None:
                lacking(cls.name, f"{program} is not installed")
        if os.geteuid() != 0:
            lacking(cls.name, "it takes root to start it")
        probe = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, timeout=20, check=False)
        if probe.returncode:
            lacking(cls.name, f"namespaces cannot be made here: {probe.stderr.strip()}")

    def __enter__(self) -> Self:
        # A shell that waits takes note of every orphan's end, which dockerd looks for after a restart.
        self._keeper = subprocess.Popen([*_NAMESPACES, "sh", "-c", "sleep infinity & wait"], stdin=subprocess.DEVNULL)
        try:
            self._first = str(until(self._child, pause=0.02))
            self.start()
            self.command("import", str(self._image()), IMAGE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._containers:
                if self._daemon.poll() is not None:
                    self.start()
                self._end(*self._containers.values())
        finally:
            self._keeper.kill()  # --kill-child: process 1 of the namespaces goes too, and with it all others
            self._keeper.wait()
            if hasattr(self, "_daemon"):
                self._daemon.wait()

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        with self.log.open("ab") as out:
            self._daemon = subprocess.Popen(
                self._inside(*self.daemon()), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment()
            )
        until(self._answers, START_SECONDS, 0.05)

    def kill(self) -> None:
        """End the engine in the middle of whatever it does; containers run on."""
        subprocess.run(self._inside("kill", "-9", self.process()), check=True, timeout=20)
        self._daemon.wait(20)

    def process(self) -> str:
        """The engine's process: the child of the `nsenter` that started it."""
        outer = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text().split()[0]
        status = Path(f"/proc/{outer}/status").read_text()
        return next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))

    def _answers(self) -> bool:
        """The engine's API answers."""
        assert self._daemon.poll() is None, self.log.read_text(errors="replace")[-3000:]
        words = ["curl", "--silent", "--fail", "--unix-socket", str(self.socket), "http://engine/version"]
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0

    def image_digest(self) -> str:
        """The digest of the image's configuration."""
        found = self.command("image", "inspect", "--format", "{{.Id}}", IMAGE).strip()
        return f"sha256:{found.removeprefix('sha256:')}"

    def run(self, name: str, *words: str) -> None:
        """Start a container that waits to be asked."""
        self._containers[name] = self.command("run", "--detach", *self.waiting(name, *words)).strip()

    def waiting(self, name: str, *words: str) -> list[str]:
        """The words that make a container which waits to be asked."""
        os.mkfifo(self.folder / f"{name}.ask")
        loop = _LOOP.format(shared=self.folder, name=name, fetch=self.fetching())
        mounts = _mounts(self.programs_at(), self.folder, self._api_socket.parent)
        return ["--network", "none", *mounts, *words, IMAGE, "/bin/sh", "-c", loop]

    def fetching(self) -> str:
        """The command by which a container fetches its SVIDs."""
        return f"{BIN}/node-agent api fetch x509 -socketPath {self._api_socket}"

    def programs_at(self) -> set[str]:
        """The directories of the programs that this takes, beside the system's own."""
        return {sys.prefix, sys.base_prefix, str(ROOT)}

    def remove(self, name: str) -> None:
        """End a container for good."""
        self._end(self._containers.pop(name))
        (self.folder / f"{name}.ask").unlink()

    def _end(self, *containers: str) -> None:
        self.command("kill", *containers)  # or Podman would wait for them
        self.command("rm", "--force", *containers)

    def ask(self, name: str) -> tuple[bool, str]:
        """Have the container fetch its SVIDs; whether it got any, and what was said."""
        self._asked += 1
        pipe = os.open(self.folder / f"{name}.ask", os.O_RDWR)  # does not block, whoever reads
        try:
            os.write(pipe, b"%d\n" % self._asked)
            code = self.folder / f"{name}.{self._asked}.code"
            until(code.exists, 30, 0.02)
        finally:
            os.close(pipe)
        return code.read_text().strip() == "0", (self.folder / f"{name}.{self._asked}").read_text()

    def command(self, *words: str) -> str:
        """The engine's own command; its output."""
        done = subprocess.run(
            self._inside(*self.client(), *words),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            env=self.environment(),
        )
        if done.returncode:
            pytest.fail(
                f"{self.name} {' '.join(words[:2])}: {done.stderr}{self.log.read_text(errors='replace')[-2000:]}"
            )
        return done.stdout

    def _image(self) -> Path:
        """Empty directories, and the links of this machine's root."""
        path = self.folder / "image.tar"
        with tarfile.open(path, "w") as tar:
            for name in _TOP:
                entry = tarfile.TarInfo(name)
                host = Path("/", name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                if host.is_symlink():
                    entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(host)
                tar.addfile(entry, io.BytesIO())
        return path

    def _child(self) -> int:
        """Process 1 of the namespaces."""
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _inside(self, *words: str) -> list[str]:
        return ["nsenter", "-t", self._first, "-m", "-p", "-n", *words]

    def daemon(self) -> Sequence[str]:
        """The command that runs the engine."""
        raise NotImplementedError

    def client(self) -> Sequence[str]:
        """The beginning of the engine's commands."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What its programs are started with."""
        return dict(os.environ)


class Docker(Engine):
    """dockerd, with its containerd."""

    name = "docker"
    programs = ("dockerd", "docker", "containerd", "runc", "curl")

    def daemon(self) -> Sequence[str]:
        return (
            "dockerd", "--data-root", f"{self.folder}/docker", "--exec-root", f"{self.folder}/x",
            "--pidfile", f"{self.folder}/docker.pid", "-H", f"unix://{self.socket}", "--bridge=none", "--iptables=false",
            "--ip6tables=false", "--exec-opt", "native.cgroupdriver=cgroupfs", "--live-restore",
        )  # fmt: skip

    def client(self) -> Sequence[str]:
        return ("docker", "-H", f"unix://{self.socket}")


class Podman(Engine):
    """Podman's API service; its containers do without it."""

    name = "podman"
    programs = ("podman", "runc", "conmon", "curl")

    def environment(self) -> dict[str, str]:
        path = self.folder / "containers.conf"
        path.write_text(
            '[containers]\ndefault_ulimits = []\npids_limit = 0\n[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\nlock_type = "file"\n'
        )
        return {**os.environ, "CONTAINERS_CONF": str(path)}

    def client(self) -> Sequence[str]:
        places = {"root": "p/root", "runroot": "p/run", "tmpdir": "p/tmp"}
        return (
            "podman",
            "--storage-driver=vfs",
            *(f"--{name}={self.folder}/{place}" for name, place in places.items()),
        )

    def daemon(self) -> Sequence[str]:
        return (*self.client(), "system", "service", "--time=0", f"unix://{self.socket}")


_NAMESPACES = (
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--pid",
    "--net",
    "--fork",
    "--kill-child",
    "--mount-proc",
)


def _mounts(programs: set[str], *shared: Path) -> list[str]:
    """This machine's programs, read-only, and the directories that are shared."""
    places = {f"/{name}" for name in _TOP if Path("/", name).is_dir() and not Path("/", name).is_symlink()} | programs
    places = {one for one in places if not any(one != other and one.startswith(f"{other}/") for other in places)}
    flags = [f"--volume={place}:{place}:ro" for place in sorted(places)]
    return [*flags, *(f"--volume={place}:{place}" for place in shared), f"--env=PATH={os.environ['PATH']}"]
