"""`identity-server bundle`: the keys that SVIDs are verified with."""

from __future__ import annotations

from typing import Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.pem_files import certificates_pem
from spiffe_core.terminal.printing import count_line, output_flag, print_json
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2

SERVICE: Final = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]


@click.group(
    "bundle",
    cls=Group,
    lazy={
        "list": ("identity_server.cli.bundle_edit:list_bundles", "Print the bundles of other trust domains"),
        "set": ("identity_server.cli.bundle_edit:set_bundle", "Store the bundle of another trust domain"),
        "delete": ("identity_server.cli.bundle_edit:delete_bundle", "Delete the bundle of another trust domain"),
    },
)
def group() -> None:
    """Trust bundles."""


@command("show", example="identity-server bundle show > bundle.pem\nidentity-server bundle show -format spiffe")
@flag(
    "--format",
    type=click.Choice(["pem", "spiffe"]),
    default="pem",
    show_default=True,
    help="Certificates as PEM, or a SPIFFE bundle document.",
)
@server_flags
@output_flag
def show(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Print the server's own trust bundle.

    An agent needs it to know the server on first contact.
    """
    with server_channel(socket_path, instance) as channel:
        bundle = Service(channel, SERVICE)("GetBundle", bundle_pb2.GetBundleRequest())
    if output == "json":
        print_json(bundle)
    elif given["format"] == "spiffe":
        from spiffe_core.bundle_document import dump_bundle
        from spiffe_core.wire.convert_bundle import bundle_from_proto

        click.echo(dump_bundle(bundle_from_proto(bundle)).decode())
    else:
        click.echo(certificates_pem([authority.asn1 for authority in bundle.x509_authorities]), nl=False)


@command("count", example="identity-server bundle count")
@server_flags
@output_flag
def count(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Count trust bundles, the server's own included."""
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("CountBundles", bundle_pb2.CountBundlesRequest())
    if output == "json":
        print_json(answer)
    else:
        click.echo(count_line(answer.count, "bundle", "bundles"))


for _command in (show, count):
    group.add_command(_command)
