"""What the agent's client makes of a server that answers wrongly (R41, R42, spire_wire 5.1 to 5.4)."""

import grpc
import grpc.aio
import pytest

from node_agent.ports import SvidRequest
from spiffe_core.errors import AgentRefused, IdentityError, InvalidRequest, NotFound, Refusal, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_bundle_pb2
from spiffe_core.wire.convert import bundle_to_proto
from tests.authority import SpiffeTestCA
from tests.doubles.client_of_stubs import client_of

CA = SpiffeTestCA("example.org")
CHAIN = CA.issue("spiffe://example.org/web").chain


class Prover:
    """Answers as often as it was told to."""

    name = "scripted"

    def __init__(self, *answers):
        self._answers = answers
        self.challenges = []

    def prove(self):
        challenge = yield b"payload"
        for answer in self._answers:
            self.challenges.append(challenge)
            challenge = yield answer


class Attesting:
    """An Agent service that sends a list of responses, one for each request."""

    def __init__(self, *responses):
        self.responses = responses
        self.received = []

    async def AttestAgent(self, requests, context):
        responses = iter(self.responses)
        async for request in requests:
            self.received.append(request)
            response = next(responses, None)
            if response is None:
                return
            yield response


def result(chain=CHAIN, reattestable=True):
    return agent_pb2.AttestAgentResponse(result={"svid": {"cert_chain": chain}, "reattestable": reattestable})


class GoodBundle:
    async def GetBundle(self, request, context):
        self.mask = request.output_mask
        return bundle_to_proto(CA.bundle())


async def test_attestation_goes_through_challenges(tmp_path):
    """spire_wire 5.1."""
    prover = Prover(b"one", b"two")
    agent = Attesting(
        agent_pb2.AttestAgentResponse(challenge=b"a"), agent_pb2.AttestAgentResponse(challenge=b"b"), result()
    )
    async with client_of(tmp_path, Agent=agent, Bundle=GoodBundle()) as client:
        enrolled = await client.attest(prover, b"csr")
    assert (enrolled.chain, enrolled.reattestable, enrolled.bundle.x509_roots) == (CHAIN, True, (CA.der,))
    assert prover.challenges == [b"a", b"b"]
    first, *answers = agent.received
    assert (first.params.data.type, first.params.data.payload, first.params.params.csr) == (
        "scripted",
        b"payload",
        b"csr",
    )
    assert [one.challenge_response for one in answers] == [b"one", b"two"]


ATTESTATIONS = {
    "no result": (),
    "an empty response": (agent_pb2.AttestAgentResponse(),),
    "more challenges than answers": (agent_pb2.AttestAgentResponse(challenge=b"a"),) * 3,
    "no chain": (result(chain=()),),
    "a chain of a thousand": (result(chain=CHAIN * 1000),),
    "an empty certificate": (result(chain=(b"",)),),
}


@pytest.mark.parametrize("name", ATTESTATIONS)
async def test_an_attestation_that_goes_wrong_is_an_error_not_a_crash(tmp_path, name):
    """R41."""
    async with client_of(tmp_path, Agent=Attesting(*ATTESTATIONS[name]), Bundle=GoodBundle()) as client:
        with pytest.raises(IdentityError):
            await client.attest(Prover(b"one"), b"csr")


async def test_challenges_without_end_are_ended(tmp_path):
    """R41: bounded."""
    agent = Attesting(*[agent_pb2.AttestAgentResponse(challenge=b"again")] * 1000)
    async with client_of(tmp_path, Agent=agent, Bundle=GoodBundle()) as client:
        with pytest.raises(Unavailable, match="do not end"):
            await client.attest(Prover(*[b"answer"] * 1000), b"csr")
    assert len(agent.received) < 50


async def test_a_bundle_that_cannot_be_read_after_attestation_loses_nothing(tmp_path):
    """The token is spent by then: what was issued is kept, and the bundle given by the operator is used."""

    class Away:
        async def GetBundle(self, request, context):
            raise Unavailable("later")

    async with client_of(tmp_path, Agent=Attesting(result()), Bundle=Away()) as client:
        enrolled = await client.attest(Prover(), b"csr")
    assert enrolled.bundle is None
    assert enrolled.chain == CHAIN


async def test_the_bundle_of_another_trust_domain_is_refused(tmp_path):
    class Foreign:
        async def GetBundle(self, request, context):
            return bundle_to_proto(SpiffeTestCA("evil.test").bundle())

    async with client_of(tmp_path, Bundle=Foreign()) as client:
        with pytest.raises(Unavailable, match=r"evil\.test"):
            await client.fetch_bundle()


async def test_taints_are_read(tmp_path):
    class Tainted:
        async def GetBundle(self, request, context):
            message = bundle_to_proto(CA.bundle())
            message.x509_authorities[0].tainted = True
            return message

    async with client_of(tmp_path, Bundle=Tainted()) as client:
        assert (await client.fetch_bundle()).x509_authorities[0].tainted


async def test_an_unchanged_bundle_is_read_once(tmp_path):
    """A sync with many authorities costs what changed: the same answer gives the same value."""

    class Growing:
        bundle = CA.bundle()

        async def GetBundle(self, request, context):
            return bundle_to_proto(self.bundle)

    server = Growing()
    async with client_of(tmp_path, Bundle=server) as client:
        first = await client.fetch_bundle()
        assert await client.fetch_bundle() is first
        server.bundle = server.bundle.with_x509_tainted(server.bundle.x509_authorities[0].key_id)
        assert (await client.fetch_bundle()).x509_authorities[0].tainted


