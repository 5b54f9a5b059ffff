"""muniment.server.explain.v1.Explain: why a workload would get an identity, or none (architecture A10)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from identity_server.domain.agents import check_agent_id
from identity_server.domain.lint_codes import LintCode
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.explain import ExplainEntitlement
from identity_server.services.lint_entries import LintEntries
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import InvalidRequest
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.muniment.agent.explain.v1 import explain_pb2 as answer_pb
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2 as pb
from spiffe_core.wire._gen.spire.api.types import entry_pb2
from spiffe_core.wire.convert_explanation import explanation_to_proto

MAX_SELECTORS: Final = 1_000
MAX_IDS: Final = 10_000


class ExplainApi:
    """Answers administrators in full, and agents with a count."""

    def __init__(self, explain: ExplainEntitlement, lint: LintEntries, *, trust_domain: TrustDomain) -> None:
        self._explain = explain
        self._lint = lint
        self._trust_domain = trust_domain

    async def Explain(self, request: pb.ExplainRequest, _context: Context) -> answer_pb.ExplainResponse:
        """What a workload with these selectors gets from this agent, and why."""
        agent = check_agent_id(SpiffeId.parse(request.agent_id, field="agent_id"), self._trust_domain)
        found = await self._explain.of(agent, _selectors(request.selectors), self._decode)
        return explanation_to_proto(found)

    async def Elsewhere(self, request: pb.ElsewhereRequest, _context: Context) -> pb.ElsewhereResponse:
        """How many entries match that are not the calling agent's, and below which parent the first stands."""
        caller = current_caller()
        assert caller.spiffe_id is not None, "the access table lets only agents in here"
        found = await self._explain.elsewhere(caller.spiffe_id, _selectors(request.selectors))
        if found is None:
            return pb.ElsewhereResponse()
        return pb.ElsewhereResponse(entries=found.count, parent_id=found.parent_id)

    async def LintEntries(self, request: pb.LintEntriesRequest, _context: Context) -> pb.LintEntriesResponse:
        """What is wrong with registration entries."""
        if len(request.ids) > MAX_IDS:
            raise InvalidRequest(f"ids: give at most {MAX_IDS}, or none to have all entries looked at", field="ids")
        found = await self._lint.of(self._decode, frozenset(request.ids) or None, _codes(request.ignored_codes))
        return pb.LintEntriesResponse(
            findings=[
                pb.LintFinding(
                    code=one.code.value, entry_id=one.entry_id, spiffe_id=one.spiffe_id, text=one.text, fix=one.fix
                )
                for one in found.findings
            ],
            counts={code.value: count for code, count in found.counts.items()},
            entries=found.entries,
            complete=found.complete,
        )

    def _decode(self, wire: bytes) -> RegistrationEntry:
        return convert.entry_from_proto(entry_pb2.Entry.FromString(wire), trust_domain=self._trust_domain)


def _selectors(texts: object) -> frozenset[Selector]:
    given = list(texts)  # type: ignore[call-overload]  # a repeated field
    if not 0 < len(given) <= MAX_SELECTORS:
        raise InvalidRequest(f"selectors: give 1 to {MAX_SELECTORS}", field="selectors")
    return frozenset(map(Selector.parse, given))


def _codes(names: Iterable[str]) -> frozenset[LintCode]:
    try:
        return frozenset(map(LintCode, names))
    except ValueError:
        known = ", ".join(one.value for one in LintCode)
        raise InvalidRequest(f"ignored_codes: one is no code; known: {known}", field="ignored_codes") from None
