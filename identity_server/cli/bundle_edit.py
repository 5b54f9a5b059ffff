"""`identity-server bundle list`, `set` and `delete`: the bundles of other trust domains."""

from __future__ import annotations

from typing import Any, Final

import click

from identity_server.cli.bundle import SERVICE
from identity_server.cli.bundle_files import bundle_text, format_flag, parse_bundle, read_file
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.waiting import waitable
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.printing import clean, output_flag, print_json
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2

PAGE: Final = 100
MAX_PAGES: Final = 10_000
_STARS: Final = "*" * 40


def id_flag(function: F) -> F:
    """The flag that names the other trust domain."""
    return flag("--id", required=True, help="The trust domain, with or without spiffe:// in front.")(function)


@command("list", example="identity-server bundle list\nidentity-server bundle list -id fed.test -format spiffe")
@format_flag()
@flag("--id", default="", help="Only the bundle of this trust domain.")
@server_flags
@output_flag
def list_bundles(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Print the bundles of other trust domains."""
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        if given["id"]:
            name = TrustDomain.parse(given["id"], field="--id").name
            bundle = call("GetFederatedBundle", bundle_pb2.GetFederatedBundleRequest(trust_domain=name))
            if output == "json":
                print_json(bundle)
            else:
                click.echo(bundle_text(bundle, given["format"]), nl=False)
            return
        bundles = _all_bundles(call)
    if output == "json":
        print_json(bundle_pb2.ListFederatedBundlesResponse(bundles=bundles))
        return
    for number, bundle in enumerate(bundles):
        head = f"{_STARS}\n* {clean(bundle.trust_domain)}\n{_STARS}\n"
        click.echo(("\n" if number else "") + head + bundle_text(bundle, given["format"]), nl=False)


def _all_bundles(call: Service) -> list[types_pb2.Bundle]:
    bundles: list[types_pb2.Bundle] = []
    token = ""
    for _ in range(MAX_PAGES):
        request = bundle_pb2.ListFederatedBundlesRequest(page_size=PAGE, page_token=token)
        page = call("ListFederatedBundles", request)
        bundles += page.bundles
        token = page.next_page_token
        if not token:
            return bundles
    raise Failure(f"the server has more than {MAX_PAGES} pages of bundles", "name one trust domain with --id")


@command(
    "set",
    example="identity-server bundle set -id fed.test -path fed.pem\n"
    "cat fed.json | identity-server bundle set -id fed.test -format spiffe",
)
@flag("--path", default="", metavar="FILE", help="The bundle; standard input when it is left out.")
@format_flag()
@id_flag
@waitable
@server_flags
@output_flag
def set_bundle(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Store the bundle of another trust domain, in place of the one that is there.

    Entries may federate with that trust domain from then on.
    """
    bundle = parse_bundle(read_file(given["path"], "--path"), given["format"], given["id"], "--id")
    with server_channel(socket_path, instance) as channel:
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle])
        answer = Service(channel, SERVICE)("BatchSetFederatedBundle", request)
    _report(answer, output, "set", bundle.trust_domain)


@command("delete", example="identity-server bundle delete -id fed.test -mode dissociate")
@flag(
    "--mode",
    type=click.Choice(["restrict", "dissociate", "delete"]),
    default="restrict",
    show_default=True,
    help="Refuse while entries federate with it, take it out of those entries, or delete those entries.",
)
@id_flag
@waitable
@server_flags
@output_flag
def delete_bundle(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Delete the bundle of another trust domain: workloads stop trusting it at their agent's next update."""
    name = TrustDomain.parse(given["id"], field="--id").name
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[name], mode=given["mode"].upper())
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BatchDeleteFederatedBundle", request)
    _report(answer, output, "delete", name)


def _report(answer: Any, output: str, verb: str, name: str) -> None:
    if output == "json":
        print_json(answer)
        if any(result.status.code for result in answer.results):
            raise click.exceptions.Exit(1)
        return
    status = answer.results[0].status
    if status.code:
        raise Failure(f"failed to {verb} federated bundle {name!r}: {clean(status.message)}")
    click.echo("bundle set." if verb == "set" else "bundle deleted.")
