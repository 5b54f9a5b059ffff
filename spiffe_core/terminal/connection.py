"""A blocking gRPC channel to a daemon on this machine, and what goes wrong with it in words."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when grpc is imported: a CLI has one voice

import grpc

from spiffe_core.errors import Kind
from spiffe_core.runtime.unix_sockets import MAX_SOCKET_PATH_BYTES
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.printing import clean
from spiffe_core.wire.channels import channel_options
from spiffe_core.wire.status import from_rpc_error

_REFUSAL_ID = re.compile(r"\(([0-9a-f]{8})\)\Z")
CALL_SECONDS = 30.0
"""How long a command waits for one answer."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """How a daemon is called, how it is started, and which flag names its socket."""

    name: str
    start: str
    forbidden: str
    """What to do when it says PERMISSION_DENIED; `{id}` in it becomes the refusal's id, or the word ID without one."""
    flag: str = "--socket-path"
    usual: Path | None = None
    """Where one that runs for the whole machine has its socket."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What to do about a refusal in these very words."""


def check_socket(path: str, daemon: Daemon) -> None:
    """Connect once, so that a missing, foreign or dead socket is told apart before gRPC blurs the difference.

    Raises:
        Failure: with what is the matter and what to do.
    """
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise Failure(
            f"the socket path is {size} bytes long, and Unix allows {MAX_SOCKET_PATH_BYTES}: {path}",
            f"give a shorter one with {daemon.flag}",
        )
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise Failure(f"{path} is not a socket", f"give the {daemon.name}'s socket with {daemon.flag}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CALL_SECONDS)
            probe.connect(path)
    except OSError as error:
        raise _no_connection(path, error, daemon) from None


def _no_connection(path: str, error: OSError, daemon: Daemon) -> Failure:
    started = f"is the {daemon.name} running? start it with: {daemon.start}"
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        advice = f"{started} (or name its socket with {daemon.flag})"
        if daemon.usual is not None and str(daemon.usual) != path and _is_there(daemon.usual):
            advice = f"this machine's {daemon.name} has one at {daemon.usual}: name it with {daemon.flag}"
        return Failure(f"there is no socket at {path}", advice, final=False)
    if error.errno in {errno.EACCES, errno.EPERM}:
        closed = next((one for one in reversed(Path(path).parents) if not os.access(one, os.X_OK)), None)
        where = f": this user may not enter {closed}" if closed is not None else ""
        return Failure(
            f"permission denied for {path}{where}", f"run this as the user or group that the {daemon.name} belongs to"
        )
    if error.errno == errno.ECONNREFUSED:
        what = f"nobody answers at {path}: the socket is left over from a {daemon.name} that ended"
        return Failure(what, started, final=False)
    reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return Failure(f"cannot connect to {path}: {reason}", started)


def _is_there(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


@contextmanager
def connect(target: str, daemon: Daemon) -> Iterator[grpc.Channel]:
    """A channel to `target` (a socket path, or `ip:port`); a call that fails in the block raises Failure."""
    is_path = target.startswith("/")
    if is_path:
        check_socket(target, daemon)
    address = f"unix:{target}" if is_path else target
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise failure_of(error, daemon) from None


_ADVICE = {
    Kind.UNAVAILABLE: "try again in a moment; if it goes on, look at the {name}'s log",
    Kind.EXHAUSTED: "ask for less at once, or try again later",
    Kind.UNAUTHENTICATED: "the {name} could not tell who is calling; run this on the same machine as a living process",
    Kind.UNIMPLEMENTED: "this {name} does not offer it; check its version and configuration",
    Kind.INTERNAL: "the reference stands in the {name}'s log beside the cause",
}


def failure_of(error: grpc.RpcError, daemon: Daemon) -> Failure:
    """A failed call in words."""
    told = from_rpc_error(error)
    advice = daemon.advice.get(told.public) or _ADVICE.get(told.kind, "").format(name=daemon.name)
    if told.kind is Kind.FORBIDDEN:
        refusal = _REFUSAL_ID.search(told.public)
        advice = daemon.forbidden.format(id=refusal[1] if refusal else "ID")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(f"the {daemon.name} did not answer in time", advice)
    return Failure(clean(told.public), advice, final=told.kind is not Kind.UNAVAILABLE)
