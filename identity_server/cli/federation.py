"""`identity-server federation`: where the bundles of other trust domains come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
import grpc

from identity_server.cli.bundle_files import format_flag, parse_bundle, read_file
from identity_server.cli.entry_edit import code_name
from identity_server.cli.federation_data import Relationship, described, read_relationships
from identity_server.cli.federation_invite import accept, invite
from identity_server.cli.federation_states import STATES, print_relationship, print_state
from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import clean, count_line, output_flag, print_json
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2
from spiffe_core.wire._gen.spire.api.types import status_pb2

SERVICE: Final = trustdomain_pb2.DESCRIPTOR.services_by_name["TrustDomain"]
PAGE: Final = 200
MAX_PAGES: Final = 10_000


@click.group("federation", cls=Group)
def group() -> None:
    """Federation relationships: trust domains whose bundles are fetched."""


def relationship_flags(function: F) -> F:
    """The flags of `create` and `update`."""
    for decorate in (
        flag("--data", metavar="FILE|-", default="", help="A JSON file of relationships instead of flags."),
        format_flag("--trust-domain-bundle-format", "trustDomainBundleFormat"),
        flag("--trust-domain-bundle-path", "trustDomainBundlePath", default="", help="A bundle to store as well."),
        flag(
            "--endpoint-spiffe-id", "endpointSpiffeID", default="", help="Whom the endpoint shows; https_spiffe only."
        ),
        flag("--bundle-endpoint-profile", "bundleEndpointProfile", default="", help="https_web or https_spiffe."),
        flag("--bundle-endpoint-url", "bundleEndpointURL", default="", help="Where the bundle is; an https URL."),
        flag("--trust-domain", "trustDomain", default="", help="The trust domain to federate with."),
    ):
        function = decorate(function)
    return function


def _wanted(given: dict[str, str]) -> list[Relationship]:
    file = given.pop("data")
    names = {
        "trustDomain": given["trust_domain"],
        "bundleEndpointURL": given["bundle_endpoint_url"],
        "bundleEndpointProfile": given["bundle_endpoint_profile"],
        "endpointSPIFFEID": given["endpoint_spiffe_id"],
    }
    path = given["trust_domain_bundle_path"]
    if file:
        if any(names.values()) or path:
            raise Failure("cannot use other flags to specify relationship fields when --data is set")
        return read_relationships(file)
    made = described(names)
    if path:
        form = given["trust_domain_bundle_format"]
        data = read_file(path, "--trust-domain-bundle-path")
        made.trust_domain_bundle.CopyFrom(parse_bundle(data, form, made.trust_domain, "--trust-domain"))
    return [made]


_EXAMPLE = """identity-server federation {verb} -trustDomain fed.test -bundleEndpointURL https://fed.test:8443 \\
    -bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://fed.test/spire/server
