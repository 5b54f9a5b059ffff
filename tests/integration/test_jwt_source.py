"""JwtSource against an agent that signs real tokens: cache, renewal ahead, bundles, and what is taken away."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from spiffe_core.bundle import JwtAuthority
from spiffe_core.bundle_document import dump_token_keys
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import (
    Forbidden,
    InvalidRequest,
    NoIdentityIssued,
    Unavailable,
    Unimplemented,
    VerificationFailed,
)
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire.services import handlers
from tests.doubles.live_server import MovableClock
from tests.doubles.scripted_backend import ScriptedBackend
from tests.doubles.workload_endpoint import SERVICE, workload_endpoint
from tests.tokens import token
from workload_api.client import Backoff, WorkloadApiClient
from workload_api.jwt_source import JwtSource

TD, OTHER = TrustDomain("example.org"), TrustDomain("fed.test")
ME, SECOND = SpiffeId(TD, "/me"), SpiffeId(TD, "/second")
ALL_OF_LIFE = 300.0


class SigningAgent:
    """Answers FetchJWTSVID with a new token each time, unless `refusal` says no; FetchJWTBundles with what is `put`."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.life, self.refusal, self.claims, self.asked = ALL_OF_LIFE, None, {}, []
        self.heard = asyncio.Condition()
        self.gate = asyncio.Event()
        self.gate.set()
        self.messages = asyncio.Queue()
        self.put({TD: [("k1", self.key)]})

    def put(self, keys):
        sets = {
            str(name.id): dump_token_keys([JwtAuthority(kid, spki_der(key.public_key())) for kid, key in held])
            for name, held in keys.items()
        }
        self.messages.put_nowait(workload_pb2.JWTBundlesResponse(bundles=sets))

    def signed(self, audience, subject=ME, **claims):
        said = {"sub": str(subject), "aud": list(audience), "exp": SystemClock().now().timestamp() + self.life}
        return token(self.key, {"alg": "ES256", "kid": "k1", "typ": "JWT"}, {**said, **claims})

    async def FetchJWTSVID(self, request, _context):
        self.asked.append((tuple(request.audience), request.spiffe_id))
        async with self.heard:
            self.heard.notify_all()
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        subject = request.spiffe_id or str(ME)
        number = {"n": len(self.asked)}
        svid = self.signed(request.audience, subject, **number, **self.claims)
        return workload_pb2.JWTSVIDResponse(svids=[{"spiffe_id": subject, "svid": svid}])

    async def FetchJWTBundles(self, _request, _context):
        while True:
            message = await self.messages.get()
            if isinstance(message, Exception):
                raise message
            yield message

    async def until_asked(self, times):
        async with asyncio.timeout(20), self.heard:
            await self.heard.wait_for(lambda: len(self.asked) >= times)


@asynccontextmanager
async def source(agent=None, **options):
    agent = agent or SigningAgent()
    backoff = Backoff(first=0.01, longest=0.01)
    async with workload_endpoint(ScriptedBackend(), service=handlers(SERVICE, agent)) as endpoint:
        async with WorkloadApiClient(endpoint.address, backoff=backoff) as client, JwtSource(client, **options) as made:
            yield agent, made


async def test_a_token_is_asked_for_once_and_served_to_all():
    """One request for callers who come together; the order of audiences means nothing; others are other tokens."""
    async with source() as (agent, ours):
        agent.gate.clear()
        together = [asyncio.ensure_future(ours.token(["db", "api"])) for _ in range(5)]
        await agent.until_asked(1)
        agent.gate.set()
        first, *rest = await asyncio.gather(*together)
        assert {one.token for one in rest} == {first.token}
        assert (await ours.token(["api", "db"])).token == first.token
        assert agent.asked == [(("api", "db"), "")]
        assert (await ours.token("db")).token != first.token
        named = await ours.token("db", spiffe_id=SECOND)
        assert named.spiffe_id == SECOND
        assert agent.asked[1:] == [(("db",), ""), (("db",), str(SECOND))]
        assert first.token not in repr(ours._held), "a bearer token is in no repr"


async def test_a_token_that_is_used_is_renewed_ahead_and_one_that_is_not_is_not():
    async with source() as (agent, ours):
        agent.life = 2.0
        first = await ours.token("db")
        assert await ours.token("db") == first, "used since it came"
        agent.life = ALL_OF_LIFE
        await agent.until_asked(2)
        async with asyncio.timeout(20):
            while (newer := await ours.token("db")) == first:
                await asyncio.sleep(0.01)
        assert newer.token != first.token
        assert len(agent.asked) == 2
        agent.life = 0.3
        await ours.token("unused")
        async with asyncio.timeout(20):
            while len(ours) > 1:
                await asyncio.sleep(0.01)
        assert len(agent.asked) == 3, "nobody took it: it ended and was dropped"


async def test_an_old_token_is_served_while_the_agent_is_away_and_never_past_its_end():
    """R14: from cache until it expires; tried again with growing pauses."""
    clock = MovableClock()
    async with source(clock=clock, draw=lambda: 0.0) as (agent, ours):
        first = await ours.token("db")
        agent.refusal = Unavailable("the server is away")
        clock.move(ALL_OF_LIFE * 0.6)
        assert await ours.token("db") == first
        clock.move(ALL_OF_LIFE * 0.6)
        with pytest.raises(Unavailable, match="the server is away"):
            await ours.token("db")
        agent.refusal = None
        agent.life = ALL_OF_LIFE * 3
        assert (await ours.token("db")).token != first.token


