"""Who is on the other end of a connection, as the kernel or the TLS handshake says.

A Unix peer is held by a pidfd taken at connect time (SO_PEERPIDFD, Linux 6.5), so its process number can never come
to mean somebody else unnoticed. On older kernels the pidfd is opened right after accept, and the start time and uid
read before and after must agree (architecture A5).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from spiffe_core.errors import InvalidRequest, NotFound, Unauthenticated
from spiffe_core.runtime.unix_sockets import peer_credentials
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire.connection import Connection, connection_of

_SO_PEERPIDFD = 77
_PROC = Path("/proc")
_MOST_PID = 2**22
"""PID_MAX_LIMIT of Linux on 64 bits."""


class ProcessHandle:
    """A process held by its pidfd. Closing the handle lets go of the descriptor, not of the process."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd

    def alive(self) -> bool:
        """Whether the very process that connected still runs. A pidfd becomes readable when its process ends.

        The loop and attestors' threads may ask at the same time, so nothing is shared between two calls.
        """
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Release the descriptor; the handle counts as dead from here on."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """The process that connected to a Unix socket, as it was when it connected (SO_PEERCRED).

    `connection` is None for a process that somebody else names by its number.
    """

    pid: int
    uid: int
    gid: int
    process: ProcessHandle
    connection: Connection | None = None

    def require_alive(self) -> None:
        """Raise Unauthenticated if the process that connected has ended."""
        if not self.process.alive():
            raise Unauthenticated("the calling process has ended", pid=self.pid)

    @property
    def program(self) -> str:
        """The path of the program the process runs now; "" if the kernel does not tell us or it has ended."""
        try:
            path = str((_PROC / str(self.pid) / "exe").readlink())
        except OSError:
            return ""
        return path if self.process.alive() else ""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TlsPeer:
    """The client of a TLS connection. `spiffe_id` is None for a client that presented no certificate.

    There is one object for each connection, and it lives as long.

    `serial` is the leaf's serial number in decimal, `not_after` its expiry,
    `anchor` the DER of the authority the verified chain ends in. `local`: it came over a Unix socket of this machine.
    """

    address: str
    spiffe_id: SpiffeId | None = None
    leaf: bytes | None = None
    serial: str = ""
    not_after: datetime | None = None
    anchor: bytes | None = None
    local: bool = False


Peer = UnixPeer | TlsPeer


def peer_pidfd_supported() -> bool:
    """Whether this kernel hands out a pidfd for the process that connected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        try:
            fd = ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            return False
        os.close(fd)
        return True


def unix_peer(connection: socket.socket) -> UnixPeer:
    """Name the process that connected, and note what it runs now.

    Raises:
        Unauthenticated: it ended before it could be held, or lives in a PID namespace this one cannot see.
    """
    peer = _named_by_kernel(connection)
    return replace(peer, connection=connection_of(connection, peer.pid))


def _named_by_kernel(connection: socket.socket) -> UnixPeer:
    pid, uid, gid = peer_credentials(connection)
    if pid <= 0:
        raise Unauthenticated("the caller's process cannot be seen from the agent's PID namespace", uid=uid)
    try:
        fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return _held_after_accept(connection, pid, uid, gid)
        raise Unauthenticated("the calling process has ended", pid=pid) from error
    peer = UnixPeer(pid, uid, gid, ProcessHandle(pid, fd))
    if _pid_of(fd) != pid or not peer.process.alive():
        peer.process.close()
        raise Unauthenticated("the calling process has ended", pid=pid)
    return peer


def named_process(pid: int) -> UnixPeer:
    """Hold the process that somebody else names by its number, as seen from the agent's PID namespace.

    Whoever calls this closes it: `peer.process.close()`.

    Raises:
        NotFound: there is no such process.
        InvalidRequest: the number is not one.
    """
    if not 0 < pid <= _MOST_PID:
        raise InvalidRequest("pid: must be the number of a process", field="pid")
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        raise NotFound("there is no such process", field="pid") from None
    handle = ProcessHandle(pid, fd)
    try:
        status = (_PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace")
        uid, gid = (int(_line(status, name).split()[1]) for name in ("Uid", "Gid"))  # effective
    except (OSError, ValueError, IndexError):
        handle.close()
        raise NotFound("there is no such process", field="pid") from None
    if not handle.alive():
        handle.close()
        raise NotFound("there is no such process", field="pid")
    return UnixPeer(pid, uid, gid, handle)


def _line(status: str, name: str) -> str:
    """Behind the name on its line.

    A newline ends a line and nothing else that Python takes for an end: it may be in a name.
    """
    return next((line.partition(":")[2] for line in status.split("\n") if line.startswith(f"{name}:")), "")


def _held_after_accept(connection: socket.socket, pid: int, uid: int, gid: int) -> UnixPeer:
    """For kernels before 6.5. A process that ended in the meantime has closed its end, unless it shared it."""
    try:
        before = _start_and_uid(pid)
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise Unauthenticated("the calling process has ended", pid=pid) from error
    peer = UnixPeer(pid, uid, gid, ProcessHandle(pid, fd))
    try:
        same = _start_and_uid(pid) == before and before[1] == uid and peer.process.alive()
        unchanged = same and not _hung_up(connection)
    except OSError:
        unchanged = False
    if not unchanged:
        peer.process.close()
        raise Unauthenticated("the calling process has ended", pid=pid)
    return peer


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _pid_of(fd: int) -> int:
    """The process a pidfd holds; -1 once it is gone (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:  # noqa: PTH123  # 22 µs path: no Path objects
        for line in info:
            if line.startswith("Pid:"):
                return int(line[4:])
    return -1


def _start_and_uid(pid: int) -> tuple[str, int]:
    folder = _PROC / str(pid)
    stat = (folder / "stat").read_text("utf-8", "surrogateescape")
    return stat.rpartition(")")[2].split()[19], folder.stat().st_uid
