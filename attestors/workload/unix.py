"""What the kernel knows of a process: user, groups, path and hash of its executable (spire_features section 18.1).

Selectors, all of type `unix`: `uid:<n>`, `user:<name>`, `gid:<n>`, `group:<name>` (effective ids),
`supplementary_gid:<n>`, `supplementary_group:<name>`, `path:<executable>`, `sha256:<hex>`.

How a process is read, and why it cannot be mistaken for another:

1. Its /proc directory is opened, then its pidfd is asked whether it still lives: from there on the directory belongs to
   the process that connected, whatever becomes of its number (S11).
2. Ids, path and image are read through that directory; after each read the pidfd is asked again (S12).
3. The effective user and group must still be those of the connection. A program that was left holding the socket while
   its parent ran a set-user-ID program would otherwise be given that program's user (S14).
4. The image is hashed by opening /proc/<pid>/exe, which is what runs, not what stands at its path now (S18); at the end
   path and image are compared again, so that no answer mixes two programs.

`attest_at_once` reads the same things in the same order, but touches nothing that could keep it waiting: no file, only
what the kernel remembers of the image (`attestors.file_status`), and names and hashes that are known from a reading
before. An image that another machine or a program of the user's answers for is never known that well.

What cannot be told is left out and said in the notes: a selector that is absent never matches more.
The path is the one the agent's /proc shows; for a process in another mount namespace that is a path of that namespace.
Ids that are not mapped into the agent's user namespace all appear as the kernel's overflow id, 65534. In an agent that
does not run in the initial user namespace that number says nothing, so it makes no selector (S16).
"""

from __future__ import annotations

import grp
import hashlib
import math
import os
import pwd
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from attestors.api import Findings, Subject
from attestors.file_status import FileIdentity, identity_of, is_local
from attestors.procfs import Credentials, ExecutableLink, ProcessDirectory, ProcFs
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.errors import InvalidSelector, Unauthenticated, Unavailable
from spiffe_core.selectors import Selector

DEFAULT_HASH_SIZE_LIMIT = 256 * 1024 * 1024
NAME_LIFETIME = 10.0
"""Seconds a user or group name is believed: look-ups may go over the network, renames are rare."""
SETTLED = 2.0
"""Seconds since a file's last change before its hash is kept: younger files may change again within one clock tick."""
MAX_KEPT = 1024
_CHUNK = 1024 * 1024
_NOTHING = Findings(frozenset())

K = TypeVar("K")
V = TypeVar("V")
_Identity = Callable[[Credentials, float], Findings | None]
_Image = Callable[[Subject, ProcessDirectory, float], Findings | None]


@dataclass(frozen=True, slots=True)
class UnixSettings:
    """What to read. `hash_size_limit` in bytes: 0 is no limit, a negative number never hashes (as SPIRE)."""

    discover_path: bool = True
    hash_size_limit: int = DEFAULT_HASH_SIZE_LIMIT


@dataclass(frozen=True, slots=True)
class UnixPorts:
    """Where processes, names and time come from."""

    proc: ProcFs = field(default_factory=ProcFs)
    user_name: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name
    group_name: Callable[[int], str] = lambda gid: grp.getgrgid(gid).gr_name
    clock: Clock = field(default_factory=SystemClock)


