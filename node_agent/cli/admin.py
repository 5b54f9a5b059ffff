"""`node-agent debug` and `node-agent logger`: the running agent, over its admin socket."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from spiffe_core.runtime.places import agent_admin_socket
from spiffe_core.terminal.connection import CALL_SECONDS, Daemon, connect
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.logger import logger_group
from spiffe_core.terminal.printing import clean, output_flag, print_json, span, spiffe_id_text
from spiffe_core.wire._gen.spire.api.agent.debug.v1 import debug_pb2
from spiffe_core.wire._gen.spire.api.agent.logger.v1 import logger_pb2
from spiffe_core.wire.services import Stub

DEBUG: Final = debug_pb2.DESCRIPTOR.services_by_name["Debug"]
LOGGER: Final = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
AGENT_ADMIN: Final = Daemon(
    name="agent",
    start="node-agent run --config FILE",
    forbidden="run this as root or as the agent's user",
    usual=agent_admin_socket(uid=0),
)


def admin_flags(function: F) -> F:
    """The flag of every command that talks to the admin socket."""
    return flag(
        "--socket-path",
        "socketPath",
        help="The agent's admin socket.  [env: SPIRE_AGENT_PRIVATE_SOCKET; default: where `run` puts it]",
    )(function)


def admin_target(socket_path: str | None) -> str:
    """The path of the admin socket: the flag, SPIRE's variable, or the default place."""
    named = socket_path or os.environ.get("SPIRE_AGENT_PRIVATE_SOCKET") or str(agent_admin_socket())
    return os.path.abspath(named.removeprefix("unix://"))  # noqa: PTH100  # links in it are left alone


def _ask_logger(method: str, request: Any, place: dict[str, Any]) -> Any:
    with connect(admin_target(place["socket_path"]), AGENT_ADMIN) as channel:
        return getattr(Stub(channel, LOGGER), method)(request, timeout=CALL_SECONDS)


logger = logger_group("node-agent", "agent", LOGGER, admin_flags, _ask_logger)


@click.group("debug", cls=Group)
def debug() -> None:
    """What the agent is and what it holds."""


@command("getinfo", example="node-agent debug getinfo --output json")
@admin_flags
@output_flag
def getinfo(*, socket_path: str | None, output: str) -> None:
    """Print the agent's own certificates, its uptime, when it last synchronised, and how much it holds."""
    with connect(admin_target(socket_path), AGENT_ADMIN) as channel:
        info = Stub(channel, DEBUG).GetInfo(debug_pb2.GetInfoRequest(), timeout=CALL_SECONDS)
    if output == "json":
        print_json(info)
        return
    click.echo("Agent Debug Info:")
    for name, value in (
        ("Uptime", span(timedelta(seconds=info.uptime))),
        ("Last Sync Success", _time(info.last_sync_success) if info.last_sync_success else "never"),
        ("Cached X.509 SVIDs", info.cached_x509_svids_count),
        ("Cached JWT SVIDs", info.cached_jwt_svids_count),
    ):
        click.echo(f"  {name + ':':<24} {value}")
    click.echo("  SVID Chain:")
    for number, certificate in enumerate(info.svid_chain):
        who = spiffe_id_text(certificate.id) if certificate.HasField("id") else "(none)"
        click.echo(f"    [{number}] SPIFFE ID:  {clean(who)}")
        click.echo(f"        Subject:    {clean(certificate.subject)}")
        click.echo(f"        Expires At: {_time(certificate.expires_at)}")


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


debug.add_command(getinfo)