identity-server federation {verb} -data relationships.json"""


@command("create", example=_EXAMPLE.format(verb="create"))
@relationship_flags
@server_flags
@output_flag
def create(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> int:
    """Create federation relationships."""
    wanted = _wanted(given)
    request = trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=wanted)
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BatchCreateFederationRelationship", request)
    return _report(answer, wanted, output, "create")


@command("update", example=_EXAMPLE.format(verb="update"))
@relationship_flags
@server_flags
@output_flag
def update(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> int:
    """Replace federation relationships."""
    wanted = _wanted(given)
    request = trustdomain_pb2.BatchUpdateFederationRelationshipRequest(federation_relationships=wanted)
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BatchUpdateFederationRelationship", request)
    return _report(answer, wanted, output, "update")


def _report(answer: Any, wanted: Sequence[Relationship], output: str, verb: str) -> int:
    failed = [index for index, result in enumerate(answer.results) if result.status.code]
    if output == "json":
        print_json(answer)
        return 1 if failed else 0
    for result in answer.results:
        if not result.status.code:
            click.echo()
            print_relationship(result.federation_relationship)
    for index in failed:
        status = answer.results[index].status
        click.echo(
            f"Failed to {verb} the following federation relationship (code: {code_name(status.code)}, "
            f"msg: {clean(status.message)!r}):",
            err=True,
        )
        print_relationship(wanted[index], err=True)
    if failed:
        raise Failure(f"failed to {verb} one or more federation relationships")
    return 0


@command("list", example="identity-server federation list")
@server_flags
@output_flag
def list_relationships(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """List federation relationships, those of the configuration file included, and how their fetches go."""
    with server_channel(socket_path, instance) as channel:
        if output == "json":
            print_json(trustdomain_pb2.ListFederationRelationshipsResponse(federation_relationships=_stored(channel)))
            return
        states = Service(channel, STATES)("ListStates", federation_pb2.ListStatesRequest()).states
    click.echo(f"Found {count_line(len(states), 'federation relationship', 'federation relationships')}")
    for state in states:
        click.echo()
        print_relationship(state.relationship)
        print_state(state)


def _stored(channel: grpc.Channel) -> list[Relationship]:
    """The relationships in the database, as SPIRE's API has them."""
    found: list[Relationship] = []
    call, token = Service(channel, SERVICE), ""
    for _ in range(MAX_PAGES):
        request = trustdomain_pb2.ListFederationRelationshipsRequest(page_size=PAGE, page_token=token)
        page = call("ListFederationRelationships", request)
        found += page.federation_relationships
        token = page.next_page_token
        if not token:
            return found
    raise Failure(f"the server has more than {MAX_PAGES} pages of relationships")


@command("show", example="identity-server federation show -trustDomain fed.test")
@flag("--trust-domain", "trustDomain", required=True, help="The trust domain.")
@server_flags
@output_flag
def show(*, socket_path: str | None, instance: str | None, output: str, trust_domain: str) -> None:
    """Show one federation relationship, and how the fetches of its bundle go."""
    name = TrustDomain.parse(trust_domain, field="--trust-domain").name
    with server_channel(socket_path, instance) as channel:
        if output == "json":
            request = trustdomain_pb2.GetFederationRelationshipRequest(trust_domain=name)
            print_json(Service(channel, SERVICE)("GetFederationRelationship", request))
            return
        (state,) = Service(channel, STATES)("ListStates", federation_pb2.ListStatesRequest(trust_domain=name)).states
    click.echo(f"Found a federation relationship with trust domain {name}:\n")
    print_relationship(state.relationship)
    print_state(state)


@command("delete", example="identity-server federation delete -id fed.test")
@flag("--id", required=True, help="The trust domain.")
@server_flags
@output_flag
def delete(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> int:
    """Delete a federation relationship. Its bundle stays: `bundle delete` deletes that."""
    name = TrustDomain.parse(given["id"], field="--id").name
    request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=[name])
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BatchDeleteFederationRelationship", request)
    status = answer.results[0].status
    if output == "json":
        print_json(answer)
        return 1 if status.code else 0
    if status.code:
        raise Failure(f'failed to delete federation relationship "{name}": {clean(status.message)}')
    click.echo("federation relationship deleted.")
    return 0


@command("refresh", example="identity-server federation refresh -id fed.test")
@flag("--id", required=True, help="The trust domain.")
@server_flags
@output_flag
def refresh(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Fetch the bundle of a relationship's trust domain now."""
    name = TrustDomain.parse(given["id"], field="--id").name
    with server_channel(socket_path, instance) as channel:
        Service(channel, SERVICE)("RefreshBundle", trustdomain_pb2.RefreshBundleRequest(trust_domain=name))
    if output == "json":
        print_json(status_pb2.Status(code=0, message="OK"))
    else:
        click.echo("Bundle refreshed")


for _command in (create, update, list_relationships, show, delete, refresh, invite, accept):
    group.add_command(_command)
