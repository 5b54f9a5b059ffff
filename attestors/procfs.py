"""A read-only view of /proc, rooted at an injectable path.

A process is opened once, as a directory descriptor. The kernel ties that descriptor to the process and not to its
number: when the process ends, every later read through it fails (ESRCH), even if the number has been given to another.
So the reads of one `ProcessDirectory` all concern one process, and whoever checks the pidfd after opening it knows
which.

Every read is bounded. Nothing here decides; `OSError` is the answer to anything that cannot be read.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from attestors.file_status import FileIdentity, remembered

MAX_STATUS_BYTES = 64 * 1024
"""65,536 supplementary groups are allowed by Linux; a process with more than this holds is refused, not cut short."""
MAX_STAT_BYTES = 16 * 1024
MAX_CGROUP_BYTES = 64 * 1024
_DELETED = b" (deleted)"
_EVERY_ID = (0, 0, 2**32 - 1)
_USUAL_OVERFLOW_ID = 65534
_START_TIME = 19  # fields behind the ")" of comm; starttime is field 22 of proc_pid_stat(5)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and group ids of a process as proc_pid_status(5) shows them in the reader's user namespace."""

    real_uid: int
    effective_uid: int
    real_gid: int
    effective_gid: int
    supplementary_gids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExecutableLink:
    """Where /proc/<pid>/exe points. `deleted`: that file is no longer what runs, it was removed or replaced."""

    path: bytes
    deleted: bool


def parse_status(data: bytes) -> Credentials:
    """Read the ids out of /proc/<pid>/status.

    The kernel escapes newlines in the process name there, so a line that begins with `Uid:` is the kernel's own.

    Raises:
        ValueError: a line is missing or is not made of numbers.
    """
    uids, gids, groups = _field(data, b"\nUid:\t"), _field(data, b"\nGid:\t"), _field(data, b"\nGroups:\t")
    real_uid, effective_uid, _, _ = map(int, uids)
    real_gid, effective_gid, _, _ = map(int, gids)
    return Credentials(real_uid, effective_uid, real_gid, effective_gid, tuple(map(int, groups)))


def parse_start_time(data: bytes) -> int:
    """The start time in clock ticks since boot, out of /proc/<pid>/stat.

    The second field is the process name in parentheses, raw: it may hold spaces, newlines and parentheses of its own.
    No field behind it can, so the last `)` ends it.

    Raises:
        ValueError: it is not a stat line.
    """
    head, closed, tail = data.rpartition(b") ")
    fields = tail.split()
    if not closed or b" (" not in head or len(fields) <= _START_TIME:
        raise ValueError("not a stat line")
    return int(fields[_START_TIME])


def parse_pid_namespace_depth(data: bytes) -> int:
    """In how many PID namespaces the process has a number, counted from the reader's: 1 is the reader's own.

    Raises:
        ValueError: /proc/<pid>/status has no such line (Linux before 4.1).
    """
    return len(_field(data, b"\nNSpid:\t"))


class ProcessDirectory:
    """One process's directory under /proc, held open."""

    __slots__ = ("_fd",)

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, _DIRECTORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def credentials(self) -> Credentials:
        """User and group ids, now."""
        return parse_status(self._read("status", MAX_STATUS_BYTES, whole=True))

    def pid_namespace_depth(self) -> int:
        """How many PID namespaces below the reader's it is in, its own included: 1 is the reader's own."""
        return parse_pid_namespace_depth(self._read("status", MAX_STATUS_BYTES))

    def start_time(self) -> int:
        """Start time in clock ticks since boot: with the process number it names a process for good."""
        return parse_start_time(self._read("stat", MAX_STAT_BYTES))

    def cgroup(self) -> str:
        """The control groups it is in, as text (cgroups(7))."""
        return self._read("cgroup", MAX_CGROUP_BYTES).decode("utf-8", "replace")

    def executable_link(self) -> ExecutableLink:
        """Where `exe` points, as the kernel prints it for this reader."""
        target = os.readlink(b"exe", dir_fd=self._fd)
        if target.endswith(_DELETED):
            return ExecutableLink(target[: -len(_DELETED)], deleted=True)
        return ExecutableLink(target, deleted=False)

    def open_executable(self) -> int:
        """A descriptor of the running image itself, whatever stands at its path now. The caller closes it."""
        return os.open("exe", _READ | os.O_NOCTTY | os.O_NONBLOCK, dir_fd=self._fd)

    def executable_remembered(self) -> FileIdentity | None:
        """What the kernel remembers of the file that `exe` stands for, without asking anybody for it."""
        return remembered(self._fd, b"exe")

    def executable_file(self) -> os.stat_result:
        """The file that `exe` stands for now."""
        return os.stat("exe", dir_fd=self._fd)

    def _read(self, name: str, limit: int, *, whole: bool = False) -> bytes:
        """The file's content. `whole`: it is one record, which one read returns unless the buffer is too small."""
        fd = os.open(name, _READ, dir_fd=self._fd)
        try:
            data = os.read(fd, limit)
            if whole and len(data) < limit:
                return data
            while len(data) < limit:
                more = os.read(fd, limit - len(data))
                if not more:
                    return data
                data += more
        finally:
            os.close(fd)
        raise OSError(errno.EFBIG, f"more than {limit} bytes", name)


class ProcFs:
    """The process file system mounted at `root`."""

    __slots__ = ("_root",)

    def __init__(self, root: str | os.PathLike[str] = "/proc") -> None:
        self._root = os.fspath(root)

    def process(self, pid: int) -> ProcessDirectory:
        """Open the directory of `pid`. Check the process's pidfd afterwards: then the directory is that process's."""
        return ProcessDirectory(f"{self._root}/{pid}")

    def numbers(self) -> list[int]:
        """The numbers of all processes that can be seen, ascending."""
        return sorted(int(path.name) for path in Path(self._root).iterdir() if path.name.isdecimal())

    def overflow_ids(self) -> tuple[int | None, int | None]:
        """The user and the group number that stand for any without a number in this reader's user namespace.

        None where every id has a number of its own: in the initial user namespace (user_namespaces(7)).
        """
        return self._overflow_id("uid"), self._overflow_id("gid")

    def _overflow_id(self, kind: str) -> int | None:
        try:
            with open(f"{self._root}/self/{kind}_map", "rb") as file:  # noqa: PTH123  # beside the other reads
                ranges = [tuple(map(int, line.split())) for line in file]
        except FileNotFoundError:  # a kernel without user namespaces
            return None
        if ranges == [_EVERY_ID]:
            return None
        try:
            with open(f"{self._root}/sys/kernel/overflow{kind}", "rb") as file:  # noqa: PTH123  # the same
                return int(file.read())
        except OSError:
            return _USUAL_OVERFLOW_ID


def _field(data: bytes, label: bytes) -> list[bytes]:
    start = data.find(label)
    if start < 0:
        raise ValueError(f"no line {label.strip().decode()}")
    start += len(label)
    end = data.find(b"\n", start)
    if end < 0:
        raise ValueError(f"line {label.strip().decode()} is cut short")
    return data[start:end].split()
