"""`identity-server entry create` and `entry update`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click
import grpc

from identity_server.cli import entry_text, filters
from identity_server.cli.entry import SERVICE
from identity_server.cli.entry_lint import print_warnings, warnings_on
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.waiting import waitable
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.printing import clean, output_flag, print_block, print_json
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as types_pb2

BATCH: Final = 500
"""Entries in one call."""
_SERVER_PATH: Final = "/spire/server"


def entry_flags(function: F) -> F:
    """The flags that describe an entry."""
    decorators: list[Callable[[Any], Any]] = [
        flag("--data", metavar="FILE|-", help="A JSON file of entries instead of flags; - is standard input."),
        flag("--jwt-svid-include-jti", "jwtSVIDIncludeJTI", switch=True, help="JWT-SVIDs carry a jti claim."),
        flag(
            "--disable-x509-svid-prefetch",
            "disableX509SVIDPrefetch",
            switch=True,
            help="The agent fetches the X.509-SVID when a workload asks, not before.",
        ),
        flag("--hint", help="What the identity is for, told to the workload."),
        flag("--dns", multiple=True, help="A DNS name in the certificate. May be repeated; the first is the CN."),
        flag("--entry-expiry", "entryExpiry", type=int, default=0, help="Unix seconds after which it is pruned."),
        flag("--store-svid", "storeSVID", switch=True, help="The agent hands the SVID to a secret store."),
        flag("--downstream", switch=True, help="The identity may obtain an intermediate CA."),
        flag("--admin", switch=True, help="The identity may administer this server."),
        flag(
            "--federates-with", "federatesWith", multiple=True, help="A foreign trust domain to trust. May be repeated."
        ),
        flag("--jwt-svid-ttl", "jwtSVIDTTL", type=WHOLE_SECONDS, default=0, help="Life of JWT-SVIDs."),
        flag("--x509-svid-ttl", "x509SVIDTTL", type=WHOLE_SECONDS, default=0, help="Life of X.509-SVIDs."),
        flag("--entry-id", "entryID", default="", help="The entry's id; made by the server when it is left out."),
        filters.selector_flag,
        flag("--parent-id", "parentID", help="The agent, or group of agents, that may hand the identity out."),
        flag("--spiffe-id", "spiffeID", help="The identity."),
    ]
    for decorate in decorators:
        function = decorate(function)
    return function


def _described(given: dict[str, Any], *, node: bool) -> types_pb2.Entry:
    """The entry that the flags describe."""
    if not given["selector"]:
        raise Failure("at least one --selector is needed", "for example: --selector unix:uid:1000")
    if not given["spiffe_id"]:
        raise Failure("--spiffe-id is needed", "for example: --spiffe-id spiffe://example.org/web")
    own = filters.spiffe_id(given["spiffe_id"], "--spiffe-id")
    if node:
        if given["federates_with"]:
            raise Failure("--node and --federates-with exclude each other: nodes do not federate", "leave one out")
        parent = type(own)(trust_domain=own.trust_domain, path=_SERVER_PATH)
    elif given["parent_id"]:
        parent = filters.spiffe_id(given["parent_id"], "--parent-id")
    else:
        raise Failure("--parent-id is needed", "`identity-server agent list` shows the agents' IDs")
    entry = types_pb2.Entry(
        id=given["entry_id"],
        spiffe_id=own,
        parent_id=parent,
        selectors=filters.selectors(given["selector"]),
        x509_svid_ttl=given["x509_svid_ttl"],
        jwt_svid_ttl=given["jwt_svid_ttl"],
        federates_with=filters.trust_domains(given["federates_with"], "--federates-with"),
        admin=bool(given["admin"]),
        downstream=bool(given["downstream"]),
        store_svid=bool(given["store_svid"]),
        expires_at=given["entry_expiry"],
        dns_names=given["dns"],
        hint=given["hint"] or "",
    )
    if given["disable_x509_svid_prefetch"]:
        entry.additional_attributes.disable_x509_svid_prefetch = True
    if given["jwt_svid_include_jti"]:
        entry.additional_attributes.jwt_svid_include_jti = True
    return entry


def _wanted(given: dict[str, Any], *, node: bool = False) -> list[types_pb2.Entry]:
    file = given.pop("data")
    if not file:
        return [_described(given, node=node)]
    from identity_server.cli.entry_data import read_entries

    return read_entries(file)


@command(
    "create",
    example="""identity-server entry create \\
    --parent-id spiffe://example.org/spire/agent/join_token/5a6b7c8d-0000-4000-8000-000000000000 \\
    --spiffe-id spiffe://example.org/web --selector unix:uid:1000 --x509-svid-ttl 1h
