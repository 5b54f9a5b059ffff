"""The connection of a Unix peer: which socket it is, and which program its process ran when it was let in.

Credentials and pidfd name a *process*. A process can start another program (execve) and can share its socket with
others; whoever has to notice that compares with what is kept here.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

_MAX_STAT_BYTES: Final = 16 * 1024
_LAYOUT: Final = (23, 24, 25)  # startcode, endcode, startstack: fields 26 to 28 of proc_pid_stat(5), behind the name


@dataclass(frozen=True, slots=True)
class Image:
    """The program a process runs: where `exe` points, and where it lies in memory.

    Each execve(2) chooses new places for code and stack, so the same program started again is told from the one before.
    """

    link: str
    layout: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """`inode` names our end of the connection; `image` is what its process ran when it was accepted, None if hidden."""

    inode: int
    image: Image | None


def connection_of(accepted: socket.socket, pid: int) -> Connection:
    """What there is to know of a connection that was just accepted from the process `pid`."""
    return Connection(os.fstat(accepted.fileno()).st_ino, image_of(pid))


def link_of(pid: int) -> str | None:
    """Where the program of `pid` is, None if that cannot be seen. The kernel answers by itself; no file is touched."""
    try:
        return os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115  # on the way of each call: no Path objects
    except OSError:
        return None


def image_of(pid: int) -> Image | None:
    """The program that `pid` runs now, None if that cannot be seen. Touches no file but those of /proc."""
    link = link_of(pid)
    if link is None:
        return None
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.read(fd, _MAX_STAT_BYTES)
        finally:
            os.close(fd)
        fields = line.rpartition(b") ")[2].split()
        return Image(link, tuple(int(fields[number]) for number in _LAYOUT))
    except (OSError, ValueError, IndexError):
        return None