async def test_garbage_in_a_bundle_is_an_error(tmp_path):
    class Garbage:
        async def GetBundle(self, request, context):
            return types_bundle_pb2.Bundle(trust_domain="example.org", x509_authorities=[{"asn1": b"garbage"}])

    async with client_of(tmp_path, Bundle=Garbage()) as client:
        with pytest.raises(IdentityError):
            await client.fetch_bundle()


async def test_bytes_that_are_no_message_are_an_error(tmp_path):
    """R41."""

    class Noise:
        async def GetBundle(self, request, context):
            return b"\xff" * 100

        GetFederatedBundle = RenewAgent = BatchNewX509SVID = PostStatus = GetBundle

        async def AttestAgent(self, requests, context):
            yield b"\xff" * 100

        SyncAuthorizedEntries = AttestAgent

    noise = Noise()
    async with client_of(tmp_path, Bundle=noise, Agent=noise, SVID=noise, Entry=noise) as client:
        for call, argument in (
            (client.fetch_federated_bundle, TrustDomain("fed.test")),
            (client.renew, b"csr"),
            (client.issue_svids, [SvidRequest("a", b"")]),
            (client.sync_entries, {}),
        ):
            with pytest.raises(Unavailable, match="cannot be read"):
                await call(argument)
        with pytest.raises(Unavailable, match="cannot be read"):
            await client.fetch_bundle()
        with pytest.raises(Unavailable, match="cannot be read"):
            await client.attest(Prover(), b"csr")


async def test_an_oversize_answer_is_an_error(tmp_path):
    """R41: bounded memory."""

    class Huge:
        async def GetBundle(self, request, context):
            return types_bundle_pb2.Bundle(x509_authorities=[{"asn1": bytes(8 * 1024 * 1024)}])

    async with client_of(tmp_path, Bundle=Huge()) as client:
        with pytest.raises(IdentityError):
            await client.fetch_bundle()


@pytest.mark.parametrize("error", [NotFound("bundle not found"), None])
async def test_a_federated_bundle_may_be_missing_or_the_method_unknown(tmp_path, error):
    class Service:
        pass

    class Missing(Service):
        async def GetFederatedBundle(self, request, context):
            raise error

    async with client_of(tmp_path, Bundle=Missing() if error else Service()) as client:
        assert await client.fetch_federated_bundle(TrustDomain("fed.test")) is None


class Issuing:
    """Answers each request for an SVID with the next of `results`."""

    def __init__(self, *results):
        self.results = results

    async def BatchNewX509SVID(self, request, context):
        return svid_pb2.BatchNewX509SVIDResponse(results=self.results)


async def test_answers_come_in_order_each_an_svid_or_an_error(tmp_path):
    service = Issuing(
        {"status": {"code": 0, "message": "OK"}, "svid": {"cert_chain": CHAIN}},
        {"status": {"code": 5, "message": "entry not found or not authorized"}},
        {"status": {"code": 3, "message": "malformed CSR"}},
        {"status": {"code": 99, "message": ""}},
        {"status": {"code": 0, "message": "OK"}},
    )
    async with client_of(tmp_path, SVID=service) as client:
        answers = await client.issue_svids([SvidRequest(f"e{n}", b"csr") for n in range(5)])
    assert answers[0] == CHAIN
    assert isinstance(answers[1], NotFound)
    assert isinstance(answers[2], InvalidRequest)
    assert all(isinstance(one, IdentityError) for one in answers[1:])


async def test_the_wrong_number_of_answers_is_refused_whole(tmp_path):
    """R42: nobody gets somebody else's certificate."""
    async with client_of(tmp_path, SVID=Issuing({"svid": {"cert_chain": CHAIN}})) as client:
        with pytest.raises(Unavailable, match="1 of 2"):
            await client.issue_svids([SvidRequest("a", b""), SvidRequest("b", b"")])


async def test_more_than_500_at_once_is_a_mistake_of_ours(tmp_path):
    async with client_of(tmp_path, SVID=Issuing()) as client:
        with pytest.raises(ValueError, match="500"):
            await client.issue_svids([SvidRequest("a", b"")] * 501)


async def test_the_reason_of_a_refusal_arrives(tmp_path):
    """spire_wire 2."""

    class Refusing:
        async def PostStatus(self, request, context):
            raise AgentRefused(Refusal.AGENT_BANNED)

    async with client_of(tmp_path, Agent=Refusing()) as client:
        with pytest.raises(AgentRefused) as caught:
            await client.post_status("v", 1)
    assert caught.value.refusal is Refusal.AGENT_BANNED


async def test_a_failed_dial_is_told_in_the_dialers_words(tmp_path):
    """gRPC says "socket closed"; the operator should read why."""
    async with client_of(tmp_path) as client:
        client._member._channel = grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody")
        client._member.last_error = Unavailable("cannot reach the server at host:1: connection refused")
        with pytest.raises(Unavailable, match="connection refused"):
            await client.fetch_bundle()
