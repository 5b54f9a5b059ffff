"""How the commands reach the running server: over its admin socket."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from spiffe_core.runtime.places import server_socket
from spiffe_core.terminal.connection import CALL_SECONDS, Daemon, connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, flag
from spiffe_core.wire.services import Stub

SERVER: Final = Daemon(
    name="server",
    start="identity-server run --config FILE",
    forbidden="use the admin socket of the server itself, which --socket-path names",
    usual=server_socket(uid=0),
    advice={
        "agent not found": "`identity-server agent list` prints the SPIFFE IDs of those there are",
        "upstream authority is not configured": "`identity-server localauthority x509 taint` and `revoke` are for this "
        "server's own authorities",
    },
)
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def server_flags(function: F) -> F:
    """The flags of every command that talks to the server."""
    named = flag(
        "--instance",
        help="Which of several servers on this machine: fills %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE.",
    )(function)
    return flag(
        "--socket-path",
        "socketPath",
        help="The server's admin socket.  [env: SPIRE_SERVER_PRIVATE_SOCKET; default: where `run` puts it]",
    )(named)


def admin_socket(socket_path: str | None, instance: str | None, environ: Mapping[str, str]) -> str:
    """The path of the admin socket: the flag, SPIRE's environment variables, or the default place."""
    if socket_path:
        return os.path.abspath(socket_path.removeprefix("unix://"))  # noqa: PTH100  # links in it are left alone
    if instance:
        template = environ.get("SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE", "")
        if not _INSTANCE.fullmatch(instance) or "%i" not in template:
            raise Failure(
                "--instance needs a plain name, and SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE with %i in it",
                "set the variable, or name the socket with --socket-path",
            )
        return template.replace("%i", instance)
    return environ.get("SPIRE_SERVER_PRIVATE_SOCKET") or str(server_socket())


@contextmanager
def server_channel(socket_path: str | None, instance: str | None) -> Iterator[grpc.Channel]:
    """A channel to the server; a failed call raises Failure."""
    with connect(admin_socket(socket_path, instance, os.environ), SERVER) as channel:
        yield channel


class Service:
    """One service of the server, with one deadline for every call: the usual, unless the server may need longer."""

    def __init__(self, channel: grpc.Channel, service: ServiceDescriptor, seconds: float = CALL_SECONDS) -> None:
        self._stub = Stub(channel, service)
        self._seconds = seconds

    def __call__(self, method: str, request: Any) -> Any:
        """Call a unary method."""
        return getattr(self._stub, method)(request, timeout=self._seconds)
