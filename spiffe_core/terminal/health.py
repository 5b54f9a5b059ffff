"""Asking a daemon whether it is well (grpc.health.v1)."""

from __future__ import annotations

from typing import Final

import click
from grpc_health.v1 import health_pb2

from spiffe_core.terminal.connection import CALL_SECONDS, Daemon, connect
from spiffe_core.terminal.failures import Failure
from spiffe_core.wire.services import Stub

SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
SERVING: Final = health_pb2.HealthCheckResponse.SERVING


def check_health(target: str, daemon: Daemon, *, verbose: bool) -> int:
    """Print what the daemon says of itself; the exit code."""
    label = daemon.name.capitalize()
    if verbose:
        click.echo(f"Contacting the {daemon.name} at {target}...", err=True)
    try:
        with connect(target, daemon) as channel:
            answer = Stub(channel, SERVICE).Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
    except Failure as failure:
        click.echo(f"{label} is unhealthy: {failure.what}", err=True)
        if failure.advice:
            click.echo(f"  {failure.advice}", err=True)
        return 1
    if answer.status != SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        click.echo(f"{label} is unhealthy: it says {status}", err=True)
        click.echo(f"  the last lines of the {daemon.name}'s log say why", err=True)
        return 1
    click.echo(f"{label} is healthy.")
    return 0
