"""`node-agent api`: what the Workload API says to the process that asks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Final

import click
import grpc

from node_agent.cli import svid_text
from node_agent.cli.endpoint import AGENT, endpoint, endpoint_flags
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

SERVICE: Final = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
SECURITY_HEADER: Final = (("workload.spiffe.io", "true"),)
_LONGEST_PAUSE: Final = 30.0


@click.group("api", cls=Group)
def group() -> None:
    """The Workload API, as a workload sees it: what is granted depends on the process that asks."""


@click.group("fetch", cls=Group, default="x509")
def fetch() -> None:
    """Fetch identities once. Without a kind, X.509-SVIDs are fetched."""


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


@command("watch", example="node-agent api watch")
@endpoint_flags
@output_flag
def watch(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Follow the X.509-SVIDs of this process.

    Each update is printed as it arrives, until Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs begin with it ignored
    target = endpoint(socket_path, instance, os.environ)
    updates, pause = 0, 1.0
    try:
        while True:
            try:
                with connect(target, AGENT) as channel:
                    for response in _responses(channel, None):
                        updates, pause = updates + 1, 1.0
                        _print_update(response, updates, output)
            except Failure as failure:
                if not updates or failure.final:
                    raise
                click.echo(f"{failure.what}; asking again in {pause:.0f}s", err=True)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    except KeyboardInterrupt:
        return


def _print_update(response: workload_pb2.X509SVIDResponse, number: int, output: str) -> None:
    if output == "json":
        print_json(svid_text.without_keys(response))
        return
    now = SystemClock().now()
    identities = svid_text.read(response)
    click.echo(f"Update {number} at {now:%H:%M:%S} UTC: {count_line(len(identities), 'svid', 'svids')}\n")
    svid_text.show(identities, now)


fetch.add_command(fetch_x509)
group.add_command(fetch)
group.add_command(watch)
