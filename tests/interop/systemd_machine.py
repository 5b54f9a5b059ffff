"""A real systemd as process 1 of PID and control group namespaces of its own, with a real system bus, from this machine's files.

It sees this machine's file systems read-only, but for `folder`, and has a /run of its own with the units of the test and no
others. The network is this machine's. Whoever kills its process 1 ends all of it; nothing is left but a control group,
which `close` removes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.interop.peers import lacking, until

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("setpriv", "unshare", "nsenter", "mount", "systemctl", "dbus-daemon")
UNITS = Path("/run/systemd/system")
BOOT_SECONDS = 30.0
_BOOT = """set -e
mount --make-rprivate /
mount --bind {folder} {folder}
mount -t proc proc /proc
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs /run
mount -o remount,bind,ro /
mkdir -p {units} /run/tmp
cp {folder}/units/* {units}
exec env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH={units} {systemd} --unit=boot.target --log-target=console
"""
_BUS = {
    "boot.target": "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart={bus} --system "
    "--address=systemd: --nofork --nopidfile --systemd-activation\n",
}


def required_tools() -> None:
    """Skip, or fail where it is required, unless a systemd can be started here."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not SYSTEMD.exists() or missing:
        lacking("systemd", f"{' '.join(missing) or SYSTEMD} is not installed")
    if os.geteuid() != 0:
        lacking("systemd", "it takes root to start one")
    probe = [*_namespaces(), "mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        lacking("systemd", f"namespaces cannot be made here: {done.stderr.strip()}")


def simple(command: str, log: Path) -> str:
    """A service that runs on, and what it says goes to a file."""
    return (
        f"[Unit]\nDefaultDependencies=no\n[Service]\n{_ENVIRONMENT}"
        f"StandardOutput=append:{log}\nStandardError=append:{log}\nExecStart={command}\n"
    )


def oneshot(command: str, output: Path) -> str:
    """A service that runs once, whose output is left in a file."""
    return (
        f"[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\n{_ENVIRONMENT}"
        f"StandardOutput=truncate:{output}\nStandardError=truncate:{output}.err\nExecStart={command}\n"
    )


class SystemdMachine:
    """Boots with the units it is given, by file name."""

    def __init__(self, folder: Path, units: Mapping[str, str]) -> None:
        self.folder = folder
        self.log = folder / "systemd.log"
        (folder / "units").mkdir()
        bus = {name: text.format(bus=shutil.which("dbus-daemon")) for name, text in _BUS.items()}
        for name, text in {**bus, **units}.items():
            (folder / "units" / name).write_text(text)
        self._cgroup = _own_cgroup() / f"muniment-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        boot = _BOOT.format(folder=shlex.quote(str(self.folder)), units=UNITS, systemd=SYSTEMD)
        enter = f"echo $$ > {shlex.quote(str(self._cgroup / 'cgroup.procs'))} && exec "
        try:
            with self.log.open("wb") as out:
                self._process = subprocess.Popen(
                    ["sh", "-c", enter + shlex.join([*_namespaces(), "sh", "-c", boot])],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            until(self._booted, BOOT_SECONDS, 0.05)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _booted(self) -> bool:
        """The units of boot.target run, the bus among them."""
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        return self._first() > 0 and self.run("systemctl", "is-active", "boot.target").returncode == 0

    def _first(self) -> int:
        """Its process 1, as a number of this machine; 0 as long as there is none."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    @property
    def root(self) -> Path:
        """Its file systems, as seen from here."""
        return Path(f"/proc/{self._first()}/root")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program among its processes, in none of its units."""
        argv = ["nsenter", "-t", str(self._first()), "-m", "-p", "-u", "-i", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)

    def systemctl(self, *words: str) -> None:
        """A command that has to succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"{words}: {done.stderr}{self.log.read_text(errors='replace')[-2000:]}"

    def close(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()  # --kill-child: its process 1 goes too, and with it all others
            process.wait()
        folders = [self._cgroup, *(path for path in self._cgroup.rglob("*") if path.is_dir())]
        for folder in sorted(folders, key=lambda path: -len(path.parts)):
            _remove(folder)


def _remove(cgroup: Path) -> None:
    """A control group can be removed when its last process is gone."""
    deadline = time.monotonic() + 10
    while True:
        try:
            cgroup.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _namespaces() -> Sequence[str]:
    return (
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--cgroup",
        "--uts",
        "--ipc",
    )


def _own_cgroup() -> Path:
    """Where this process stands in the cgroup v2 hierarchy."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split(" ")[4] for line in lines if " - cgroup2 " in line]
    if not mounts:
        lacking("systemd", "there is no cgroup v2 here")
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    place = Path(mounts[0] + own)
    return place if place.is_dir() else Path(mounts[0])


_ENVIRONMENT = "Environment=TMPDIR=/run/tmp\n" + "".join(
    f"Environment={shlex.quote(f'{name}={os.environ[name]}')}\n"
    for name in ("LD_LIBRARY_PATH", "PYTHONHOME")
    if name in os.environ
)
