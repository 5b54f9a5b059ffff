"""Listening sockets opened with care: no planted links, no stealing from a live process, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from spiffe_core.errors import ConfigError
from spiffe_core.runtime.unix_sockets import MAX_SOCKET_PATH_BYTES

BACKLOG = 4096
_PARENT_MODE = 0o755


@dataclass(slots=True)
class UnixListener:
    """A bound and listening Unix socket that knows which file is its own."""

    path: Path
    socket: socket.socket
    _inode: tuple[int, int]
    _lock: int

    def close(self) -> None:
        """Stop listening and remove the socket file, unless somebody else's stands there by now."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._inode:
                self.path.unlink()
        os.close(self._lock)


def listen_unix(path: Path, *, mode: int, dir_mode: int) -> UnixListener:
    """Bind `path` and listen.

    The directory is made if it is missing. A stale socket of ours is replaced; a live one, a link, or anything that is
    no socket is refused.

    Raises:
        ConfigError: names the path, the rule and what to do.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes, the kernel's limit; "
            "choose a shorter one",
            field="socket_path",
        )
    _directory(path.parent, dir_mode)
    lock = _lock(path)
    try:
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            # before anybody may connect: a socket that is there but refuses looks like a dead daemon
            listener.listen(BACKLOG)
            path.chmod(mode)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        os.close(lock)
        raise ConfigError(f"cannot listen on {path}: {error.strerror}", field="socket_path") from error
    except BaseException:
        os.close(lock)
        raise
    found = path.lstat()
    return UnixListener(path, listener, (found.st_dev, found.st_ino), lock)


def listen_tcp(host: str, port: int, *, table: str = "") -> socket.socket:
    """Bind a TCP address and listen.

    `table` is where the configuration has `address` and `port`, or a key "...addr" that holds both; "" for our own
    port.

    Raises:
        ConfigError: the address is in use or not ours, with what to do.
    """
    address_key, port_key = (f"{table}.address", f"{table}.port") if table else ("bind_address", "bind_port")
    if table.endswith("addr"):
        address_key = port_key = table
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{address_key} {host!r} is not an address: {error}", field=address_key) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = {
            errno.EADDRINUSE: f"; another process has it: stop that one or set {port_key}",
            errno.EADDRNOTAVAIL: f"; this machine has no such address: set {address_key}",
            errno.EACCES: f"; ports below 1024 are root's: set {port_key}, or give this process CAP_NET_BIND_SERVICE",
        }.get(error.errno or 0, "")
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}{hint}", field=port_key) from error
    return listener


@dataclass(slots=True)
class PrivateDirectory:
    """A 0700 directory for sockets that nobody else is to reach; removed on close.

    One left behind by a killed process is recognised by its free lock and removed by the next.
    """

    path: Path = field(default_factory=Path)
    _lock: int = -1

    @classmethod
    def make(cls) -> PrivateDirectory:
        """Make one under the temporary directory."""
        base = Path(tempfile.gettempdir())
        _sweep(base)
        new = Path(tempfile.mkdtemp(prefix="muniment-new-", dir=base))
        lock = os.open(new / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = base / new.name.replace("-new-", "-door-")  # it has its name only once it is locked: no sweep takes it
        new.rename(path)
        return cls(path, lock)

    def close(self) -> None:
        """Remove the directory and what is in it."""
        _empty(self.path)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(base: Path) -> None:
    for folder in base.glob("muniment-door-*"):
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # not ours, or its owner is just making or removing it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(folder)
        except OSError:
            continue  # its owner lives
        finally:
            os.close(lock)


def _empty(folder: Path) -> None:
    for path in (*folder.glob("*.sock"), folder / "lock"):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _directory(folder: Path, mode: int) -> None:
    """Make `folder` with `mode`, missing directories above it with 0755, and refuse one that others can replace."""
    try:
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        for part in reversed(missing):
            part.mkdir()
            part.chmod(mode if part == folder else _PARENT_MODE)
        found = [(part, part.stat()) for part in (folder, *folder.resolve().parents)]
    except OSError as error:
        raise ConfigError(
            f"cannot use {folder} for a socket: {error.strerror}; set socket_path to a place that this user may make",
            field="socket_path",
        ) from error
    if not stat.S_ISDIR(found[0][1].st_mode):
        raise ConfigError(f"{folder} is not a directory; choose another socket_path", field="socket_path")
    for part, facts in found:
        if facts.st_uid not in {0, os.geteuid()}:
            raise ConfigError(
                f"{part} belongs to uid {facts.st_uid}, who could replace the socket; use a directory of your own",
                field="socket_path",
            )
        others = 0o022 if part == folder else 0o002
        if facts.st_mode & others and not facts.st_mode & stat.S_ISVTX:
            raise ConfigError(
                f"{part} can be written by others, who could replace the socket; run: chmod go-w {part}",
                field="socket_path",
            )


def _lock(path: Path) -> int:
    beside = path.with_name(f".{path.name}.lock")
    try:
        lock = os.open(beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise ConfigError(f"cannot open the lock file {beside}: {reason}; remove it", field="socket_path") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"{path} is in use by another running process; stop that one or choose another socket_path",
            field="socket_path",
        ) from error
    return lock


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(
            f"{path} is a symbolic link; remove it: a socket is never put behind one", field="socket_path"
        )
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} exists and is not a socket; move it away", field="socket_path")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} is a socket of uid {found.st_uid}; remove it or choose another", field="socket_path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink()  # nobody listens: left behind by a killed process
            return
    raise ConfigError(
        f"{path} is in use by another running process; stop that one or choose another socket_path", field="socket_path"
    )
