"""spire.api.server.agent.v1.Agent (spire_wire section 5.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

from google.protobuf.empty_pb2 import Empty

from identity_server.domain.access import Caller
from identity_server.rpc import convert as own
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.attest_agent import AttestAgents, Attestation
from identity_server.services.fleet import Fleet
from identity_server.services.issuer import IssuedX509
from spiffe_core.errors import IdentityError, InvalidRequest
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from spiffe_core.wire._gen.spire.api.types import jointoken_pb2, x509svid_pb2

ANSWER_SECONDS = 30.0
"""For so long a node may take to send its evidence, or to answer a challenge."""
MAX_ANSWER_BYTES = 1024 * 1024

Requests = AsyncIterator[agent_pb2.AttestAgentRequest]


class AgentApi:
    """Joining, renewing and managing agents."""

    def __init__(self, attest: AttestAgents, fleet: Fleet) -> None:
        self._attest = attest
        self._fleet = fleet

    async def AttestAgent(self, requests: Requests, _context: Context) -> AsyncIterator[agent_pb2.AttestAgentResponse]:
        """Evidence in, challenges out, answers in, an SVID out."""
        caller = current_caller()
        messages = aiter(requests)
        first = await _next(messages)
        try:
            attestation = self._begin(caller, first)
            with closing(attestation):
                challenge = await attestation.step()
                while challenge is not None:
                    yield agent_pb2.AttestAgentResponse(challenge=challenge.data)
                    challenge = await attestation.step(_answer(await _next(messages)))
        except IdentityError as error:
            self._attest.refused(caller, first.params.data.type, error)
            raise
        joined = await self._attest.join(caller, attestation)
        result = agent_pb2.AttestAgentResponse.Result(svid=svid_to_proto(joined.svid), reattestable=joined.reattestable)
        yield agent_pb2.AttestAgentResponse(result=result)

    async def RenewAgent(self, request: agent_pb2.RenewAgentRequest, _context: Context) -> agent_pb2.RenewAgentResponse:
        """The next SVID of the calling agent; its serial is pending until first used."""
        if not request.HasField("params"):
            raise InvalidRequest("params cannot be nil", field="params")
        svid = await self._attest.renew(current_caller(), request.params.csr)
        return agent_pb2.RenewAgentResponse(svid=svid_to_proto(svid))

    async def PostStatus(self, request: agent_pb2.PostStatusRequest, _context: Context) -> agent_pb2.PostStatusResponse:
        """The agent's version. The bundle serial is not used, as in SPIRE."""
        await self._fleet.note_version(current_caller(), request.agent_version)
        return agent_pb2.PostStatusResponse()

    async def CreateJoinToken(
        self, request: agent_pb2.CreateJoinTokenRequest, _context: Context
    ) -> jointoken_pb2.JoinToken:
        """A token for one node, shown once."""
        alias = None
        if request.HasField("agent_id"):
            try:
                alias = convert.spiffe_id_from_proto(request.agent_id, field="agent_id")
            except InvalidRequest as error:
                raise InvalidRequest(f"invalid agent ID: {error.public}", field="agent_id") from None
        made = await self._fleet.create_join_token(current_caller(), ttl=request.ttl, token=request.token, alias=alias)
        return jointoken_pb2.JoinToken(value=made.value, expires_at=made.expires_at)

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, _context: Context) -> agent_types.Agent:
        """One agent."""
        agent = await self._fleet.get(own.agent_id_from_proto(request.id))
        return own.agent_to_proto(agent, convert.mask_of(request, "output_mask", agent_types.AgentMask))

    async def ListAgents(self, request: agent_pb2.ListAgentsRequest, _context: Context) -> agent_pb2.ListAgentsResponse:
        """Agents by filter and page."""
        wanted = own.agent_filter_from_proto(request.filter)
        page = await self._fleet.page(wanted, request.page_token, request.page_size)
        mask = convert.mask_of(request, "output_mask", agent_types.AgentMask)
        response = agent_pb2.ListAgentsResponse(next_page_token=page.next_token)
        for number, agent in enumerate(page, 1):
            response.agents.append(own.agent_to_proto(agent, mask))
            if not number % own.SLICE:
                await asyncio.sleep(0)
        return response

    async def CountAgents(
        self, request: agent_pb2.CountAgentsRequest, _context: Context
    ) -> agent_pb2.CountAgentsResponse:
        """How many agents fit the filter."""
        count = await self._fleet.count(own.agent_filter_from_proto(request.filter))
        return agent_pb2.CountAgentsResponse(count=count)

    async def DeleteAgent(self, request: agent_pb2.DeleteAgentRequest, _context: Context) -> Empty:
        """Evict: forget the agent."""
        await self._fleet.delete(current_caller(), own.agent_id_from_proto(request.id))
        return Empty()

    async def BanAgent(self, request: agent_pb2.BanAgentRequest, _context: Context) -> Empty:
        """Let the agent in no more."""
        await self._fleet.ban(current_caller(), own.agent_id_from_proto(request.id))
        return Empty()

    def _begin(self, caller: Caller, request: agent_pb2.AttestAgentRequest) -> Attestation:
        if request.WhichOneof("step") != "params":
            raise InvalidRequest("malformed param: missing params", field="params")
        params = request.params
        if not params.HasField("data"):
            raise InvalidRequest("malformed param: missing attestation data", field="params.data")
        if not params.HasField("params"):
            raise InvalidRequest("malformed param: missing X509-SVID parameters", field="params.params")
        return self._attest.begin(caller, params.data.type, params.data.payload, params.params.csr)


def svid_to_proto(svid: IssuedX509) -> x509svid_pb2.X509SVID:
    """A freshly signed SVID as an answer."""
    return convert.x509_svid_to_proto(svid.chain, svid.spiffe_id, svid.not_after)


async def _next(messages: Requests) -> agent_pb2.AttestAgentRequest:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await anext(messages)
    except TimeoutError:
        raise InvalidRequest(f"nothing was sent for {ANSWER_SECONDS:.0f} s; start the attestation again") from None
    except StopAsyncIteration:
        raise InvalidRequest("the stream ended before the attestation did") from None


def _answer(request: agent_pb2.AttestAgentRequest) -> bytes:
    if request.WhichOneof("step") != "challenge_response" or not request.challenge_response:
        raise InvalidRequest("malformed param: missing challenge response", field="challenge_response")
    if len(request.challenge_response) > MAX_ANSWER_BYTES:
        raise InvalidRequest(
            f"malformed param: challenge response has more than {MAX_ANSWER_BYTES} bytes", field="challenge_response"
        )
    return request.challenge_response
