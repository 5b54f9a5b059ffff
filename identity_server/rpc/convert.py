"""What the server's RPCs need of conversion beyond the shared kernel: agents, filters, paging."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from identity_server.domain.agents import AttestedAgent
from identity_server.domain.listing import AgentFilter, EntryFilter, Match
from spiffe_core.errors import InvalidRequest
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from spiffe_core.wire._gen.spire.api.types import federateswith_pb2, selector_pb2, spiffeid_pb2

MAX_TEXT_FILTER_BYTES = 2048
SLICE = 200
"""So many records are turned into messages before other calls get their turn."""
MAX_SET = 1000
"""Members of a set in a filter."""
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ([+-]\d{4}) [+-]\d\d")
"""Go's layout `2006-01-02 15:04:05 -0700 -07`, which SPIRE's command line sends."""

AgentFilterMessage = agent_pb2.ListAgentsRequest.Filter | agent_pb2.CountAgentsRequest.Filter
EntryFilterMessage = entry_pb2.ListEntriesRequest.Filter | entry_pb2.CountEntriesRequest.Filter


def agent_to_proto(agent: AttestedAgent, mask: agent_types.AgentMask | None = None) -> agent_types.Agent:
    """An agent with the fields that `mask` asks for; None asks for all."""
    message = agent_types.Agent(
        id=convert.spiffe_id_to_proto(agent.spiffe_id),
        attestation_type=agent.attestation_type,
        x509svid_serial_number=agent.serial,
        x509svid_expires_at=agent.expires_at,
        selectors=convert.selectors_to_proto(agent.selectors),
        banned=agent.banned,
        can_reattest=agent.can_reattest,
        agent_version=agent.agent_version,
    )
    return message if mask is None else convert.masked(message, mask, "id")


def agent_id_from_proto(message: spiffeid_pb2.SPIFFEID) -> SpiffeId:
    """The `id` of an agent in a request; that it is an agent's is checked by the use-case."""
    try:
        return convert.spiffe_id_from_proto(message, field="id")
    except InvalidRequest as error:
        raise InvalidRequest(f"invalid agent ID: {error.public}", field="id") from None


def agent_filter_from_proto(message: AgentFilterMessage) -> AgentFilter:
    """Which agents are asked for. A time that cannot be read is passed over, as SPIRE does."""
    selectors = None
    match = Match.EXACT
    if message.HasField("by_selector_match"):
        match = _match(message.by_selector_match.match, "filter.by_selector_match.match")
        selectors = _selectors(message.by_selector_match.selectors, "filter.by_selector_match.selectors")
    return AgentFilter(
        attestation_type=_text(message.by_attestation_type, "filter.by_attestation_type") or None,
        selectors=selectors,
        selectors_match=match,
        banned=message.by_banned.value if message.HasField("by_banned") else None,
        can_reattest=message.by_can_reattest.value if message.HasField("by_can_reattest") else None,
        expires_before=go_time(message.by_expires_before),
    )


def entry_filter_from_proto(message: EntryFilterMessage, trust_domain: TrustDomain) -> EntryFilter:
    """Which entries are asked for. Malformed and empty sets are refused."""
    spiffe_id = parent_id = None
    if message.HasField("by_spiffe_id"):
        spiffe_id = _member(message.by_spiffe_id, "SPIFFE ID", "filter.by_spiffe_id", trust_domain)
    if message.HasField("by_parent_id"):
        parent_id = _member(message.by_parent_id, "parent ID", "filter.by_parent_id", trust_domain)
    selectors, selectors_match = None, Match.EXACT
    if message.HasField("by_selectors"):
        field = "filter.by_selectors"
        selectors_match = _match(message.by_selectors.match, f"{field}.match")
        selectors = _selectors(message.by_selectors.selectors, f"{field}.selectors")
        if not selectors:
            raise InvalidRequest("malformed selectors filter: empty selector set", field=field)
    federates_with, federates_with_match = None, Match.EXACT
    if message.HasField("by_federates_with"):
        federates_with_match = _match(message.by_federates_with.match, "filter.by_federates_with.match")
        federates_with = _trust_domains(message.by_federates_with)
    return EntryFilter(
        spiffe_id=spiffe_id,
        parent_id=parent_id,
        selectors=selectors,
        selectors_match=selectors_match,
        federates_with=federates_with,
        federates_with_match=federates_with_match,
        # As in SPIRE, an empty hint and a false `downstream` ask for nothing: its `entry show` always sends the latter.
        hint=_text(message.by_hint.value, "filter.by_hint") or None,
        downstream=True if message.by_downstream.value else None,
    )


def _member(message: spiffeid_pb2.SPIFFEID, words: str, field: str, trust_domain: TrustDomain) -> SpiffeId:
    try:
        spiffe_id = convert.spiffe_id_from_proto(message, field=field)
    except InvalidRequest as error:
        raise InvalidRequest(f"malformed {words} filter: {error.public}", field=field) from None
    if not spiffe_id.member_of(trust_domain):
        raise InvalidRequest(
            f'malformed {words} filter: "{spiffe_id}" is not a member of trust domain "{trust_domain}"', field=field
        )
    return spiffe_id


def _selectors(messages: Sequence[selector_pb2.Selector], field: str) -> frozenset[Selector]:
    try:
        return convert.selectors_from_proto(messages, field=field)
    except InvalidRequest as error:
        raise InvalidRequest(f"malformed selectors filter: {error.public}", field=field) from None


def _trust_domains(message: federateswith_pb2.FederatesWithMatch) -> frozenset[TrustDomain]:
    field = "filter.by_federates_with.trust_domains"
    if not message.trust_domains:
        raise InvalidRequest("malformed federates with filter: empty trust domain set", field=field)
    if len(message.trust_domains) > MAX_SET:
        raise InvalidRequest(
            f"malformed federates with filter: at most {MAX_SET} trust domains are allowed", field=field
        )
    try:
        return frozenset(convert.trust_domain_from_proto(name, field=field) for name in message.trust_domains)
    except InvalidRequest as error:
        raise InvalidRequest(f"malformed federates with filter: {error.public}", field=field) from None


def _match(number: int, field: str) -> Match:
    try:
        return Match(number)
    except ValueError:
        raise InvalidRequest(f"{field}: unknown match behavior {number}; use 0 to 3", field=field) from None


def _text(value: str, field: str) -> str:
    if len(value.encode()) > MAX_TEXT_FILTER_BYTES:
        raise InvalidRequest(f"{field}: has more than {MAX_TEXT_FILTER_BYTES} bytes", field=field)
    return value


def go_time(text: str) -> int | None:
    """Unix seconds of a time as SPIRE's command line writes it; None for anything else."""
    found = _GO_TIME.fullmatch(text)
    if found is None:
        return None
    try:
        return int(datetime.strptime(f"{found[1]} {found[2]}", "%Y-%m-%d %H:%M:%S %z").timestamp())
    except (ValueError, OverflowError):
        return None
