"""Which processes hold the other end of a Unix connection (architecture A5, A20; reliability cases S14, S15).

The kernel keeps no list of a socket's holders. So the far end is found by asking it for the peer of our end
(sock_diag(7), UNIX_DIAG_PEER), and then every process's open files are looked through for that socket. One pass over
/proc answers for any number of connections.

What this cannot see: a descriptor that is under way in another socket's queue (SCM_RIGHTS, not yet received), one
registered with io_uring only, processes outside the agent's PID namespace, and root's processes that are kept from the
agent by something stronger than its capabilities (another user namespace, a security module). Root could take any key
of the node without a socket; a process of anybody else that cannot be looked at ends the search with a refusal.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spiffe_core.errors import Unavailable

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_UDIAG_SHOW_PEER: Final = 4
_UNIX_DIAG_PEER: Final = 2
_ANY: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST: Final = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_MESSAGE_BYTES: Final = 16  # struct unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr
_ANSWER_BYTES: Final = 8192
_BETWEEN_LOOKS_AT_THE_CLOCK: Final = 1024
_CLONE_NEWNET: Final = 0x40000000
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_SYS_PTRACE = 1, 2, 19
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH})


@dataclass(frozen=True, slots=True)
class Held:
    """A connection: the inode of our end, and the process that connected."""

    inode: int
    pid: int


def holders(asked: Collection[Held], deadline: float) -> Mapping[Held, frozenset[int]]:
    """Who holds the far end of each connection now; nobody, where it is closed. Blocks: for a thread of its own.

    Raises:
        Unavailable: a process or the far end cannot be looked at, or `deadline` (time.monotonic) passed.
    """
    ends = {one: far_end(one.inode, one.pid) for one in asked}
    found: dict[str, set[int]] = {f"socket:[{inode}]": set() for inode in ends.values() if inode}
    if found:
        own = str(os.getpid())
        for name in os.listdir("/proc"):  # noqa: PTH208  # names only, many of them
            if name.isdecimal() and name != own:
                _look_through(name, found, deadline)
    return {one: frozenset(found[f"socket:[{inode}]"] if inode else ()) for one, inode in ends.items()}


def far_end(inode: int, pid: int) -> int:
    """The inode of the socket that is connected to ours; 0 if it is closed.

    A connection belongs to the network namespace of the process that made it, and is only found from there.

    Raises:
        Unavailable: the kernel does not say.
    """
    try:
        found = _peer_of(inode)
        if found is not None:
            return found
        with _network_of(pid):
            return _peer_of(inode) or 0
    except OSError as error:
        if error.errno in _GONE:
            return 0
        raise Unavailable(
            "the other end of the connection cannot be found", pid=pid, error=error.strerror or str(error)
        ) from error


def why_not() -> str:
    """Why this process cannot tell who holds its callers' connections; "" if it can."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    held = int(status.partition("\nCapEff:")[2].split()[0], 16)
    if not held >> _CAP_SYS_PTRACE & 1 or not (held >> _CAP_DAC_OVERRIDE | held >> _CAP_DAC_READ_SEARCH) & 1:
        return (
            "it may not look at the open files of other users' processes; "
            "run it as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        try:
            if _peer_of(_inode(ours)) == _inode(theirs):
                return ""
            reason = "it is not found"
        except OSError as error:
            reason = error.strerror or str(error)
    return f"this kernel does not name the peer of a Unix socket ({reason}); load its module unix_diag"


def _inode(end: socket.socket) -> int:
    return os.fstat(end.fileno()).st_ino


def _look_through(name: str, found: Mapping[str, set[int]], deadline: float) -> None:
    """Note process `name` with each of the sockets in `found` that it holds."""
    try:
        folder = os.open(f"/proc/{name}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        _unseen(name, error)
        return
    try:
        with os.scandir(folder) as descriptors:
            for number, descriptor in enumerate(descriptors):
                _note(name, folder, descriptor.name, found)
                if number % _BETWEEN_LOOKS_AT_THE_CLOCK == 0 and time.monotonic() > deadline:
                    raise Unavailable("looking for who holds the connection took too long; try again")
    except OSError as error:
        if error.errno not in _GONE:
            raise
    finally:
        os.close(folder)


def _note(name: str, folder: int, descriptor: str, found: Mapping[str, set[int]]) -> None:
    try:
        target = os.readlink(descriptor, dir_fd=folder)
    except OSError as error:
        _unseen(name, error)
        return
    if target in found:
        found[target].add(int(name))


def _unseen(name: str, error: OSError) -> None:
    """What to make of a process that does not show its files: nothing if it has ended or is root, else the end."""
    if error.errno in _GONE:
        return
    try:
        status = Path(f"/proc/{name}/status").read_text(encoding="ascii", errors="replace")
        uids = status.partition("\nUid:")[2].partition("\n")[0].split()
    except OSError as gone:
        if gone.errno in _GONE:
            return
        uids = []
    if set(uids) != {"0"}:
        raise Unavailable("the open files of a process cannot be looked at", pid=int(name)) from error


def _peer_of(inode: int) -> int | None:
    """The inode of the peer of the Unix socket `inode`, 0 if it has none; None if there is no such socket here."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_PEER, _ANY, _ANY)
    head = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(head + request)
        answer = kernel.recv(_ANSWER_BYTES)
    size, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number == errno.ENOENT:
            return None
        raise OSError(number, os.strerror(number))
    at = _HEADER.size + _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= size:
        length, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _UNIX_DIAG_PEER:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return 0


@contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """This thread, in the network namespace of `pid` until the block is left (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(libc, theirs)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            _enter(libc, own)
    finally:
        os.close(own)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
