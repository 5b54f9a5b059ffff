"""`--wait`: return when a change is in force at every agent that is connected."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any, Final, cast

import click
import grpc

from identity_server.cli.server import Service, server_channel
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, flag
from spiffe_core.terminal.printing import clean, count_line, timestamp
from spiffe_core.terminal.values import SECONDS
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire.services import Stub

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Propagation"]
DEFAULT_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 600.0
_NAMED: Final = 10


def waitable(function: F) -> F:
    """Give a command whose effect can be waited for its flags, and wait after it has done what it does."""

    @functools.wraps(function)
    def waiting(*, wait: bool | None, wait_timeout: float, **given: Any) -> Any:
        if not 0 < wait_timeout <= LONGEST_SECONDS:
            raise Failure("--wait-timeout must be more than 0 and at most 10m", "for example: --wait-timeout 60s")
        code = function(**given)
        if wait and not code:
            with server_channel(given["socket_path"], given["instance"]) as channel:
                wait_for_agents(channel, wait_timeout)
        return code

    decorated: Any = flag(
        "--wait-timeout",
        "waitTimeout",
        type=SECONDS,
        default=DEFAULT_SECONDS,
        metavar="DURATION",
        help="How long --wait waits, at most 10m.  [default: 30s]",
    )(waiting)
    decorated = flag("--wait", switch=True, help="Return when every connected agent has the change in force.")(
        decorated
    )
    return cast("F", decorated)


def wait_for_agents(channel: grpc.Channel, seconds: float) -> None:
    """Wait for the newest change, saying how far it is; only agents of the server that is asked count.

    Raises:
        Failure: some have not got it in time. The change itself stands.
    """
    begun = time.monotonic()
    stub: Any = Stub(channel, SERVICE)
    call = stub.AwaitAgents(pb.AwaitAgentsRequest(timeout_ms=int(seconds * 1000)), timeout=seconds + DEFAULT_SECONDS)
    standing = pb.AwaitAgentsResponse()
    shown = 0
    for standing in call:
        total = standing.reached + _behind(standing)
        if not standing.over and time.monotonic() - begun > 1 and sys.stderr.isatty():
            line = f"in force at {standing.reached} of {count_line(total, 'agent', 'agents')} ..."
            click.echo(f"\r{line:<{shown}}", nl=False, err=True)
            shown = len(line)
    if shown:
        click.echo(err=True)
    late = _behind(standing)
    if not standing.over or late:
        names = "".join(f"\n  {clean(one)}" for one in standing.behind[:_NAMED])
        more = f"\n  and {late - _NAMED} more" if late > _NAMED else ""
        raise Failure(
            f"the change is stored, but {count_line(late, 'agent has', 'agents have')} not got it yet:{names}{more}",
            "each gets it as soon as it can be reached; `identity-server agent show --spiffe-id ID` tells how far one is",
            final=False,
        )
    polls = f", {standing.polling} of which poll" if standing.polling else ""
    took = f"{(time.monotonic() - begun) * 1000:.0f} ms"
    click.echo(f"In force at {count_line(standing.reached, 'agent', 'agents')}{polls}, after {took}.", err=True)


def _behind(standing: pb.AwaitAgentsResponse) -> int:
    return max(standing.connected + standing.polling - standing.reached, len(standing.behind))


def how_far(channel: grpc.Channel, agent_id: str) -> str:
    """How far one agent is, in words."""
    try:
        answer = Service(channel, SERVICE)("ListProgress", pb.ListProgressRequest(agent_id=agent_id))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return "not known: this server cannot tell"
    if not answer.agents:
        return "not known: the agent neither follows nor polls this server"
    one = answer.agents[0]
    place = f"revision {one.revision} of {answer.revision}"
    if not one.connected:
        return f"{place} (polls, last at {timestamp(one.polled_at)})"
    late = f"; {count_line(one.streams_behind, 'workload stream does', 'workload streams do')} not read"
    return f"{place} (pushed){late if one.streams_behind else ''}"
