"""Files that hold secrets or state: old or new, never half, and private from their first byte.

A write goes to a fresh file with an unguessable name in the same directory, is synced, renamed over the old one, and
the directory is synced too, so that after a power cut the name points at one complete version. All steps work on a
descriptor of the directory, so that the directory cannot be exchanged between them. Links planted at a path are
refused and what they point at is left alone. The process's umask has no influence on the resulting modes.

Faults: a full or failing disk raises `Unavailable` and the old file stays; a path that can never work (missing or
read-only directory, no permission) raises `ConfigError`; something that is not our private file raises
`CorruptState`. All of them name the path. A missing file is Python's own `FileNotFoundError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from spiffe_core.errors import ConfigError, Conflict, CorruptState, IdentityError, Unavailable

_TRANSIENT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
_LOCK_NAME = "lock"
_MAX_PID_BYTES = 32


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file holding `data`, atomically and durably, with exactly `mode`."""
    path = Path(path)
    with _translated(path, "written"), _directory(path.parent) as folder:
        _refuse_foreign_writers(path.parent, folder)
        _refuse_unexpected_target(path, folder)
        temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            try:
                _write_all(file, data)
                os.fchmod(file, mode)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


def rename_durably(path: Path, target: Path) -> None:
    """Give `path` the name `target` in the same directory, in place of what had it.

    A link moves, what it names stays.
    """
    with _translated(path, "renamed"), _directory(path.parent) as folder:
        os.rename(path.name, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """The content of a file that is ours alone: a regular file, our uid, one name, no rights for group and others."""
    path = Path(path)
    with _translated(path, "read"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_ours(path, "it is a symbolic link") from None
            raise
        try:
            _require_private(path, os.fstat(file))
            data = _read_at_most(file, max_bytes + 1)
        finally:
            os.close(file)
    if len(data) > max_bytes:
        raise CorruptState(
            f"{path}: larger than {max_bytes} bytes, so it is not a file we wrote; restore it", path=str(path)
        )
    return data


def remove_leftovers(path: Path) -> int:
    """Delete the temporary files that a killed `write_durably(path, ...)` left behind; return their number.

    Only for the one process that writes `path` (see `lock_directory`), before it writes.
    """
    path = Path(path)
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.tmp")
    removed = 0
    with _translated(path, "cleaned up"), _directory(path.parent) as folder:
        for name in os.listdir(folder):  # noqa: PTH208  # pathlib cannot list a descriptor
            if pattern.fullmatch(name):
                os.unlink(name, dir_fd=folder)  # a planted link goes, what it points at stays
                removed += 1
    return removed


def private_directory(path: Path) -> Path:
    """Make sure that `path` is a directory of ours with mode 0700; make it (and missing parents, 0755) if absent."""
    path = Path(path)
    with _translated(path, "used as a private directory"):
        for parent in reversed(path.parents):
            if not parent.exists():
                with contextlib.suppress(FileExistsError):
                    parent.mkdir(0o755)
        try:
            path.mkdir(0o700)
        except FileExistsError:
            pass
        else:
            path.chmod(0o700)
        problem = _why_not_private(path, path.lstat())
    if problem:
        raise ConfigError(f"{path} {problem}", path=str(path))
    return path


def _why_not_private(path: Path, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link; name the real directory"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a directory; name another path"
    if found.st_uid != os.geteuid():
        return f"belongs to uid {found.st_uid}, not to uid {os.geteuid()}; run as its owner or chown it"
    if found.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}; others must not look inside: chmod 0700 {path}"
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        return "cannot be written to; make it writable for this process"
    return ""


class DirectoryLock:
    """Holds a directory for this process until `close()` or the process's end."""

    __slots__ = ("_file", "path")

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file: int | None = file

    def close(self) -> None:
        """Let the directory go. The lock file stays: removing it would let two processes each lock their own."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_directory(path: Path) -> DirectoryLock:
    """Hold `path` for this process alone; a second process is refused and told the first one's pid."""
    path = Path(path)
    name = path / _LOCK_NAME
    with _translated(name, "locked"):
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_ours(name, "it is a symbolic link") from None
            raise
        try:
            _require_private(name, os.fstat(file))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(file, _MAX_PID_BYTES, 0).decode("ascii", "replace").strip()
                who = f"process {holder}" if holder.isdigit() else "another process"
                raise Conflict(
                    f"{path} is in use by {who}; stop it, or name another data_dir", path=str(path)
                ) from None
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(file)
            raise
    return DirectoryLock(path, file)


@contextlib.contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    """Turn an OSError into our tree. FileNotFoundError of a read passes: absence is for the caller to judge."""
    try:
        yield
    except IdentityError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb == "read":
            raise
        reason = error.strerror or type(error).__name__
        if error.errno in _TRANSIENT:
            raise Unavailable(
                f"{path} could not be {verb}: {reason}; make room or repair the disk: what stands there is whole",
                path=str(path),
            ) from error
        raise ConfigError(
            f"{path} could not be {verb}: {reason}; check its path, owner and mode", path=str(path)
        ) from error


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _refuse_foreign_writers(path: Path, folder: int) -> None:
    mode = os.fstat(folder).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"{path} is writable by everyone, so anyone could exchange what is written there; chmod o-w {path}",
            path=str(path),
        )


def _refuse_unexpected_target(path: Path, folder: int) -> None:
    try:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise _not_ours(path, "it is a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise _not_ours(path, "it is not a regular file")
    if found.st_nlink > 1:
        raise _not_ours(path, "it has a second name (a hard link)")


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _not_ours(path, "it is not a regular file")
    if found.st_uid != os.geteuid():
        raise _not_ours(path, f"it belongs to uid {found.st_uid}, not to uid {os.geteuid()}")
    if found.st_mode & 0o077:
        raise _not_ours(
            path, f"its mode is {stat.S_IMODE(found.st_mode):04o} instead of 0600, so others may have read it"
        )
    if found.st_nlink != 1:
        raise _not_ours(path, "it has a second name (a hard link)")


def _not_ours(path: Path, why: str) -> CorruptState:
    return CorruptState(
        f"{path} is refused: {why}; find out who put it there, then remove or restore it", path=str(path)
    )


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _read_at_most(file: int, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := os.read(file, min(limit, 1 << 16))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