identity-server entry create -data entries.json""",
)
@entry_flags
@flag("--node", switch=True, help="The entry is for nodes: its parent is the server, its selectors are node selectors.")
@waitable
@server_flags
@output_flag
def create(*, socket_path: str | None, instance: str | None, output: str, node: bool | None, **given: Any) -> int:
    """Create registration entries.

    No two entries may have the same SPIFFE ID, parent and selectors.
    """
    entries = _wanted(given, node=bool(node))
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        answer = entry_pb2.BatchCreateEntryResponse()
        for some in _batches(entries):
            answer.MergeFrom(call("BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=some)))
        warnings = warnings_on(channel, _written(answer))
    return _report(answer, entries, output, "create", warnings)


@command(
    "update",
    example="""identity-server entry update --entry-id 5a6b7c8d-0000-4000-8000-000000000000 \\
    --parent-id spiffe://example.org/node --spiffe-id spiffe://example.org/web --selector unix:uid:1001""",
)
@entry_flags
@waitable
@server_flags
@output_flag
def update(*, socket_path: str | None, instance: str | None, output: str, **given: Any) -> int:
    """Replace registration entries.

    They are replaced whole: what is not given is reset to its default.
    """
    if not given["data"] and not given["entry_id"]:
        raise Failure("--entry-id is needed", "`identity-server entry show` prints the ids")
    entries = _wanted(given)
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        answer = entry_pb2.BatchUpdateEntryResponse()
        for some in _batches(entries):
            answer.MergeFrom(call("BatchUpdateEntry", entry_pb2.BatchUpdateEntryRequest(entries=some)))
        warnings = warnings_on(channel, _written(answer))
    return _report(answer, entries, output, "update", warnings)


def _written(answer: Any) -> list[str]:
    """The ids of the entries that were written."""
    return [result.entry.id for result in answer.results if not result.status.code]


def _batches(entries: Sequence[types_pb2.Entry]) -> Iterator[Sequence[types_pb2.Entry]]:
    for start in range(0, len(entries), BATCH):
        yield entries[start : start + BATCH]


def _report(
    answer: entry_pb2.BatchCreateEntryResponse | entry_pb2.BatchUpdateEntryResponse,
    entries: Sequence[types_pb2.Entry],
    output: str,
    verb: str,
    warnings: Sequence[Any],
) -> int:
    """Print what was written and what was not; the exit code."""
    results: Sequence[Any] = answer.results
    failed = [index for index, result in enumerate(results) if result.status.code]
    print_warnings(warnings, output)
    if output == "json":
        print_json(answer)
        return 1 if failed else 0
    for result in results:
        if not result.status.code:
            print_block(entry_text.block(result.entry))
    for index in failed:
        status = results[index].status
        click.echo(
            f"Failed to {verb} the following entry (code: {code_name(status.code)}, msg: {clean(status.message)!r}):",
            err=True,
        )
        print_block(entry_text.block(entries[index]), err=True)
        if results[index].entry.id:
            click.echo(f"It stands already, as entry {clean(results[index].entry.id)}.\n", err=True)
    if failed:
        raise Failure(
            f"failed to {verb} {len(failed)} of {len(entries)} entries",
            "the reason stands above each; the others have been written" if len(entries) > len(failed) else "",
        )
    return 0


def code_name(number: int) -> str:
    """A status as Go prints it: `AlreadyExists`."""
    for code in grpc.StatusCode:
        if code.value[0] == number:
            return "".join(part.capitalize() for part in code.name.split("_"))
    return str(number)
