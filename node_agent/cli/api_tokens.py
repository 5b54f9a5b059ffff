"""`node-agent api fetch jwt|wit`, `api validate jwt`, `api watch jwt|wit`: the token profiles of the Workload API."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from node_agent.cli.endpoint import AGENT, endpoint, endpoint_flags
from node_agent.cli.streams import SECURITY_HEADER, SERVICE, follow
from spiffe_core.terminal.connection import connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.pem_files import PRIVATE, output_directory, write_files
from spiffe_core.terminal.printing import clean, output_flag, print_json
from spiffe_core.terminal.values import SECONDS
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

MAX_TOKEN_BYTES: Final = 64 * 1024
_timeout = flag("--timeout", type=SECONDS, default="5s", show_default=True, help="How long to wait for an answer.")


def audiences(values: Sequence[str]) -> list[str]:
    """The audiences of a repeatable flag whose values may be comma-separated lists, as SPIRE's is."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def _first(stream: Iterator[Any], what: str) -> Any:
    answer = next(stream, None)
    if answer is None:
        raise Failure(f"the agent ended the stream of {what} without an answer", "look at the agent's log")
    return answer


@command(
    "jwt",
    example="node-agent api fetch jwt --audience https://api.example.org\n"
    "node-agent api fetch jwt --audience db --spiffe-id spiffe://example.org/web --output json",
    short_help="Fetch JWT-SVIDs",
)
@flag("--audience", multiple=True, required=True, help="Whom the token is meant for; a comma-separated list.")
@flag("--spiffe-id", "spiffeID", help="Only this identity of the process.")
@_timeout
@flag("--format", type=click.Choice(["pretty", "json"]), hidden=True, help="SPIRE's older name of --output.")
@flag("--write", metavar="FILE", help="Write the token into this file (0600) instead of printing it.")
@endpoint_flags
@output_flag
def fetch_jwt(*, socket_path: str | None, instance: str | None, output: str, timeout: float, **given: Any) -> None:
    """Fetch the JWT-SVIDs of this process and the bundles that verify them.

    Whoever holds a token is the workload until it expires: do not leave it in a log or a shell history.
    """
    request = workload_pb2.JWTSVIDRequest(audience=audiences(given["audience"]), spiffe_id=given["spiffe_id"] or "")
    target = Path(given["write"]) if given["write"] else None
    directory = output_directory(str(target.parent)) if target else None
    with connect(endpoint(socket_path, instance, os.environ), AGENT) as channel:
        stub = Stub(channel, SERVICE)
        svids = stub.FetchJWTSVID(request, metadata=SECURITY_HEADER, timeout=timeout)
        stream = stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=SECURITY_HEADER, timeout=timeout)
        bundles = _first(stream, "bundles")
        stream.cancel()
    if target is not None and directory is not None:
        if len(svids.svids) != 1:
            raise Failure(
                f"the process has {len(svids.svids)} identities and one file holds one token",
                "name one with --spiffe-id",
            )
        (path,) = write_files(directory, {target.name: (svids.svids[0].svid, PRIVATE)})
        click.echo(f"JWT-SVID of {clean(svids.svids[0].spiffe_id)} written to {path}")
    elif "json" in {output, given["format"]}:
        print_json(svids, bundles)
    else:
        _show_jwt(svids, bundles)


def _show_jwt(svids: Any, bundles: Any) -> None:
    for svid in svids.svids:
        click.echo(f"token({clean(svid.spiffe_id)}):\n\t{clean(svid.svid)}")
        if svid.hint:
            click.echo(f"hint({clean(svid.spiffe_id)}):\n\t{clean(svid.hint)}")
    show_jwt_bundles(bundles)


def show_jwt_bundles(bundles: Any) -> None:
    """Each trust domain with its JWK Set."""
    for name, text in sorted(bundles.bundles.items()):
        lines = text.decode(errors="replace").split("\n")
        click.echo(f"bundle({clean(name)}):\n\t" + "\n".join(clean(line) for line in lines))


