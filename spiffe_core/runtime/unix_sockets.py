"""What the kernel lays down for Unix sockets (unix(7)): how long a path may be, and who is at the other end."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

MAX_SOCKET_PATH_BYTES: Final = 107
"""`sockaddr_un.sun_path` holds 108 bytes, the last one zero."""
_UCRED: Final = struct.Struct("=iII")
"""`struct ucred`: pid_t has a sign, uid_t and gid_t have none: 4294967294 is a user, and -2 is not."""
CREDENTIALS_BYTES: Final = _UCRED.size


class Credentials(NamedTuple):
    """A process and the effective user and group it connected, listened or wrote as.

    `pid` is 0 for a process of a PID namespace that this one cannot see.
    """

    pid: int
    uid: int
    gid: int


def read_credentials(raw: bytes) -> Credentials:
    """A `struct ucred`, from SO_PEERCRED or from a message's SCM_CREDENTIALS."""
    return Credentials._make(_UCRED.unpack(raw))


def peer_credentials(connection: socket.socket) -> Credentials:
    """The peer of a Unix connection (SO_PEERCRED): who connected, or to the one who connected, who began to listen."""
    return read_credentials(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS_BYTES))