async def test_a_refused_identity_takes_its_tokens_away():
    """WAPI-41: on a refusal of the token, and of the bundles."""
    clock = MovableClock()
    async with source(clock=clock, draw=lambda: 0.0) as (agent, ours):
        await ours.wait_ready()
        await ours.token("db")
        agent.refusal = NoIdentityIssued()
        clock.move(ALL_OF_LIFE * 0.6)
        with pytest.raises(Forbidden, match="no identity issued"):
            await ours.token("db")
        assert len(ours) == 0
        agent.refusal, agent.life = None, ALL_OF_LIFE * 3
        await ours.token("db")
        version = ours.updates.version
        agent.messages.put_nowait(NoIdentityIssued())
        await asyncio.wait_for(ours.updates.changed(version), 20)
        assert len(ours) == 0
        with pytest.raises(Forbidden, match="no identity issued"):
            _ = ours.bundles
        version = ours.updates.version
        agent.put({TD: [("k1", agent.key)]})
        await asyncio.wait_for(ours.updates.changed(version), 20)
        assert set(ours.bundles) == {TD}


async def test_tokens_are_verified_with_the_newest_bundles():
    """WAPI-36 to WAPI-41: complete states replace each other; another audience, domain or key proves nothing."""
    other = ec.generate_private_key(ec.SECP256R1())
    async with source() as (agent, ours):
        caller = await ours.validate(agent.signed(["me"]), "me")
        assert caller.spiffe_id == ME
        for received in (agent.signed(["you"]), agent.signed(["me"], "spiffe://fed.test/x"), agent.signed(["me"])[:-4]):
            with pytest.raises(VerificationFailed):
                await ours.validate(received, ["me"])
        version = ours.updates.version
        agent.put({TD: [("k1", other)], OTHER: [("k1", agent.key)]})
        await asyncio.wait_for(ours.updates.changed(version), 20)
        assert (await ours.validate(agent.signed(["me"], "spiffe://fed.test/x"), "me")).spiffe_id.path == "/x"
        with pytest.raises(VerificationFailed):
            await ours.validate(agent.signed(["me"]), "me")


BAD_BUNDLES = {
    "no bundle": {},
    "a name that is none": {"example org": b'{"keys":[]}'},
    "no key set": {"spiffe://example.org": b"[]"},
    "text": {"spiffe://example.org": b"keys"},
}


async def test_a_message_that_cannot_be_read_changes_nothing():
    """WAPI-16, N-XW: the error is there to be seen, the state before it stays."""
    async with source() as (agent, ours):
        before = await ours.wait_ready()
        for case, bundles in BAD_BUNDLES.items():
            ours.last_error = None
            agent.messages.put_nowait(workload_pb2.JWTBundlesResponse(bundles=bundles))
            async with asyncio.timeout(20):
                while ours.last_error is None:
                    await asyncio.sleep(0.001)
            assert ours.bundles == before, case
        version = ours.updates.version
        foreign = {"kid": "x", "kty": "oct", "k": "AAAA"}
        certificate = {"use": "x509-svid", "kty": "EC"}
        document = json.dumps({"keys": [foreign, certificate]}).encode()
        agent.messages.put_nowait(workload_pb2.JWTBundlesResponse(bundles={str(TD.id): document}))
        await asyncio.wait_for(ours.updates.changed(version), 20)
        assert ours.bundles[TD].jwt_authorities == (), "keys of other uses verify no token (WAPI-39)"


async def test_what_is_held_is_bounded_and_single_use_tokens_are_not_held():
    """The token used longest ago goes first; a `jti` says that each call wants one of its own."""
    async with source(most=2) as (agent, ours):
        one = await ours.token("1")
        await ours.token("2")
        assert await ours.token("1") == one
        await ours.token("3")
        assert len(ours) == 2
        assert await ours.token("1") == one
        assert len(agent.asked) == 3
        agent.claims = {"jti": "unique"}
        assert (await ours.token("4")).token != (await ours.token("4")).token
        assert len(ours) == 2


BAD_TOKENS = {
    "of somebody else": {"sub": "spiffe://example.org/other"},
    "without an end": {"exp": None},
    "with an end that is no number": {"exp": True},
}


async def test_a_token_that_is_not_what_was_asked_for_is_refused():
    async with source() as (agent, ours):
        for case, claims in BAD_TOKENS.items():
            agent.claims = claims
            with pytest.raises(InvalidRequest):
                await ours.token("db")
                pytest.fail(case)
        agent.claims = {"exp": 1}
        with pytest.raises(Unavailable, match="has ended"):
            await ours.token("db")
        for audience in ([], [""], ""):
            with pytest.raises(InvalidRequest):
                await ours.token(audience)
        assert len(ours) == 0


async def test_it_says_why_there_are_no_bundles():
    agent = SigningAgent()
    agent.messages = asyncio.Queue()
    async with source(agent) as (_, ours):
        with pytest.raises(Unavailable, match="wait_ready"):
            _ = ours.bundles
        with pytest.raises(Unavailable, match=r"within 0\.01 s"):
            await ours.wait_ready(0.01)
        agent.messages.put_nowait(Unimplemented("the JWT profile is not offered here"))
        with pytest.raises(Unimplemented, match="not offered"):
            await ours.wait_ready(20)
    with pytest.raises(ValueError, match="at least one"):
        JwtSource(object(), most=0)
