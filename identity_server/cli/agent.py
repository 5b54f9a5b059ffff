"""`identity-server agent`: the nodes that have proved themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
from google.protobuf.wrappers_pb2 import BoolValue

from identity_server.cli.filters import match_flag, selector_flag, selector_match, spiffe_id
from identity_server.cli.server import Service, server_channel, server_flags
from identity_server.cli.waiting import how_far, waitable
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import F, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import (
    Row,
    count_line,
    output_flag,
    print_block,
    print_json,
    print_records,
    spiffe_id_text,
    timestamp,
)
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as types_pb2

SERVICE: Final = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
PAGE: Final = 1000
MAX_PAGES: Final = 10_000
COLUMNS: Final = ("SPIFFE ID", "Attestation type", "Expiration time", "Serial number", "Can re-attest")


@click.group(
    "agent",
    cls=Group,
    lazy={"purge": ("identity_server.cli.agent_purge:purge", "Evict agents that expired long ago")},
)
def group() -> None:
    """Attested agents: the nodes that may hand out identities."""


def filter_flags(function: F) -> F:
    """The flags that `list` and `count` have in common."""
    decorators: list[Callable[[Any], Any]] = [
        flag("--attestation-type", "attestationType", default="", help="Such as join_token."),
        flag(
            "--expires-before",
            "expiresBefore",
            default="",
            metavar="TIME",
            help='Whose SVID ends before, such as "2026-01-02 15:04:05 -0700 -07".',
        ),
        flag("--banned", switch=True, help="Only banned ones (or, with =false, only the others)."),
        flag("--can-reattest", "canReattest", switch=True, help="Only those that can attest again by themselves."),
        match_flag("--match-selectors-on", "matchSelectorsOn", "node selectors"),
        selector_flag,
    ]
    for decorate in decorators:
        function = decorate(function)
    return function


def _filter(kind: type[Any], given: dict[str, Any]) -> Any:
    from identity_server.rpc.convert import go_time

    if given["expires_before"] and go_time(given["expires_before"]) is None:  # a server would pass it over
        raise Failure("--expires-before: the date is not valid", 'for example: "2026-01-02 15:04:05 -0700 -07"')
    parts: dict[str, Any] = {
        "by_attestation_type": given["attestation_type"],
        "by_expires_before": given["expires_before"],
        "by_selector_match": selector_match(given["selector"], given["match_selectors_on"]),
    }
    for name in ("banned", "can_reattest"):
        if given[name] is not None:
            parts[f"by_{name}"] = BoolValue(value=given[name])
    return kind(**parts)


def _block(agent: types_pb2.Agent) -> list[Row]:
    serial = ("Banned", "true") if agent.banned else ("Serial number", agent.x509svid_serial_number)
    rows: list[Row] = [
        ("SPIFFE ID", spiffe_id_text(agent.id)),
        ("Attestation type", agent.attestation_type),
        ("Expiration time", timestamp(agent.x509svid_expires_at)),
        serial,
        ("Can re-attest", "true" if agent.can_reattest else "false"),
    ]
    if agent.agent_version:
        rows.append(("Agent version", agent.agent_version))
    return rows


def _full_block(agent: types_pb2.Agent) -> list[Row]:
    return [*_block(agent), *(("Selectors", f"{selector.type}:{selector.value}") for selector in agent.selectors)]


def _cells(agent: types_pb2.Agent) -> list[str]:
    return [
        spiffe_id_text(agent.id),
        agent.attestation_type,
        timestamp(agent.x509svid_expires_at),
        "banned" if agent.banned else agent.x509svid_serial_number,
        "true" if agent.can_reattest else "false",
    ]


@command("list", example="identity-server agent list\nidentity-server agent list -banned=false -output json")
@filter_flags
@server_flags
@output_flag
def list_agents(*, socket_path: str | None, instance: str | None, output: str, **given: Any) -> None:
    """List attested agents and their SPIFFE IDs."""
    wanted = _filter(agent_pb2.ListAgentsRequest.Filter, given)
    with server_channel(socket_path, instance) as channel:
        agents = all_agents(Service(channel, SERVICE), wanted)
    if output == "json":
        print_json(agent_pb2.ListAgentsResponse(agents=agents))
    elif not agents:
        click.echo("No attested agents found")
    else:
        click.echo(f"Found {count_line(len(agents), 'attested agent', 'attested agents')}:\n")
        print_records(agents, _block, COLUMNS, _cells)


def all_agents(call: Service, wanted: agent_pb2.ListAgentsRequest.Filter) -> list[types_pb2.Agent]:
    """Every agent that fits, page by page."""
    agents: list[types_pb2.Agent] = []
    token = ""
    for _ in range(MAX_PAGES):
        page = call("ListAgents", agent_pb2.ListAgentsRequest(filter=wanted, page_size=PAGE, page_token=token))
        agents += page.agents
        token = page.next_page_token
        if not token:
            return agents
    raise Failure(f"the server has more than {MAX_PAGES} pages of agents", "narrow the question with filters")


@command("count", example="identity-server agent count -attestationType join_token")
@filter_flags
@server_flags
@output_flag
def count(*, socket_path: str | None, instance: str | None, output: str, **given: Any) -> None:
    """Count attested agents."""
    wanted = _filter(agent_pb2.CountAgentsRequest.Filter, given)
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("CountAgents", agent_pb2.CountAgentsRequest(filter=wanted))
    if output == "json":
        print_json(answer)
    else:
        click.echo(count_line(answer.count, "attested agent", "attested agents"))


def id_flag(function: F) -> F:
    """The flag that names one agent."""
    return flag("--spiffe-id", "spiffeID", required=True, help="The agent's SPIFFE ID.")(function)


_ID = "spiffe://example.org/spire/agent/join_token/5a6b7c8d-0000-4000-8000-000000000000"


@command("show", example=f"identity-server agent show --spiffe-id {_ID}")
@id_flag
@server_flags
@output_flag
def show(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Show one agent with its node selectors."""
    request = agent_pb2.GetAgentRequest(id=spiffe_id(given["spiffe_id"], "--spiffe-id"))
    with server_channel(socket_path, instance) as channel:
        agent = Service(channel, SERVICE)("GetAgent", request)
        if output == "json":
            print_json(agent)
            return
        far = how_far(channel, given["spiffe_id"])
    click.echo("Found an attested agent given its SPIFFE ID\n")
    print_block([*_full_block(agent), ("In force", far)])


@command("ban", example=f"identity-server agent ban --spiffe-id {_ID}")
@id_flag
@waitable
@server_flags
@output_flag
def ban(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Ban an agent.

    It is shut out at once, and may not come back until it is evicted.
    """
    request = agent_pb2.BanAgentRequest(id=spiffe_id(given["spiffe_id"], "--spiffe-id"))
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("BanAgent", request)
    if output == "json":
        print_json(answer)
    else:
        click.echo("Agent banned successfully")


@command("evict", example=f"identity-server agent evict --spiffe-id {_ID}")
@id_flag
@waitable
@server_flags
@output_flag
def evict(*, socket_path: str | None, instance: str | None, output: str, **given: str) -> None:
    """Evict an agent.

    The server forgets it: it has to attest again before it gets anything.
    """
    request = agent_pb2.DeleteAgentRequest(id=spiffe_id(given["spiffe_id"], "--spiffe-id"))
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)("DeleteAgent", request)
    if output == "json":
        print_json(answer)
    else:
        click.echo("Agent evicted successfully")


for _command in (list_agents, count, show, ban, evict):
    group.add_command(_command)
