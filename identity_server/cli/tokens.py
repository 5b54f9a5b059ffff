"""`identity-server token`: join tokens."""

from __future__ import annotations

import click

from identity_server.cli.filters import spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.token_file import new_token_file
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, output_flag, print_json
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"]


@click.group("token", cls=Group)
def group() -> None:
    """Join tokens: a secret that admits one node, once."""


@command(
    "generate",
    example="identity-server token generate --ttl 10m --spiffe-id spiffe://example.org/node/web1",
)
@flag("--ttl", type=WHOLE_SECONDS, default=600, show_default=True, help="How long the token may be used.")
@flag("--spiffe-id", "spiffeID", help="A further SPIFFE ID for the node, to hang entries on.")
@flag("--write", metavar="FILE", help="Write the token into this new file (0600) instead of showing it.")
@server_flags
@output_flag
def generate(*, socket_path: str | None, instance: str | None, output: str, ttl: int, **given: str | None) -> None:
    """Make a join token.

    Hand it to the node in a file (`--write`): whoever uses it first gets the node's identity.
    """
    if ttl < 1:
        raise Failure("--ttl must be at least one second", "for example: --ttl 10m")
    alias = given["spiffe_id"]
    request = agent_pb2.CreateJoinTokenRequest(ttl=ttl)
    if alias:
        request.agent_id.CopyFrom(spiffe_id(alias, "--spiffe-id"))
    if given["write"]:
        with (
            new_token_file(given["write"]) as file,
            server_channel(socket_path, instance) as channel,
        ):
            file.write(Service(channel, SERVICE)("CreateJoinToken", request).value)
        if output == "json":
            print_json({"written": [given["write"]]})
        else:
            click.echo(f"Join token written to {given['write']}")
        return
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("CreateJoinToken", request)
    if output == "json":
        print_json(answer)
    else:
        click.echo(f"Token: {clean(answer.value)}")


group.add_command(generate)
