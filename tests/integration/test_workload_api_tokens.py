"""The JWT and WIT profiles over a real socket: what is served, in which order it is refused, what is validated."""

import asyncio
import json

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from spiffe_core.bundle import TrustBundle, WitAuthority
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import Unavailable
from spiffe_core.jwt_svid import MAX_AUDIENCES, JwtSvid
from spiffe_core.spiffe_id import SpiffeId
from tests import jwt_cases
from tests.doubles.clock import FakeClock
from tests.doubles.scripted_backend import ScriptedBackend, ScriptedTokens, WorkloadCa
from tests.doubles.workload_endpoint import workload_endpoint
from tests.tokens import token
from workload_api.backend import WitIdentity, WitView, WorkloadView

INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
WEB, DB = SpiffeId.parse("spiffe://example.org/web"), SpiffeId.parse("spiffe://example.org/db")


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture(scope="module")
def identity(ca):
    return ca.identity("/web", seconds=86400 * 365)


def svid(spiffe_id=WEB, text="a.b.c", hint=""):
    return JwtSvid(text, spiffe_id, ("db",), 0, 2**33, hint)


def view(*identities, bundle=jwt_cases.OWN, federated=()):
    return WorkloadView(identities, bundle, federated)


async def refused(call):
    """(status, text) of a call that gives no message."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await (call.read() if hasattr(call, "read") else call)
    return refusal.value.code(), refusal.value.details()


async def test_a_token_for_each_identity_with_hints_made_unique(identity):
    """WAPI-33, WAPI-34, WAPI-35: all of them in order, every field set, a hint once."""
    tokens = ScriptedTokens(svid(hint="main"), svid(DB, "d.e.f", hint="main"))
    async with workload_endpoint(ScriptedBackend(view(identity)), jwt=tokens) as endpoint:
        answer = await endpoint.call("FetchJWTSVID", audience=["db", "api", "db"])
        assert [(one.spiffe_id, one.svid, one.hint) for one in answer.svids] == [
            (str(WEB), "a.b.c", "main"),
            (str(DB), "d.e.f", ""),
        ]
        only = await endpoint.call("FetchJWTSVID", audience=["db"], spiffe_id=str(DB))
        assert [one.spiffe_id for one in only.svids] == [str(DB)]
    assert tokens.asked == [(("db", "api"), None), (("db",), DB)]  # N-A-13: each audience once


BAD_REQUESTS = {
    "N-A-11 no audience": ({}, "audience must be specified"),
    "N-A-12 an empty audience": ({"audience": [""]}, "audience: must not be blank"),
    "N-A-12 one empty among others": ({"audience": ["db", " "]}, "audience: must not be blank"),
    "too many audiences": ({"audience": [str(n) for n in range(MAX_AUDIENCES + 1)]}, "at most"),
    "an endless audience": ({"audience": ["x" * 2000]}, "at most"),
    "N-A-14 a malformed ID": ({"audience": ["db"], "spiffe_id": "example.org/web"}, "invalid requested SPIFFE ID"),
    "N-A-14 upper case": ({"audience": ["db"], "spiffe_id": "spiffe://Example.org/web"}, "invalid requested SPIFFE ID"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_a_bad_request_is_refused_before_the_caller_is_looked_at(identity, case):
    fields, text = BAD_REQUESTS[case]
    backend, tokens = ScriptedBackend(view(identity)), ScriptedTokens(svid())
    async with workload_endpoint(backend, jwt=tokens) as endpoint:
        status, said = await refused(endpoint.call("FetchJWTSVID", **fields))
        assert status is INVALID
        assert text in said
    assert backend.attested == []
    assert tokens.asked == []


async def test_whoever_is_not_entitled_learns_nothing(identity):
    """N-A-09, N-A-15, WAPI-36: one text for a neighbour's ID, another domain's and one that does not exist."""
    async with workload_endpoint(ScriptedBackend(view(identity)), jwt=ScriptedTokens(svid())) as endpoint:
        answers = {
            await refused(endpoint.call("FetchJWTSVID", audience=["db"], spiffe_id=text))
            for text in ("spiffe://example.org/db", "spiffe://fed.test/web", "spiffe://example.org/none")
        }
        assert answers == {(DENIED, "no identity issued")}


async def test_server_trouble_is_unavailable(identity):
    """N-A-27."""
    tokens = ScriptedTokens(svid())
    tokens.troubles.append(Unavailable("could not fetch JWT-SVID: the server is away"))
    async with workload_endpoint(ScriptedBackend(view(identity)), jwt=tokens) as endpoint:
        assert await refused(endpoint.call("FetchJWTSVID", audience=["db"])) == (
            UNAVAILABLE,
            "could not fetch JWT-SVID: the server is away",
        )


def mixed_bundle(ca):
    """X.509, JWT and WIT keys of one trust domain."""
    wit = (WitAuthority("w", spki_der(jwt_cases.EC384.public_key())),)
    return TrustBundle(jwt_cases.TD, ca.bundle().x509_authorities, jwt_cases.OWN.jwt_authorities, wit)


async def test_jwt_bundles_hold_jwt_keys_and_no_others(ca, identity):
    """WAPI-37, WAPI-38, WAPI-39, N-A-40: JWK Sets by trust domain ID; changes arrive, repetitions do not."""
    backend = ScriptedBackend(view(identity, bundle=mixed_bundle(ca), federated=(jwt_cases.OTHER,)))
    async with workload_endpoint(backend, jwt=ScriptedTokens()) as endpoint:
        stream = endpoint.call("FetchJWTBundles")
        bundles = {name: json.loads(text) for name, text in (await stream.read()).bundles.items()}
        assert set(bundles) == {"spiffe://example.org", "spiffe://fed.test"}
        keys = bundles["spiffe://example.org"]["keys"]
        assert [key["kid"] for key in keys] == ["k", "k2", "r", "e384", "e521"]
        assert set().union(*keys) == {"kid", "kty", "crv", "x", "y", "n", "e"}
        backend.publish(view(ca.identity("/again"), bundle=mixed_bundle(ca), federated=(jwt_cases.OTHER,)))
        backend.publish(view(identity, bundle=mixed_bundle(ca)))
        assert set((await stream.read()).bundles) == {"spiffe://example.org"}
        stream.cancel()


async def test_use_is_written_where_the_operator_wants_it(ca, identity):
    """D7."""
    backend = ScriptedBackend(view(identity))
    async with workload_endpoint(backend, jwt=ScriptedTokens(), jwt_key_use=True) as endpoint:
        text = (await endpoint.call("FetchJWTBundles").read()).bundles["spiffe://example.org"]
        assert {key["use"] for key in json.loads(text)["keys"]} == {"jwt-svid"}


@pytest.mark.parametrize("name", ["FetchJWTBundles", "FetchWITBundles"])
async def test_bundles_for_callers_without_an_identity_are_a_setting(name):
    """N-A-10, WAPI-40, WAPI-57: refused; if allowed, the own trust domain only."""
    backend = ScriptedBackend(view(federated=(jwt_cases.OTHER,)))
    profiles = {"jwt": ScriptedTokens(), "wit": ScriptedTokens()}
    async with workload_endpoint(backend, **profiles) as endpoint:
        assert await refused(endpoint.call(name)) == (DENIED, "no identity issued")
    async with workload_endpoint(backend, allow_unauthenticated_verifiers=True, **profiles) as endpoint:
        assert set((await endpoint.call(name).read()).bundles) == {"spiffe://example.org"}


# ValidateJWTSVID


@pytest.fixture
def at_now():
    return FakeClock(jwt_cases.NOW)


@pytest.fixture
def validator(identity):
    return ScriptedBackend(view(identity, federated=(jwt_cases.OTHER,)))


async def test_a_good_token_is_believed_and_its_claims_survive(validator, at_now):
    """WAPI-42, WAPI-43, WAPI-44: sub, aud as a list, exp; numbers and nested values."""
    text = jwt_cases.make(None, {"aud": jwt_cases.AUD, "nested": {"list": [1, True, None, {"x": 0.5}]}})
    async with workload_endpoint(validator, jwt=ScriptedTokens(), clock=at_now) as endpoint:
        answer = await endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=text)
    claims = MessageToDict(answer.claims)
    assert answer.spiffe_id == claims["sub"] == jwt_cases.ID
    assert claims["aud"] == [jwt_cases.AUD]
    assert claims["exp"] == jwt_cases.T + 300
    assert claims["nested"] == {"list": [1, True, None, {"x": 0.5}]}


async def test_every_negative_case_is_refused_and_every_positive_one_is_not(validator, at_now):
    """N-A-19: the N-J cases through the call; D14: InvalidArgument; nothing of the token is quoted."""
    async with workload_endpoint(validator, jwt=ScriptedTokens(), clock=at_now) as endpoint:
        for name, text in jwt_cases.ACCEPTED.items():
            answer = await endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=text)
            assert answer.spiffe_id, name
        for name, (text, _) in jwt_cases.REFUSED.items():
            status, said = await refused(endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=text))
            assert status is INVALID, name
            assert all(len(piece) < 8 or piece not in said for piece in text.split(".")), name


async def test_a_domain_the_caller_does_not_federate_with_is_unknown(identity, at_now):
    """N-A-20, WAPI-46: also when its key is in our own bundle under that kid."""
    foreign = jwt_cases.make({"kid": "f"}, {"sub": "spiffe://fed.test/x"}, key=jwt_cases.FED_KEY)
    bundle = TrustBundle(jwt_cases.TD, jwt_authorities=jwt_cases.OTHER.jwt_authorities[:1])
    async with workload_endpoint(
        ScriptedBackend(view(identity, bundle=bundle)), jwt=ScriptedTokens(), clock=at_now
    ) as endpoint:
        status, said = await refused(endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=foreign))
    assert status is INVALID
    assert "fed.test" in said


async def test_foreign_tokens_show_only_the_claims_the_operator_names(validator, at_now):
    """WAPI-43, spire_wire 6.1: sub, exp, aud, and what is allowed."""
    text = jwt_cases.make(
        {"kid": "f"}, {"sub": "spiffe://fed.test/x", "team": "blue", "secret": 1}, key=jwt_cases.FED_KEY
    )
    for allowed, extra in ((frozenset(), set()), (frozenset({"team"}), {"team"})):
        async with workload_endpoint(validator, jwt=ScriptedTokens(), clock=at_now, foreign_claims=allowed) as endpoint:
            answer = await endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=text)
        assert set(MessageToDict(answer.claims)) == {"sub", "exp", "aud"} | extra


@pytest.mark.parametrize("fields", [{}, {"audience": "x"}, {"svid": "a.b.c"}, {"audience": " ", "svid": "a.b.c"}])
async def test_validation_needs_an_audience_and_a_token(validator, fields):
    """N-A-18, WAPI-15."""
    async with workload_endpoint(validator, jwt=ScriptedTokens()) as endpoint:
        status, _ = await refused(endpoint.call("ValidateJWTSVID", **fields))
    assert status is INVALID
    assert validator.attested == []


async def test_validation_is_for_callers_with_an_identity_unless_allowed(at_now):
    backend = ScriptedBackend(view())
    fields = {"audience": jwt_cases.AUD, "svid": jwt_cases.GOOD}
    async with workload_endpoint(backend, jwt=ScriptedTokens(), clock=at_now) as endpoint:
        assert await refused(endpoint.call("ValidateJWTSVID", **fields)) == (DENIED, "no identity issued")
    async with workload_endpoint(
        backend, jwt=ScriptedTokens(), clock=at_now, allow_unauthenticated_verifiers=True
    ) as endpoint:
        assert (await endpoint.call("ValidateJWTSVID", **fields)).spiffe_id == jwt_cases.ID


async def test_a_claim_that_fits_no_protobuf_value_is_refused_in_words(validator, at_now):
    text = token(jwt_cases.EC, jwt_cases.HEADER, json.dumps(jwt_cases.CLAIMS)[:-1] + ',"big":' + "9" * 400 + "}")
    async with workload_endpoint(validator, jwt=ScriptedTokens(), clock=at_now) as endpoint:
        status, _ = await refused(endpoint.call("ValidateJWTSVID", audience=jwt_cases.AUD, svid=text))
    assert status is INVALID


# WIT


async def test_wit_svids_come_with_their_keys_and_follow_changes(identity):
    """WAPI-50, WAPI-51, WAPI-52: all identities or one; every field set; the next state arrives."""
    first = WitView((WitIdentity(WEB, "a.b.c", '{"kty":"EC"}', "main"), WitIdentity(DB, "d.e.f", '{"d":1}', "main")))
    tokens = ScriptedTokens(wits=first)
    async with workload_endpoint(ScriptedBackend(view(identity)), wit=tokens) as endpoint:
        stream, narrow = endpoint.call("FetchWITSVID"), endpoint.call("FetchWITSVID", spiffe_id=str(DB))
        found = [(one.spiffe_id, one.wit_svid, one.wit_svid_key, one.hint) for one in (await stream.read()).svids]
        assert found == [(str(WEB), "a.b.c", '{"kty":"EC"}', "main"), (str(DB), "d.e.f", '{"d":1}', "")]
        assert [one.spiffe_id for one in (await narrow.read()).svids] == [str(DB)]
        tokens.wits.publish(WitView(first.wit_svids[:1]))
        assert [one.spiffe_id for one in (await stream.read()).svids] == [str(WEB)]
        assert await refused(narrow) == (DENIED, "no identity issued")  # WAPI-53, WAPI-54
        tokens.wits.publish(WitView())
        assert await refused(stream) == (DENIED, "no identity issued")


async def test_wit_bundles_are_text_and_hold_wit_keys_only(ca, identity):
    """WAPI-49, WAPI-55, WAPI-56."""
    async with workload_endpoint(
        ScriptedBackend(view(identity, bundle=mixed_bundle(ca), federated=(jwt_cases.OTHER,))), wit=ScriptedTokens()
    ) as endpoint:
        bundles = (await endpoint.call("FetchWITBundles").read()).bundles
    assert set(bundles) == {"spiffe://example.org"}
    assert [key["kid"] for key in json.loads(bundles["spiffe://example.org"])["keys"]] == ["w"]


# Waiting for an identity


async def test_a_stream_waits_for_its_first_identity_where_the_operator_wants_it(ca):
    """Our addition: the stream stays open, delivers when an entry appears, and still ends when the last one goes."""
    backend = ScriptedBackend(ca.view())
    async with workload_endpoint(backend, wait_for_identity=True) as endpoint:
        stream = endpoint.x509_svids()
        reading = asyncio.ensure_future(stream.read())
        async with asyncio.timeout(10):
            while not backend.subscribed:
                await asyncio.sleep(0.005)
        assert not reading.done()
        backend.publish(ca.view("/late"))
        assert [one.spiffe_id for one in (await reading).svids] == ["spiffe://example.org/late"]
        backend.publish(ca.view())
        assert await refused(stream) == (DENIED, "no identity issued")
