"""`identity-server agent purge`: evict agents that are long gone."""

from __future__ import annotations

from typing import Any

import click
import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from identity_server.cli.agent import SERVICE, all_agents
from identity_server.cli.server import SERVER, Service, server_channel, server_flags
from spiffe_core.clock import SystemClock
from spiffe_core.terminal.connection import failure_of
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.printing import clean, count_line, output_flag, print_json, spiffe_id_text
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2

_MONTH = 30 * 24 * 3600


@command("purge", example="identity-server agent purge -expiredFor 48h -dryRun")
@flag("--dry-run", "dryRun", switch=True, help="Only say which agents would be evicted.")
@flag(
    "--expired-for",
    "expiredFor",
    type=WHOLE_SECONDS,
    default=_MONTH,
    help="Since when the agent's SVID has expired.  [default: 720h]",
)
@server_flags
@output_flag
def purge(*, socket_path: str | None, instance: str | None, output: str, **given: Any) -> None:
    """Evict agents whose SVID has been expired for long, among those that can attest again by themselves."""
    before = SystemClock().now().timestamp() - given["expired_for"]
    results: list[dict[str, Any]] = []
    with server_channel(socket_path, instance) as channel:
        call = Service(channel, SERVICE)
        wanted = agent_pb2.ListAgentsRequest.Filter(by_can_reattest=BoolValue(value=True))
        for agent in all_agents(call, wanted):
            if agent.x509svid_expires_at >= before:
                continue
            result: dict[str, Any] = {"agent_id": spiffe_id_text(agent.id), "deleted": False}
            if not given["dry_run"]:
                try:
                    call("DeleteAgent", agent_pb2.DeleteAgentRequest(id=agent.id))
                    result["deleted"] = True
                except grpc.RpcError as error:
                    result["error"] = failure_of(error, SERVER).what
            results.append(result)
    if output == "json":
        print_json({"expired_agents": results})
        return
    _print(results, dry_run=bool(given["dry_run"]))


def _print(results: list[dict[str, Any]], *, dry_run: bool) -> None:
    if not results:
        click.echo("No agents to purge.")
        return
    click.echo(f"Found {count_line(len(results), 'expired agent', 'expired agents')}\n")
    if dry_run:
        click.echo("\nAgents that can be purged:")
    for deleted, heading in ((True, "Agents purged:"), (False, "Agents not purged:")):
        some = [result for result in results if result["deleted"] is deleted]
        if some and not dry_run:
            click.echo(heading)
        for result in some:
            click.echo(f"SPIFFE ID         : {clean(result['agent_id'])}")
            if "error" in result:
                click.echo(f"Error             : {clean(result['error'])}")
