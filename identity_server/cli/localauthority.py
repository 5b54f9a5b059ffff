"""`identity-server localauthority`: this server's signing authorities, and how to rotate them by hand.

Forced rotation is prepare, activate, taint, revoke. After `taint` wait until every SVID of the old authority has been
replaced, then `revoke`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.flags import Command, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, output_flag, print_json, timestamp
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["LocalAuthority"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of authority: its word in commands, in method names and in sentences."""

    name: str
    method: str
    words: str


KINDS: Final = (Kind("x509", "X509", "X.509"), Kind("jwt", "JWT", "JWT"), Kind("wit", "WIT", "WIT"))
_SIGNS: Final = {"x509": "X.509-SVIDs", "jwt": "JWT-SVIDs", "wit": "WIT-SVIDs"}


@click.group("localauthority", cls=Group)
def group() -> None:
    """Signing authorities: show, prepare, activate, taint, revoke."""


def _show(kind: Kind) -> Command:
    @command("show", example=f"identity-server localauthority {kind.name} show")
    @server_flags
    @output_flag
    def show(*, socket_path: str | None, instance: str | None, output: str) -> None:
        """Show the authorities in this server's slots."""
        answer = _call(f"Get{kind.method}AuthorityState", {}, socket_path, instance)
        if output == "json":
            print_json(answer)
            return
        for place in ("active", "prepared", "old"):
            click.echo(f"{place.capitalize()} {kind.words} authority:")
            if answer.HasField(place):
                _print_authority(getattr(answer, place), kind)
            else:
                click.echo(f"  No {place} {kind.words} authority found")
            click.echo()

    return show


def _prepare(kind: Kind) -> Command:
    @command("prepare", example=f"identity-server localauthority {kind.name} prepare")
    @server_flags
    @output_flag
    def prepare(*, socket_path: str | None, instance: str | None, output: str) -> None:
        """Make the next authority and publish it.

        It signs nothing yet. One that is prepared already is replaced.
        """
        answer = _call(f"Prepare{kind.method}Authority", {}, socket_path, instance)
        _print_answer(answer, answer.prepared_authority, kind, f"Prepared {kind.words} authority:", output)

    return prepare


def _named(kind: Kind, verb: str, done: str, text: str, help_text: str) -> Command:
    """A command about one authority, which `-authorityID` names."""

    @flag("--authority-id", "authorityID", required=True, help=help_text)
    @server_flags
    @output_flag
    def act(*, socket_path: str | None, instance: str | None, output: str, authority_id: str) -> None:
        fields = {"authority_id": authority_id}
        answer = _call(f"{verb.capitalize()}{kind.method}Authority", fields, socket_path, instance)
        state = getattr(answer, f"{done}_authority")
        _print_answer(answer, state, kind, f"{done.capitalize()} {kind.words} authority:", output)

    act.__doc__ = text
    example = f"identity-server localauthority {kind.name} {verb} --authority-id {_EXAMPLE_ID[kind.name]}"
    return command(verb, example=example)(act)


_EXAMPLE_ID: Final = {
    "x509": "8c2b1f0e5d4a39687712f0c4b3d2e1a09f8e7d6c",
    "jwt": "Zk3xR9vQ2mB7nL5tW8yH1cD4fG6jK0pS",
    "wit": "pS0kK6jG4fD1cH8yW5tL7nB2mQ9vR3xZ",
}


def _call(method: str, fields: dict[str, str], socket_path: str | None, instance: str | None) -> Any:
    with server_channel(socket_path, instance) as channel:
        return Service(channel, SERVICE)(method, getattr(pb, f"{method}Request")(**fields))


def _print_answer(answer: Any, state: pb.AuthorityState, kind: Kind, heading: str, output: str) -> None:
    if output == "json":
        print_json(answer)
        return
    click.echo(heading)
    _print_authority(state, kind)


def _print_authority(state: pb.AuthorityState, kind: Kind) -> None:
    click.echo(f"  Authority ID: {clean(state.authority_id)}")
    click.echo(f"  Expires at: {timestamp(state.expires_at)}")
    if kind.name == "x509":
        upstream = clean(state.upstream_authority_subject_key_id)
        click.echo(
            f"  Upstream authority Subject Key ID: {upstream}"
            if upstream
            else "  Upstream authority ID: No upstream authority"
        )


def _group_of(kind: Kind) -> Group:
    made = Group(kind.name, help=f"The authorities that sign {_SIGNS[kind.name]}.")
    for one in (
        _show(kind),
        _prepare(kind),
        _named(
            kind,
            "activate",
            "activated",
            "Let the prepared authority sign.\n\n    It answers once the authority has been in the bundle for 10 seconds. The one before it becomes the old one.",
            "The prepared authority.",
        ),
        _named(
            kind,
            "taint",
            "tainted",
            "Mark an old authority as no longer to be relied on.\n\n    Everyone rotates what it signed, at once. It still verifies until it is revoked.",
            "The old authority, of this or another server.",
        ),
        _named(
            kind,
            "revoke",
            "revoked",
            "Take a tainted authority out of the trust bundle.\n\n    What it signed is refused from then on.",
            "The tainted authority, of this or another server.",
        ),
    ):
        made.add_command(one)
    return made


for _kind in KINDS:
    group.add_command(_group_of(_kind))
