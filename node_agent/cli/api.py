"""`node-agent api`: what the Workload API says to the process that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click
import grpc

from node_agent.cli import svid_text
from node_agent.cli.endpoint import AGENT, endpoint, endpoint_flags
from node_agent.cli.streams import SECURITY_HEADER, SERVICE, follow
from spiffe_core.clock import SystemClock
from spiffe_core.terminal.connection import connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.pem_files import output_directory, write_files
from spiffe_core.terminal.printing import count_line, output_flag, print_json
from spiffe_core.terminal.values import SECONDS
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import Stub

_TOKENS = "node_agent.cli.api_tokens"
_VALIDATE = "node_agent.cli.api_validate"


@click.group("api", cls=Group)
def group() -> None:
    """The Workload API, as a workload sees it: what is granted depends on the process that asks."""


@click.group(
    "fetch",
    cls=Group,
    default="x509",
    lazy={
        "x509": (f"{__name__}:fetch_x509", "Fetch X.509-SVIDs"),
        "jwt": (f"{_TOKENS}:fetch_jwt", "Fetch JWT-SVIDs"),
        "wit": (f"{_TOKENS}:fetch_wit", "Fetch WIT-SVIDs"),
    },
)
def fetch() -> None:
    """Fetch identities once. Without a kind, X.509-SVIDs are fetched."""


@click.group(
    "watch",
    cls=Group,
    default="x509",
    lazy={
        "x509": (f"{__name__}:watch_x509", "Follow X.509-SVIDs"),
        "jwt": (f"{_TOKENS}:watch_jwt", "Follow the bundles that verify JWT-SVIDs"),
        "wit": (f"{_TOKENS}:watch_wit", "Follow WIT-SVIDs"),
    },
)
def watch() -> None:
    """Follow what the Workload API says. Without a kind, X.509-SVIDs are followed."""


@click.group(
    "validate",
    cls=Group,
    lazy={
        "x509": (f"{_VALIDATE}:validate_x509", "Validate an X.509-SVID"),
        "jwt": (f"{_TOKENS}:validate_jwt", "Have a JWT-SVID validated"),
        "wit": (f"{_VALIDATE}:validate_wit", "Validate a WIT-SVID with its proof"),
    },
)
def validate() -> None:
    """Validate SVIDs of others with the bundles this process may see."""


def _responses(channel: grpc.Channel, timeout: float | None) -> Iterator[workload_pb2.X509SVIDResponse]:
    stream: Iterator[workload_pb2.X509SVIDResponse] = Stub(channel, SERVICE).FetchX509SVID(
        workload_pb2.X509SVIDRequest(), metadata=SECURITY_HEADER, timeout=timeout
    )
    return stream


@command(
    "x509",
    example="node-agent api fetch x509\nnode-agent api fetch x509 --write /run/web/tls --timeout 10s",
    short_help="Fetch X.509-SVIDs",
)
@flag("--timeout", type=SECONDS, default="5s", show_default=True, help="How long to wait for an answer.")
@flag("--silent", switch=True, help="Print nothing when it works.")
@flag(
    "--write",
    metavar="DIR",
    help="Write svid.N.pem, svid.N.key (0600), bundle.N.pem and federated_bundle.N.M.pem into this existing directory.",
)
@endpoint_flags
@output_flag
def fetch_x509(
    *,
    socket_path: str | None,
    instance: str | None,
    output: str,
    timeout: float,
    silent: bool | None,
    write: str | None,
) -> None:
    """Fetch the X.509-SVIDs of this process and show them. Private keys are only ever written to files."""
    directory = output_directory(write) if write else None
    clock = SystemClock()
    started = clock.monotonic()
    with connect(endpoint(socket_path, instance, os.environ), AGENT) as channel:
        response = next(_responses(channel, timeout), None)
    if response is None:
        raise Failure("the agent ended the stream without an answer", "look at the agent's log")
    elapsed = clock.monotonic() - started
    identities = svid_text.read(response)
    paths = write_files(directory, svid_text.files(identities)) if directory else []
    if silent:
        return
    if output == "json":
        print_json(svid_text.without_keys(response))
        return
    click.echo(f"Received {count_line(len(identities), 'svid', 'svids')} after {elapsed * 1000:.1f}ms\n")
    svid_text.show(identities, clock.now())
    for path in paths:
        click.echo(f"Wrote {path}")


@command("x509", example="node-agent api watch x509\nnode-agent api watch", short_help="Follow X.509-SVIDs")
@endpoint_flags
@output_flag
def watch_x509(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Follow the X.509-SVIDs of this process.

    Each update is printed as it arrives, until Ctrl-C.
    """
    follow(
        endpoint(socket_path, instance, os.environ),
        lambda stub: stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=SECURITY_HEADER),
        lambda response, number: _print_update(response, number, output),
    )


def _print_update(response: workload_pb2.X509SVIDResponse, number: int, output: str) -> None:
    if output == "json":
        print_json(svid_text.without_keys(response))
        return
    now = SystemClock().now()
    identities = svid_text.read(response)
    click.echo(f"Update {number} at {now:%H:%M:%S} UTC: {count_line(len(identities), 'svid', 'svids')}\n")
    svid_text.show(identities, now)


group.add_command(fetch)
group.add_command(watch)
group.add_command(validate)