@command(
    "wit",
    example="node-agent api fetch wit\nnode-agent api fetch wit --write /run/web/wit",
    short_help="Fetch WIT-SVIDs",
)
@flag("--spiffe-id", "spiffeID", help="Only this identity of the process.")
@_timeout
@flag("--write", metavar="DIR", help="Write wit.N.token and wit.N.key.jwk (0600) into this existing directory.")
@endpoint_flags
@output_flag
def fetch_wit(*, socket_path: str | None, instance: str | None, output: str, timeout: float, **given: Any) -> None:
    """Fetch the WIT-SVIDs of this process and show what they say. Private keys are only ever written to files."""
    directory = output_directory(given["write"]) if given["write"] else None
    request = workload_pb2.WITSVIDRequest(spiffe_id=given["spiffe_id"] or "")
    with connect(endpoint(socket_path, instance, os.environ), AGENT) as channel:
        stream = Stub(channel, SERVICE).FetchWITSVID(request, metadata=SECURITY_HEADER, timeout=timeout)
        response = _first(stream, "WIT-SVIDs")
        stream.cancel()
    if directory:
        files = {}
        for number, svid in enumerate(response.svids):
            files[f"wit.{number}.token"] = (svid.wit_svid, PRIVATE)
            files[f"wit.{number}.key.jwk"] = (svid.wit_svid_key, PRIVATE)
        for path in write_files(directory, files):
            click.echo(f"Wrote {path}")
    elif output == "json":
        print_json(_without_keys(response))
    else:
        show_wit(response)


def show_wit(response: Any) -> None:
    """Each token, without its key."""
    for svid in response.svids:
        click.echo(f"wit({clean(svid.spiffe_id)}):\n\t{clean(svid.wit_svid)}")
        if svid.hint:
            click.echo(f"hint({clean(svid.spiffe_id)}):\n\t{clean(svid.hint)}")


def _without_keys(response: Any) -> Message:
    copy = workload_pb2.WITSVIDResponse()
    copy.CopyFrom(response)
    for svid in copy.svids:
        svid.ClearField("wit_svid_key")
    return copy


@command(
    "jwt",
    example="node-agent api validate jwt --audience https://api.example.org --svid TOKEN\n"
    "node-agent api validate jwt --audience db --svid - < token.txt",
    short_help="Have a JWT-SVID validated",
)
@flag("--audience", required=True, help="The name of whoever validates: it must stand in the token.")
@flag("--svid", required=True, help="The token; - reads it from standard input, where no other user can see it.")
@_timeout
@endpoint_flags
@output_flag
def validate_jwt(
    *, socket_path: str | None, instance: str | None, output: str, timeout: float, audience: str, svid: str
) -> None:
    """Ask the agent whether a token proves an identity, and show what it says."""
    token = sys.stdin.read(MAX_TOKEN_BYTES + 1).strip() if svid == "-" else svid
    request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
    with connect(endpoint(socket_path, instance, os.environ), AGENT) as channel:
        try:
            answer = Stub(channel, SERVICE).ValidateJWTSVID(request, metadata=SECURITY_HEADER, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                text = clean(error.details() or "")
                raise Failure(f"SVID is not valid: {text}", "fetch a new token for this audience") from None
            raise
    if output == "json":
        print_json(answer)
        return
    claims = json_format.MessageToDict(answer.claims)
    click.echo("SVID is valid.")
    click.echo(f"SPIFFE ID : {clean(answer.spiffe_id)}")
    click.echo(f"Claims    : {json.dumps(claims, separators=(',', ':'), sort_keys=True)}")


@command("jwt", example="node-agent api watch jwt", short_help="Follow the bundles that verify JWT-SVIDs")
@endpoint_flags
@output_flag
def watch_jwt(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Follow the JWT bundles this process may see. Each update is printed as it arrives, until Ctrl-C."""
    follow(
        endpoint(socket_path, instance, os.environ),
        lambda stub: stub.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=SECURITY_HEADER),
        lambda response, number: _print_update(response, number, output, show_jwt_bundles, "bundles"),
    )


@command("wit", example="node-agent api watch wit", short_help="Follow WIT-SVIDs")
@endpoint_flags
@output_flag
def watch_wit(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Follow the WIT-SVIDs of this process. Each update is printed as it arrives, until Ctrl-C."""
    follow(
        endpoint(socket_path, instance, os.environ),
        lambda stub: stub.FetchWITSVID(workload_pb2.WITSVIDRequest(), metadata=SECURITY_HEADER),
        lambda response, number: _print_update(_without_keys(response), number, output, show_wit, "WIT-SVIDs"),
    )


def _print_update(response: Any, number: int, output: str, show: Any, what: str) -> None:
    if output == "json":
        print_json(response)
        return
    click.echo(f"Update {number}: {what}")
    show(response)
    click.echo()