class UnixAttestor:
    """Reads one process through /proc. Safe to call from several threads."""

    name: ClassVar[str] = "unix"
    Settings = UnixSettings

    def __init__(self, settings: UnixSettings | None = None, ports: UnixPorts | None = None) -> None:
        self._settings = settings or UnixSettings()
        self._ports = ports or UnixPorts()
        uid, gid = self._ports.proc.overflow_ids()
        self._anybody = {"uid": uid, "gid": gid, "supplementary_gid": gid}
        self._identities: _Kept[Credentials, tuple[float, Findings]] = _Kept(MAX_KEPT)
        self._answers: _Kept[tuple[Credentials, ExecutableLink], tuple[Findings, Findings, Findings]] = _Kept(MAX_KEPT)
        self._hashes: _Kept[FileIdentity, _Hash] = _Kept(MAX_KEPT)

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """Read `subject` now.

        Raises:
            Unauthenticated: the process has ended, or is no longer the user it connected as.
            Unavailable: /proc cannot be read, the process changed its program meanwhile, or `deadline` passed.
        """
        found = self._attest(subject, deadline, self._identity, self._image)
        assert found is not None  # only what is known already can be missing
        return found

    def attest_at_once(self, subject: Subject) -> Findings | None:
        """The same, now and without waiting for anything; None if that cannot be done. Raises what `attest` raises."""
        return self._attest(subject, math.inf, self._known_identity, self._known_image)

    def _attest(self, subject: Subject, deadline: float, identity: _Identity, image: _Image) -> Findings | None:
        try:
            with self._ports.proc.process(subject.pid) as process:
                subject.require_alive()
                return self._read(subject, process, deadline, identity, image)
        except (OSError, ValueError) as error:
            subject.require_alive()
            raise Unavailable("the calling process cannot be read", pid=subject.pid, error=str(error)) from error

    def _read(
        self,
        subject: Subject,
        process: ProcessDirectory,
        deadline: float,
        identity_of_user: _Identity,
        image_of_process: _Image,
    ) -> Findings | None:
        link = self._link(process) if self._settings.discover_path else None
        subject.require_alive()
        credentials = process.credentials()
        subject.require_alive()
        if credentials.effective_uid != subject.uid or credentials.effective_gid != subject.gid:
            raise Unauthenticated(
                "the calling process has changed its user or group since it connected; connect again",
                pid=subject.pid,
                connected_as=(subject.uid, subject.gid),
                now=(credentials.effective_uid, credentials.effective_gid),
            )
        identity = identity_of_user(credentials, deadline)
        if link is None or identity is None:
            return identity
        if isinstance(link, Findings):
            return _together(identity, link)
        image = image_of_process(subject, process, deadline)
        if image is None:
            return None
        _same_program(process.executable_link() == link, subject)
        subject.require_alive()
        return self._answer(credentials, identity, link, image)

    def _answer(self, credentials: Credentials, identity: Findings, link: ExecutableLink, image: Findings) -> Findings:
        """The parts together; put together once for as long as they are the same."""
        known = self._answers.get((credentials, link))
        if known is not None and known[0] is identity and known[1] is image:
            return known[2]
        whole = _together(identity, _path(link), image)
        self._answers.put((credentials, link), (identity, image, whole))
        return whole

    def _link(self, process: ProcessDirectory) -> ExecutableLink | Findings:
        """Where the executable is, or a note why that cannot be told."""
        try:
            return process.executable_link()
        except PermissionError:
            return Findings(
                frozenset(),
                ("path and sha256 left out: the agent may not look at this process; give it root or CAP_SYS_PTRACE",),
            )
        except FileNotFoundError:
            return Findings(frozenset(), ("path and sha256 left out: the process has no executable",))

    def _identity(self, credentials: Credentials, deadline: float) -> Findings:
        known = self._known_identity(credentials, deadline)
        if known is not None:
            return known
        now = self._ports.clock.monotonic()
        found = self._look_up(credentials, deadline)
        self._identities.put(credentials, (now + NAME_LIFETIME, found))
        return found

    def _known_identity(self, credentials: Credentials, _deadline: float) -> Findings | None:
        kept = self._identities.get(credentials)
        return kept[1] if kept is not None and self._ports.clock.monotonic() < kept[0] else None

    def _look_up(self, credentials: Credentials, deadline: float) -> Findings:
        """Numbers and names. A name that cannot be found drops only itself."""
        wanted = [
            ("uid", "user", credentials.effective_uid, self._ports.user_name),
            ("gid", "group", credentials.effective_gid, self._ports.group_name),
        ]
        wanted += [
            ("supplementary_gid", "supplementary_group", gid, self._ports.group_name)
            for gid in credentials.supplementary_gids
        ]
        selectors: set[Selector] = set()
        notes: list[str] = []
        for number_kind, name_kind, number, look_up in wanted:
            self._in_time(deadline)
            if number == self._anybody[number_kind]:
                notes.append(
                    f"{number_kind} and {name_kind} left out: {number} is anybody who has no number in the agent's "
                    "user namespace; run the agent in the initial one"
                )
                continue
            selectors.add(Selector("unix", f"{number_kind}:{number}"))
            try:
                selectors.add(Selector("unix", f"{name_kind}:{look_up(number)}"))
            except (KeyError, OSError):
                notes.append(f"{name_kind} left out: nobody here is called {number_kind} {number}")
            except InvalidSelector as error:
                notes.append(f"{name_kind} of {number_kind} {number} left out: {error.public}")
        return Findings(frozenset(selectors), tuple(notes))

    def _image(self, subject: Subject, process: ProcessDirectory, deadline: float) -> Findings:
        """The hash of what runs, or a note why there is none."""
        limit = self._settings.hash_size_limit
        if limit < 0:
            return _NOTHING
        try:
            fd = process.open_executable()
        except OSError as error:
            subject.require_alive()
            return Findings(frozenset(), (f"sha256 left out: the executable cannot be opened ({error.strerror})",))
        try:
            before = os.fstat(fd)
            subject.require_alive()
            if not stat.S_ISREG(before.st_mode):
                return Findings(frozenset(), ("sha256 left out: the executable is not a regular file",))
            if 0 < limit < before.st_size:
                text = f"sha256 left out: the executable has {before.st_size} bytes, hash_size_limit is {limit}"
                return Findings(frozenset(), (text,))
            digest = self._digest(fd, before, deadline)
            _same_program(os.path.samestat(process.executable_file(), before), subject)
            subject.require_alive()
        finally:
            os.close(fd)
        if digest is None:
            return Findings(frozenset(), ("sha256 left out: the executable changed while it was read",))
        return digest

    def _known_image(self, subject: Subject, process: ProcessDirectory, _deadline: float) -> Findings | None:
        """The hash, if what runs is a file whose hash is known for certain."""
        if self._settings.hash_size_limit < 0:
            return _NOTHING
        identity = process.executable_remembered()
        kept = self._hashes.get(identity) if identity is not None else None
        if kept is None or not kept.local:
            return None
        subject.require_alive()
        return kept.findings

    def _digest(self, fd: int, before: os.stat_result, deadline: float) -> Findings | None:
        identity = identity_of(before)
        kept = self._hashes.get(identity)
        if kept is not None:
            return kept.findings
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK, before.st_size + 1)))
        total = 0
        while size := os.readv(fd, [buffer]):
            digest.update(buffer[:size])
            total += size
            if total > before.st_size:
                return None
            self._in_time(deadline)
        if identity_of(os.fstat(fd)) != identity or total != before.st_size:
            return None
        found = Findings(frozenset({Selector("unix", f"sha256:{digest.hexdigest()}")}))
        if self._ports.clock.now().timestamp() - max(before.st_ctime, before.st_mtime) > SETTLED:
            self._hashes.put(identity, _Hash(found, is_local(fd)))
        return found

    def _in_time(self, deadline: float) -> None:
        if self._ports.clock.monotonic() > deadline:
            raise Unavailable("workload attestation took too long; try again")


@dataclass(frozen=True, slots=True)
class _Hash:
    """The hash of a file; `local`: its identity changes when its content does, and the kernel knows at once."""

    findings: Findings
    local: bool


class _Kept(Generic[K, V]):
    """At most `limit` answers; the one not asked for the longest makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._limit:
                self._values.popitem(last=False)


def _same_program(same: bool, subject: Subject) -> None:
    if not same:
        raise Unavailable("the calling process changed its program while it was read; try again", pid=subject.pid)


def _path(link: ExecutableLink) -> Findings:
    """The path selector. A program that was removed or replaced on disk has no path any more, so it gets none."""
    if link.deleted:
        return Findings(
            frozenset(),
            ("path left out: the executable was removed or replaced since it started; restart the process",),
        )
    try:
        return Findings(frozenset({Selector("unix", f"path:{link.path.decode()}")}))
    except UnicodeDecodeError:
        return Findings(frozenset(), ("path left out: it is not UTF-8",))
    except InvalidSelector as error:
        return Findings(frozenset(), (f"path left out: {error.public}",))


def _together(*parts: Findings) -> Findings:
    return Findings(
        frozenset().union(*(part.selectors for part in parts)), tuple(note for part in parts for note in part.notes)
    )
