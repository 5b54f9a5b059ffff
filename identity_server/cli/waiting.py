"""`--wait`: return when a change is in force at every agent that is connected."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
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
MAX_COUNTED: Final = 500
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
    """Wait for the newest change, saying how far it is. The agents of all servers of the database count.

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
    if not standing.over or late or standing.servers_owing:
        raise Failure(
            "the change is stored, but " + _missing(standing, late),
            "each gets it as soon as it can be reached; "
            "`identity-server agent show --spiffe-id ID` tells how far one is",
            final=False,
        )
    polls = f", {standing.polling} of which poll" if standing.polling else ""
    where = f", on {standing.servers} servers" if standing.servers > 1 else ""
    took = f"{(time.monotonic() - begun) * 1000:.0f} ms"
    click.echo(f"In force at {count_line(standing.reached, 'agent', 'agents')}{polls}{where}, after {took}.", err=True)
    if standing.unknown:
        click.echo(_unknown(standing), err=True)


def _missing(standing: pb.AwaitAgentsResponse, late: int) -> str:
    """Who has not got it, in words."""
    owing = standing.servers_owing
    whose = "its" if owing == 1 else "their"
    servers = f"{count_line(owing, 'server has', 'servers have')} not told how far {whose} agents are"
    if not late and owing:
        return servers
    agents = f"{count_line(late, 'agent has', 'agents have')} not got it yet:{_names(standing.behind, late)}"
    also = f"\nand {servers}" if owing else ""
    unknown = f"\n{_unknown(standing)}" if standing.unknown else ""
    return agents + also + unknown


def _unknown(standing: pb.AwaitAgentsResponse) -> str:
    count, names = standing.unknown, _names(standing.unknown_agents, standing.unknown)
    return (
        f"Not connected: {count_line(count, 'agent', 'agents')} of a server that does not answer, unknown since "
        f"{timestamp(standing.unknown_since)}:{names}"
    )


def _names(agents: Sequence[str], total: int) -> str:
    more = f"\n  and {total - _NAMED} more" if total > _NAMED else ""
    return "".join(f"\n  {clean(one)}" for one in agents[:_NAMED]) + more


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
        return "not known: the agent neither follows nor polls a server"
    one = answer.agents[0]
    place = f"revision {one.revision} of {answer.revision}"
    if one.unknown_since:
        return f"not known since {timestamp(one.unknown_since)}: server {clean(one.server_id)} does not answer"
    if one.server_id:
        place += f", at server {clean(one.server_id)}"
    if not one.connected:
        return f"{place} (polls, last at {timestamp(one.polled_at)})"
    late = f"; {count_line(one.streams_behind, 'workload stream does', 'workload streams do')} not read"
    return f"{place} (pushed){late if one.streams_behind else ''}"


def in_force(channel: grpc.Channel, entry_ids: Sequence[str]) -> dict[str, pb.EntryInForce]:
    """At how many agents each of these entries is in force; empty if the server cannot tell."""
    call, found = Service(channel, SERVICE), dict[str, pb.EntryInForce]()
    for start in range(0, len(entry_ids), MAX_COUNTED):
        try:
            answer = call("CountInForce", pb.CountInForceRequest(entry_ids=entry_ids[start : start + MAX_COUNTED]))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            return {}
        found.update((one.entry_id, one) for one in answer.entries)
    return found


def in_force_text(one: pb.EntryInForce | None) -> str:
    """The same for one entry, in words."""
    if one is None:
        return "not known: this server cannot tell"
    polls = f" ({one.polling} poll)" if one.polling else ""
    unknown = f", {one.unknown} of a server that does not answer" if one.unknown else ""
    missing = "; not at" + _names(one.behind, one.agents - one.reached) if one.behind else ""
    return f"at {one.reached} of {count_line(one.agents, 'agent', 'agents')}{polls}{unknown}{missing}"
