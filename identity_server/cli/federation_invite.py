"""`federation invite` and `federation accept`: begin to federate with one line in each direction."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from identity_server.cli.federation_states import STATES, moment, print_relationship, print_rows
from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.printing import clean, output_flag, print_json
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2 as pb

MAX_TYPED = 256 * 1024


def endpoint_flags(function: F) -> F:
    """The flags that say where others reach our bundle endpoint."""
    for decorate in (
        flag("--profile", default="", help="https_spiffe or https_web.  [default: that of the bundle endpoint]"),
        flag("--url", default="", help="Our bundle endpoint as others reach it.  [default: federation.public_url]"),
    ):
        function = decorate(function)
    return function


@command("invite", example="identity-server federation invite --url https://example.org:8443/")
@flag("--ttl", type=click.IntRange(0), default=0, help="How long it can be accepted, in seconds.  [default: 3600]")
@endpoint_flags
@server_flags
@output_flag
def invite(*, socket_path: str | None, instance: str | None, output: str, url: str, profile: str, ttl: int) -> None:
    """Print a line with which another trust domain's administrator can federate with this one.

    The line holds no secret. Send it over a channel on which the other side knows that it comes from you: the keys it
    names are the keys that will be trusted.
    """
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, STATES)("Invite", pb.InviteRequest(url=url, profile=profile, ttl=ttl))
    _warn(answer.warnings)
    if output == "json":
        print_json(answer)
        return
    click.echo(answer.invitation)
    click.echo(f"It can be accepted until {moment(answer.expires_at)}, as long as no new authority appears.", err=True)


@command("accept", example="identity-server federation accept muniment-federation-1:eyJhbG...")
@click.argument("line", default="")
@flag("--yes", switch=True, help="Trust what is shown without asking.")
@endpoint_flags
@server_flags
@output_flag
def accept(
    *, socket_path: str | None, instance: str | None, output: str, line: str, yes: bool | None, **given: str
) -> None:
    """Federate with the trust domain that made an invitation. Without LINE it is read from standard input."""
    asking = not yes
    if asking and output == "json":
        raise Failure("--output json asks nothing", "look at the invitation without it first, then add --yes")
    if not line or line == "-":
        if asking and not sys.stdin.isatty():
            raise Failure("the invitation comes from standard input, so there is nobody to ask", "add --yes")
        line = sys.stdin.readline(MAX_TYPED)
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, STATES)
        offer = call("Preview", pb.PreviewRequest(invitation=line))
        if output != "json":
            _show(offer)
        if asking and not click.confirm("Trust these keys for this trust domain?", default=False):
            raise Failure("nothing was changed")
        fingerprints = [key.fingerprint for key in offer.keys]
        request = pb.AcceptRequest(
            invitation=line, fingerprints=fingerprints, url=given["url"], profile=given["profile"]
        )
        answer = call("Accept", request)
    _warn(answer.warnings)
    if output == "json":
        print_json(answer)
        return
    click.echo(f"Federated with {clean(offer.relationship.trust_domain)}.")
    if answer.invitation:
        click.echo("For the way back, the other side accepts this line:", err=True)
        click.echo(answer.invitation)
    else:
        click.echo(f"There is no line for the way back: {clean(answer.no_invitation)}", err=True)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {clean(warning)}", err=True)


def _show(offer: Any) -> None:
    """What would be trusted, and how it was found out."""
    click.echo("The invitation is sound, and the endpoint serves the keys it names:\n")
    print_relationship(offer.relationship)
    rows = [(f"Key ({key.use})", f"{key.key_id}  fingerprint {key.fingerprint}") for key in offer.keys]
    rows += [("Invitation ends", moment(offer.expires_at))]
    print_rows(rows + [("Warning", warning) for warning in offer.warnings])
    click.echo()
