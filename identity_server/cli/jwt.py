"""`identity-server jwt`: JWT-SVIDs for what is not a workload, such as a first test of a service that verifies them."""

from __future__ import annotations

from typing import Any, Final

import click

from identity_server.cli.filters import spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.token_file import token_target, write_token
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import output_flag, print_json, timestamp
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2

SVID: Final = svid_pb2.DESCRIPTOR.services_by_name["SVID"]


@click.group("jwt", cls=Group)
def group() -> None:
    """JWT-SVIDs without a workload."""


@command(
    "mint",
    example="identity-server jwt mint --spiffe-id spiffe://example.org/ci --audience https://api.example.org --ttl 5m",
)
@flag("--spiffe-id", "spiffeID", required=True, help="The identity.")
@flag("--audience", multiple=True, required=True, help="Whom the token is meant for. May be repeated; one is best.")
@flag("--ttl", type=WHOLE_SECONDS, default=0, help="Its life; the server's default when it is left out.")
@flag("--write", metavar="FILE", help="Write the token into this file (0600) instead of printing it.")
@server_flags
@output_flag
def mint(*, socket_path: str | None, instance: str | None, output: str, ttl: int, **given: Any) -> None:
    """Have a JWT-SVID signed.

    Whoever holds the token is the workload until it expires; no registration entry is consulted.
    """
    target = token_target(given["write"]) if given["write"] else None
    request = svid_pb2.MintJWTSVIDRequest(
        id=spiffe_id(given["spiffe_id"], "--spiffe-id"), audience=given["audience"], ttl=ttl
    )
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SVID)("MintJWTSVID", request)
    svid = answer.svid
    if ttl and svid.expires_at - svid.issued_at < ttl:
        note = f"JWT-SVID lifetime was capped shorter than specified ttl; expires {timestamp(svid.expires_at)}"
        click.echo(note, err=True)
    if target is not None:
        write_token(target, svid.token, "JWT-SVID", output)
    elif output == "json":
        print_json(answer)
    else:
        click.echo(svid.token)


group.add_command(mint)
