"""`identity-server upstreamauthority`: the roots above this server's CA certificate, if somebody else signs it.

After the upstream's root was replaced: `localauthority x509 prepare` and `activate`, then `taint` the old root here,
and `revoke` it once every SVID below it has been replaced.
"""

from __future__ import annotations

from typing import Any, Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import Command, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, output_flag, print_json
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["LocalAuthority"]
_EXAMPLE_ID: Final = "3d2e1a09f8e7d6c58c2b1f0e5d4a39687712f0c4"


@click.group("upstreamauthority", cls=Group)
def group() -> None:
    """Roots of the upstream authority: taint, revoke."""


def _named(verb: str, heading: str, text: str) -> Command:
    @flag("--subject-key-id", "subjectKeyID", help="The subject key identifier of the upstream authority, in hex.")
    @server_flags
    @output_flag
    def act(*, socket_path: str | None, instance: str | None, output: str, subject_key_id: str | None) -> None:
        if not subject_key_id:
            raise Failure(
                "the Subject Key ID of the X.509 upstream authority is required",
                "name it with --subject-key-id; `identity-server localauthority x509 show` has that of each authority",
            )
        with server_channel(socket_path, instance) as channel:
            request = getattr(pb, f"{verb.capitalize()}X509UpstreamAuthorityRequest")(subject_key_id=subject_key_id)
            answer: Any = Service(channel, SERVICE)(f"{verb.capitalize()}X509UpstreamAuthority", request)
        if output == "json":
            print_json(answer)
            return
        click.echo(heading)
        click.echo(f"  Subject Key ID: {clean(answer.upstream_authority_subject_key_id)}")

    act.__doc__ = text
    return command(verb, example=f"identity-server upstreamauthority {verb} --subject-key-id {_EXAMPLE_ID}")(act)


for _command in (
    _named(
        "taint",
        "Tainted X.509 upstream authority:",
        "Mark the root of an old authority as no longer to be relied on.\n\n"
        "    Everything below it rotates, at once. It still verifies until it is revoked.",
    ),
    _named(
        "revoke",
        "Revoked X.509 upstream authority:",
        "Take a tainted root out of the trust bundle.\n\n    What is below it is refused from then on.",
    ),
):
    group.add_command(_command)
