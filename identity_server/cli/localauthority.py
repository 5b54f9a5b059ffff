"""`identity-server localauthority`: this server's signing authorities, and how to rotate them by hand.

Forced rotation is prepare, activate, taint, revoke. After `taint` wait until every SVID of the old authority has been
replaced, then `revoke`. With `--all-servers` each step is one for every server that shares the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import click

from identity_server.cli.authority_orders import DEFAULT_WAIT, give_up, order_everywhere, orders, servers
from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import Command, F, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, output_flag, print_json, timestamp
from spiffe_core.terminal.values import SECONDS
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
_IN_THE_BUNDLE: Final = "It answers once the authority has been in the bundle for 10 seconds"
_AFTER: Final = {
    "x509": f"{_IN_THE_BUNDLE}, or all who must know it have acknowledged it. "
    "Connected agents and servers that have not by then are waited for, for a minute altogether.",
    "jwt": f"{_IN_THE_BUNDLE}.",
    "wit": f"{_IN_THE_BUNDLE}.",
}
"""When an activated authority signs."""


@click.group("localauthority", cls=Group)
def group() -> None:
    """Signing authorities: show, prepare, activate, taint, revoke."""


def _everywhere_flags(function: F) -> F:
    """The flags that make a step one for all servers."""
    waiting = flag(
        "--wait",
        type=SECONDS,
        default=DEFAULT_WAIT,
        help="With --all-servers: how long to wait for all of them.  [default: 30s]",
    )(function)
    return flag(
        "--all-servers",
        "allServers",
        switch=True,
        help="Have every server that shares the database do this with its own authority.",
    )(waiting)


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
            if place != "active":
                click.echo()
            click.echo(f"{place.capitalize()} {kind.words} authority:")
            if answer.HasField(place):
                _print_authority(getattr(answer, place), kind)
            else:
                click.echo(f"  No {place} {kind.words} authority found")

    return show


def _prepare(kind: Kind) -> Command:
    @command("prepare", example=f"identity-server localauthority {kind.name} prepare")
    @_everywhere_flags
    @server_flags
    @output_flag
    def prepare(
        *, socket_path: str | None, instance: str | None, output: str, all_servers: bool | None, wait: float
    ) -> None:
        """Make the next authority and publish it.

        It signs nothing yet. One that is prepared already is replaced.
        """
        if all_servers:
            order_everywhere(kind.name, "prepare", wait=wait, socket_path=socket_path, instance=instance, output=output)
            return
        answer = _call(f"Prepare{kind.method}Authority", {}, socket_path, instance)
        _print_answer(answer, answer.prepared_authority, kind, f"Prepared {kind.words} authority:", output)

    return prepare


def _named(kind: Kind, verb: str, done: str, text: str, help_text: str) -> Command:
    """A command about one authority, which `-authorityID` names."""

    @flag("--authority-id", "authorityID", help=help_text)
    @_everywhere_flags
    @server_flags
    @output_flag
    def act(  # a flag each
        *,
        socket_path: str | None,
        instance: str | None,
        output: str,
        authority_id: str | None,
        all_servers: bool | None,
        wait: float,
    ) -> None:
        if all_servers:
            if authority_id:
                raise Failure(
                    "--authority-id and --all-servers exclude each other",
                    f"to {verb} one authority, leave out --all-servers",
                )
            order_everywhere(kind.name, verb, wait=wait, socket_path=socket_path, instance=instance, output=output)
            return
        if not authority_id:
            raise Failure("an authority ID is required", _where_ids_are(kind))
        fields = {"authority_id": authority_id}
        try:
            answer = _call(f"{verb.capitalize()}{kind.method}Authority", fields, socket_path, instance)
        except Failure as failure:
            if failure.advice:
                raise
            what = f"could not {verb} {kind.words} authority: {failure.what}"
            raise Failure(what, _ADVICE[verb].format(kind=kind.name), final=failure.final) from failure
        state = getattr(answer, f"{done}_authority")
        _print_answer(answer, state, kind, f"{done.capitalize()} {kind.words} authority:", output)

    act.__doc__ = text
    example = f"identity-server localauthority {kind.name} {verb} --authority-id {_EXAMPLE_ID[kind.name]}"
    return command(verb, example=example)(act)


def _where_ids_are(kind: Kind) -> str:
    return (
        f"name it with --authority-id; `identity-server localauthority {kind.name} show` has those of this server, "
        "`localauthority servers` those of all"
    )


_ADVICE: Final = {
    "activate": "only a prepared authority can be activated; `identity-server localauthority {kind} show` has it, "
    "`localauthority {kind} prepare` makes one",
    "taint": "only an old authority can be tainted: the active one becomes old when another is activated; "
    "`identity-server localauthority servers` shows which is what",
    "revoke": "only a tainted authority can be revoked: taint it, wait until its SVIDs are replaced, then revoke; "
    "`identity-server localauthority servers` shows which is what",
}
"""What to do when the server will not do it to this authority."""
_EXAMPLE_ID: Final = {
    "x509": "8c2b1f0e5d4a39687712f0c4b3d2e1a09f8e7d6c",
    "jwt": "Zk3xR9vQ2mB7nL5tW8yH1cD4fG6jK0pS",
    "wit": "pS0kK6jG4fD1cH8yW5tL7nB2mQ9vR3xZ",
}


_SECONDS: Final = 90.0
"""An activation waits up to a minute for agents that do not know the authority yet."""


def _call(method: str, fields: dict[str, str], socket_path: str | None, instance: str | None) -> Any:
    with server_channel(socket_path, instance) as channel:
        return Service(channel, SERVICE, _SECONDS)(method, getattr(pb, f"{method}Request")(**fields))


def _print_answer(answer: Any, state: pb.AuthorityState, kind: Kind, heading: str, output: str) -> None:
    if output == "json":
        print_json(answer)
        return
    click.echo(heading)
    _print_authority(state, kind)


def _print_authority(state: pb.AuthorityState, kind: Kind) -> None:
    click.echo(f"  Authority ID: {clean(state.authority_id)}")
    click.echo(f"  Expires at: {timestamp(state.expires_at).replace(' UTC', ' +0000 UTC')}")  # as Go writes it
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
            f"Let the prepared authority sign.\n\n    {_AFTER[kind.name]} The one before it becomes the old one.",
            "The prepared authority.",
        ),
        _named(
            kind,
            "taint",
            "tainted",
            "Mark an old authority as no longer to be relied on.\n\n"
            "    Everyone rotates what it signed, at once. It still verifies until it is revoked.",
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
for _command in (servers, orders, give_up):
    group.add_command(_command)
