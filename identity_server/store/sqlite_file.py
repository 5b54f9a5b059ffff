"""The SQLite file: private, ours, and used by one process at a time.

The lock is a `flock` on a side file (`<file>.lock`), which the kernel drops when the process dies. The database file
itself is never opened here while SQLite has it open: closing any descriptor of it would drop SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from pathlib import Path

from spiffe_core.errors import ConfigError, Conflict, CorruptState, Unavailable
from spiffe_core.runtime.durable import private_directory

_MAX_PID_BYTES = 32
_HEADER = b"SQLite format 3\x00"


class SqliteFile:
    """A checked and locked database file. `close()` lets it go."""

    __slots__ = ("_lock", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        private_directory(path.parent)
        self._lock: int | None = _lock(path)
        try:
            _create_or_check(path)
            for suffix in ("-wal", "-shm"):
                _check_if_there(path.with_name(path.name + suffix))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the file.

        The lock file stays: removing it would let two processes lock two files.
        """
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def copy_before_migration(source: Path, revision: str) -> Path:
    """Copy the database through SQLite's backup interface to a private file beside it; return where."""
    target = source.with_name(f"{source.name}.before-{revision}")
    try:
        target.unlink(missing_ok=True)
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
            old.backup(new)
        file = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(
            f"{target}: the database could not be copied before its migration ({error}); make room and start again",
            path=str(target),
        ) from error
    return target


def _lock(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    try:
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise _unusable(name, error) from error
    try:
        _check(name, os.fstat(file))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(file, _MAX_PID_BYTES, 0).decode("ascii", "replace").strip()
        os.close(file)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise Conflict(
            f"database {path} is in use by {who}; SQLite serves one server: "
            "stop that one, or configure PostgreSQL or MariaDB for several",
            path=str(path),
        ) from None
    except OSError as error:
        os.close(file)
        raise _unusable(name, error) from error
    except BaseException:
        os.close(file)
        raise
    return file


def _create_or_check(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _check_if_there(path)
        _check_header(path)
    except OSError as error:
        raise _unusable(path, error) from error
    else:
        os.close(file)


def _check_if_there(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from error
    _check(path, found)
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        raise ConfigError(f"{path} cannot be read and written by this process; correct its mode", path=str(path))


def _check_header(path: Path) -> None:
    """Refuse a file that is not a SQLite database; an empty one is a database without tables."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        start = os.read(file, len(_HEADER))
    finally:
        os.close(file)
    if start not in (b"", _HEADER):
        raise CorruptState(
            f"{path} is not a SQLite database: restore it from a backup, or name another file", path=str(path)
        )


def _check(path: Path, found: os.stat_result) -> None:
    why = ""
    if stat.S_ISLNK(found.st_mode):
        why = "it is a symbolic link"
    elif not stat.S_ISREG(found.st_mode):
        why = "it is not a regular file"
    elif found.st_uid != os.geteuid():
        why = f"it belongs to uid {found.st_uid}, not to uid {os.geteuid()}"
    elif found.st_mode & 0o077:
        why = f"its mode is {stat.S_IMODE(found.st_mode):04o}, so others may read or change it; chmod 0600 {path}"
    elif found.st_nlink != 1:
        why = "it has a second name (a hard link)"
    if why:
        raise CorruptState(
            f"{path} is refused: {why}; find out who put it there, then correct or restore it", path=str(path)
        )


def _unusable(path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or type(error).__name__
    return ConfigError(f"{path} cannot be used: {reason}; check its path, owner and mode", path=str(path))
