"""A user's own Podman on a real systemd: its user manager with the API socket, its session bus, its control groups.

The user is made up: the machine of `systemd_machine` has files of users of its own, with ids for the user's containers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

from tests.doubles.raw_call import RawCall
from tests.interop.engines import IMAGE, START_SECONDS, Engine
from tests.interop.peers import lacking, until
from tests.interop.systemd_machine import SystemdMachine, required_tools

USER = 23_456
NAME = "rootless"
SESSION_BUS = Path("/usr/lib/systemd/user/dbus.socket")
API = Path("/usr/lib/systemd/user/podman.socket")
_USERS = ("passwd", "group", "subuid", "subgid")
_CONTAINERS = """[containers]
default_ulimits = []
pids_limit = 0
[engine]
runtime = "runc"
cgroup_manager = "systemd"
events_logger = "file"
"""
_STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{home}/storage"\nrunroot = "{home}/run"\n'
_UNITS = {
    "users.service": "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
    "ExecStart=/bin/sh {folder}/users.sh\n",
    f"user-{USER}.slice": "[Unit]\nDefaultDependencies=no\n",
    f"user@{USER}.service": "[Unit]\nDefaultDependencies=no\nRequires=users.service\nAfter=users.service\n[Service]\n"
    f"User={USER}\nGroup={USER}\nType=notify\nExecStart=/lib/systemd/systemd --user\nSlice=user-{USER}.slice\n"
    "KillMode=mixed\nDelegate=yes\n{environment}",
}


_ASK = """use IO::Socket::UNIX;
my $agent = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "$!";
sysread(STDIN, my $request, 65536); syswrite($agent, $request);
my $frames = '';
while (sysread($agent, my $part, 65536)) {
  print unpack('H*', $part); $frames .= $part;
  while (length($frames) >= 9) {
    my $whole = 9 + unpack('N', "\\0" . substr($frames, 0, 3));
    last if length($frames) < $whole;
    my ($type, $flags) = unpack('CC', substr($frames, 3, 2));
    exit 0 if $type == 0 || ($type == 1 && $flags & 1);
    substr($frames, 0, $whole) = '';
  }
}
exit 1;
"""
"""Sends the bytes of a call and prints what comes back, until a message or the end of the call (RFC 9113, section 4.1)."""


class RootlessPodman(Engine):
    """Podman of one user, asked over the API by that user.

    The user need not be able to read this project: what runs in a container is Perl, which the system has.
    """

    name = "rootless"
    programs = ("podman", "runc", "conmon", "newuidmap", "newgidmap", "curl", "perl")

    def __init__(self, folder: Path, api_socket: Path) -> None:
        super().__init__(folder, api_socket)
        self._home = folder / "home"
        self._runtime = folder / "u" / str(USER)
        self.socket = self._runtime / "podman" / "podman.sock"

    @classmethod
    def required(cls) -> None:
        """Skip, or fail where it is required, unless it can be started here."""
        super().required()
        required_tools()
        missing = [
            str(path) for path in (SESSION_BUS, API, *(Path("/etc", name) for name in _USERS)) if not path.exists()
        ]
        if missing:
            lacking(cls.name, f"{' '.join(missing)} is missing")

    def __enter__(self) -> Self:
        self._prepare()
        words = {
            "XDG_RUNTIME_DIR": self._runtime,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self._runtime}/bus",
            "HOME": self._home,
            "USER": NAME,
            "TMPDIR": self._home,
            "CONTAINERS_CONF": self.folder / "containers.conf",
            "CONTAINERS_STORAGE_CONF": self.folder / "storage.conf",
        }
        environment = "".join(f"Environment={key}={value}\n" for key, value in words.items())
        units = {name: text.format(folder=self.folder, environment=environment) for name, text in _UNITS.items()}
        self._environment = {"PATH": os.environ["PATH"], **{key: str(value) for key, value in words.items()}}
        self._machine = SystemdMachine(self.folder, units)
        self._machine.__enter__()
        try:
            self._machine.systemctl("start", f"user@{USER}.service")
            self.start()
            self.command("import", str(self._image()), IMAGE)
        except BaseException:
            self._machine.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.close()

    def fetching(self) -> str:
        """A call by hand, the answer in hexadecimal digits."""
        return f"perl {self.folder}/ask.pl {self._api_socket} < {self.folder}/request"

    def programs_at(self) -> set[str]:
        """None but the system's own."""
        return set()

    def run_as_unit(self, name: str, *words: str) -> None:
        """Start a container that waits to be asked, with `podman run` as a unit of the user."""
        podman = str(shutil.which("podman"))
        done = self._as_user("systemd-run", "--user", "--quiet", podman, "run", *self.waiting(name, *words))
        assert done.returncode == 0, done.stderr

    def fetched(self, name: str) -> set[str]:
        """The paths of the identities that a container is given."""
        _, said = self.ask(name)
        call = RawCall.listening()
        call.feed(bytes.fromhex(said))
        return set((call.outcome or {}).get("ids", ()))

    def start(self) -> None:
        """The user's manager listens for Podman, and starts it when it is asked."""
        done = self._as_user("systemctl", "--user", "start", "dbus.socket", "podman.socket")
        assert done.returncode == 0, done.stderr
        until(self._answers, START_SECONDS, 0.05)

    def kill(self) -> None:
        """End the service and its socket; containers run on."""
        done = self._as_user("systemctl", "--user", "stop", "podman.socket")
        assert done.returncode == 0, done.stderr
        self._as_user("systemctl", "--user", "kill", "--signal=KILL", "podman.service")  # it may have gone, being idle
        until(lambda: not self._answers(), START_SECONDS, 0.05)

    def _answers(self) -> bool:
        words = ["curl", "--silent", "--fail", "--unix-socket", str(self.socket), "http://engine/version"]
        return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0

    def _prepare(self) -> None:
        """Files of users with one more, and directories that are that user's."""
        (self.folder / "containers.conf").write_text(_CONTAINERS)
        (self.folder / "storage.conf").write_text(_STORAGE.format(home=self._home))
        users = Path("/etc/passwd").read_text() + f"{NAME}:x:{USER}:{USER}::{self._home}:/bin/sh\n"
        (self.folder / "passwd").write_text(users)
        (self.folder / "group").write_text(Path("/etc/group").read_text() + f"{NAME}:x:{USER}:\n")
        for name in ("subuid", "subgid"):
            (self.folder / name).write_text(f"{NAME}:1000000:65536\n")
        binds = "".join(f"mount --bind {self.folder}/{name} /etc/{name}\n" for name in _USERS)
        (self.folder / "users.sh").write_text(f"set -e\n{binds}")
        (self.folder / "ask.pl").write_text(_ASK)
        call = RawCall()
        (self.folder / "request").write_bytes(call.hello() + call.request())
        for place in (self._home, self._runtime):
            place.mkdir(parents=True, mode=0o700)
            os.chown(place, USER, USER)
        os.chown(self.folder, USER, USER)  # containers leave their answers there

    def _as_user(self, *words: str) -> subprocess.CompletedProcess[str]:
        become = ("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "env", "-i")
        return self._machine.run(*become, *(f"{key}={value}" for key, value in self._environment.items()), *words)

    def command(self, *words: str) -> str:
        """Podman's own command by the user, which asks the API; its output."""
        done = self._as_user(str(shutil.which("podman")), "--remote", f"--url=unix://{self.socket}", *words)
        assert done.returncode == 0, (
            f"{words[:2]}: {done.stderr}{self._machine.log.read_text(errors='replace')[-2000:]}"
        )
        return done.stdout
