"""`identity-server debug`: what the running server is and what it holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.flags import command
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, output_flag, print_json, span, spiffe_id_text
from spiffe_core.wire._gen.spire.api.server.debug.v1 import debug_pb2

SERVICE: Final = debug_pb2.DESCRIPTOR.services_by_name["Debug"]


@click.group("debug", cls=Group)
def group() -> None:
    """What the server is and what it holds."""


@command("getinfo", example="identity-server debug getinfo -output json")
@server_flags
@output_flag
def getinfo(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Print counts, uptime and the server's own certificates. The answer is up to five seconds old."""
    with server_channel(socket_path, instance) as channel:
        info = Service(channel, SERVICE)("GetInfo", debug_pb2.GetInfoRequest())
    if output == "json":
        print_json(info)
        return
    click.echo("Server Debug Info:")
    for name, value in (
        ("Uptime", span(timedelta(seconds=info.uptime))),
        ("Registered Agents", info.agents_count),
        ("Registration Entries", info.entries_count),
        ("Federated Bundles", info.federated_bundles_count),
    ):
        click.echo(f"  {name + ':':<24} {value}")
    click.echo("  SVID Chain:")
    for number, certificate in enumerate(info.svid_chain):
        who = spiffe_id_text(certificate.id) if certificate.HasField("id") else "(none)"
        click.echo(f"    [{number}] SPIFFE ID:  {clean(who)}")
        click.echo(f"        Subject:    {clean(certificate.subject)}")
        click.echo(f"        Expires At: {datetime.fromtimestamp(certificate.expires_at, UTC):%Y-%m-%dT%H:%M:%SZ}")


group.add_command(getinfo)
