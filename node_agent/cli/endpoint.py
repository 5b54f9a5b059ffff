"""Where the commands find the agent: its Workload API socket."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from spiffe_core.runtime.places import agent_socket
from spiffe_core.terminal.connection import Daemon
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, flag
from workload_api.address import ENVIRONMENT_VARIABLE, TcpAddress, UnixAddress, parse_address

AGENT: Final = Daemon(
    name="agent",
    start="node-agent run --config FILE",
    forbidden="mostly because no registration entry matches this process: `node-agent explain {id}` tells an "
    "administrator of this node why, and `identity-server entry create` makes an entry, "
    f"for example with --selector unix:uid:{os.getuid()}",
    usual=agent_socket(uid=0),
)
_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def endpoint_flags(function: F) -> F:
    """The flags of every command that talks to the agent."""
    named = flag(
        "--instance",
        help="Which of several agents on this machine: fills %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE.",
    )(function)
    return flag(
        "--socket-path",
        "socketPath",
        help="The agent's socket, as a path or an address such as unix:///run/api.sock.  "
        "[env: SPIRE_AGENT_PUBLIC_SOCKET, SPIFFE_ENDPOINT_SOCKET; default: where `run` puts it]",
    )(named)


def endpoint(socket_path: str | None, instance: str | None, environ: Mapping[str, str]) -> str:
    """What to connect to: a socket path, or `ip:port`. The flag wins, then SPIRE's variable, then SPIFFE's."""
    if socket_path:
        return _target(socket_path)
    if instance:
        template = environ.get("SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE", "")
        if not _INSTANCE.fullmatch(instance) or "%i" not in template:
            raise Failure(
                "--instance needs a plain name, and SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE with %i in it",
                "set the variable, or name the socket with --socket-path",
            )
        return template.replace("%i", instance)
    spires = environ.get("SPIRE_AGENT_PUBLIC_SOCKET")
    if spires:
        return _target(spires)
    standard = environ.get(ENVIRONMENT_VARIABLE)
    return _target_of(parse_address(standard)) if standard else str(agent_socket())


def _target(text: str) -> str:
    """A path, or a Workload Endpoint address."""
    if text.startswith(("unix:", "tcp:")):
        return _target_of(parse_address(text))
    return os.path.abspath(text)  # noqa: PTH100  # links in it are left alone


def _target_of(address: UnixAddress | TcpAddress) -> str:
    return address.path if isinstance(address, UnixAddress) else str(address).removeprefix("tcp://")
