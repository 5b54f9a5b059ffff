"""JWT-SVIDs and WIT-SVIDs over the real server: who gets which, what stands in them, what is refused (N-C-15 to N-C-22)."""

import json
import re

import grpc.aio
import pytest

from identity_server.settings import from_mapping
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_server import entry, live_server, spiffe_id
from tests.tokens import parts

KEY = spki_der(generate(KeyKind.EC_P256).public_key())
WIT = {"wit": {"enabled": True}}


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


async def new_jwt(agent, entry_id, *audience):
    request = svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=audience)
    return (await agent.svid.NewJWTSVID(request, timeout=10)).svid


async def mint_jwt(live, path="/ci", audience=("a",), ttl=0, trust_domain="example.org"):
    request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id(path, trust_domain), audience=audience, ttl=ttl)
    return (await live.svid.MintJWTSVID(request, timeout=10)).svid


async def mint_wit(live, path="/ci", public_key=KEY, algorithm="ES256", ttl=0):
    request = svid_pb2.MintWITSVIDRequest(
        id=spiffe_id(path), public_key=public_key, signing_algorithm=algorithm, ttl=ttl
    )
    return (await live.svid.MintWITSVID(request, timeout=10)).svid


def verified(live, svid, audience="a"):
    return verify_jwt_svid(svid.token, live.state.bundles.get, audience=[audience], now=live.clock.now())


def audit_lines(live, event):
    live.server.audit.close()
    text = (live.server.settings.data_dir.parent / "audit.jsonl").read_text()
    return text, [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


async def test_a_workloads_token_is_the_entrys():
    """JWT-12, JWT-19, JWT-31: ID, TTL and jti are the entry's; the token verifies by the bundle anyone may fetch; audited."""
    async with live_server() as live:
        agent = await live.join()
        plain, marked = await live.entries(
            entry("/web", agent.path, jwt_svid_ttl=120),
            entry("/api", agent.path, additional_attributes={"jwt_svid_include_jti": True}),
        )
        svid = await new_jwt(agent, plain, "a", "", "b", "a")
        believed = verified(live, svid)
        assert str(believed.spiffe_id) == "spiffe://example.org/web"
        assert believed.audience == ("a", "b")
        assert (svid.expires_at - svid.issued_at, svid.hint, svid.id.path) == (120, "", "/web")
        header, claims = parts(svid.token)
        assert header.keys() == {"alg", "kid", "typ"}
        assert re.fullmatch(r"[A-Za-z0-9]{32}", header["kid"])
        assert claims == {
            "aud": ["a", "b"], "exp": svid.expires_at, "iat": svid.issued_at, "sub": "spiffe://example.org/web",
        }  # fmt: skip
        bundle = await live.bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
        assert [key.key_id for key in bundle.jwt_authorities] == [header["kid"]]
        with_id = await new_jwt(agent, marked, "a")
        jti = parts(with_id.token)[1]["jti"]
        assert re.fullmatch(r"[A-Za-z0-9_-]{22}", jti)
        assert with_id.expires_at - with_id.issued_at == 300
        text, lines = audit_lines(live, "token")
        assert [(one["profile"], one["entry_id"], one["key_id"]) for one in lines] == [
            ("jwt_svid", plain, header["kid"]),
            ("jwt_svid", marked, header["kid"]),
        ]
        assert (lines[0]["audience"], lines[1]["jti"]) == (["a", "b"], jti)
        assert agent.path in lines[0]["actor"]
        assert svid.token not in text


async def test_foreign_and_unknown_entries_get_one_answer():
    """S21, N-C-15: NotFound, audited, no oracle."""
    async with live_server() as live:
        one, two = await live.join(), await live.join()
        (foreign,) = await live.entries(entry("/b", two.path))
        answers = {await refused(new_jwt(one, wanted, "a")) for wanted in (foreign, "no-such-entry")}
        assert answers == {("NOT_FOUND", "entry not found or not authorized")}
        assert await refused(new_jwt(one, "", "a")) == ("INVALID_ARGUMENT", "missing entry ID")
        _, lines = audit_lines(live, "refused")
        assert [line["method"] for line in lines] == ["NewJWTSVID"] * 2


@pytest.mark.parametrize("audience", [(), ("",), ("", "  ")])
async def test_a_token_needs_an_audience(audience):
    """N-C-20, JWT-14: SPIRE's words."""
    async with live_server() as live:
        agent = await live.join()
        (entry_id,) = await live.entries(entry("/web", agent.path))
        expected = ("INVALID_ARGUMENT", "at least one audience is required")
        assert await refused(new_jwt(agent, entry_id, *audience)) == expected
        assert await refused(mint_jwt(live, audience=audience)) == expected


async def test_minting_is_for_administrators_and_bounded():
    """N-C-14, N-C-20: identities outside the trust domain, reserved ones, bad TTLs and floods of audiences are refused."""
    async with live_server(jwt={"issuer": "https://idp.example.org", "default_ttl": "2m"}) as live:
        svid = await mint_jwt(live)
        assert parts(svid.token)[1]["iss"] == "https://idp.example.org"
        assert verified(live, svid).spiffe_id.path == "/ci"
        assert svid.expires_at - svid.issued_at == 120
        assert (await mint_jwt(live, ttl=7)).expires_at - svid.issued_at <= 8
        for path, words in {
            "": "add a path", "/spire/server": "reserved", "/spire/agent/x": "reserved", "/a//b": "",
        }.items():  # fmt: skip
            code, details = await refused(mint_jwt(live, path))
            assert code == "INVALID_ARGUMENT"
            assert words in details
        assert "not a member" in (await refused(mint_jwt(live, trust_domain="other.org")))[1]
        for over in ({"ttl": -1}, {"audience": [str(n) for n in range(1000)]}, {"audience": ["x" * 1_000_000]}):
            assert (await refused(mint_jwt(live, **over)))[0] == "INVALID_ARGUMENT"
        request = svid_pb2.MintJWTSVIDRequest(audience=["a"])
        assert await refused(live.svid.MintJWTSVID(request, timeout=10)) == ("INVALID_ARGUMENT", "missing SPIFFE ID")
        agent = await live.join()
        assert (await refused(mint_jwt(agent)))[0] == "PERMISSION_DENIED"
        assert (await refused(new_jwt(live, "x", "a")))[0] == "PERMISSION_DENIED"


async def test_a_token_never_outlives_its_key():
    """S37, N-C-21: exp = min(now + ttl, end of the key), to the second, as published."""
    async with live_server(ca={"ttl": "1h"}, svid={"default_x509_ttl": "5m"}) as live:
        (key,) = live.state.bundles.own.jwt_authorities
        assert (await mint_jwt(live, ttl=86_400)).expires_at == key.expires_at
        live.clock.move(3_590)
        svid = await mint_jwt(live)
        assert svid.expires_at == key.expires_at
        assert svid.expires_at > svid.issued_at
        live.clock.move(20)
        assert (await refused(mint_jwt(live)))[0] == "UNAVAILABLE"
        await live.server.authorities.tick()
        fresh = await mint_jwt(live)
        assert parts(fresh.token)[0]["kid"] != key.key_id
        assert verified(live, fresh)


async def test_jwt_svids_can_be_switched_off():
    """spire_wire 5.4: Unimplemented, and no key is made."""
    async with live_server(jwt={"disabled": True}) as live:
        agent = await live.join()
        expected = ("UNIMPLEMENTED", "JWT functionality is disabled")
        assert await refused(mint_jwt(live)) == expected
        assert await refused(new_jwt(agent, "x", "a")) == expected
        assert live.state.bundles.own.jwt_authorities == ()


@pytest.mark.parametrize(("key_type", "algorithm"), [("ec-p256", "ES256"), ("ec-p384", "ES384"), ("rsa-2048", "RS256")])
async def test_the_algorithm_is_that_of_the_key(key_type, algorithm):
    """JWT-05, WIT-06: every key type that can be configured gives an allowed one."""
    async with live_server(jwt={"key_type": key_type}, wit={"enabled": True, "key_type": key_type}) as live:
        jwt, wit = await mint_jwt(live), await mint_wit(live)
        assert [parts(one.token)[0]["alg"] for one in (jwt, wit)] == [algorithm] * 2
        assert verified(live, jwt)


async def test_wit_svids_are_off_unless_switched_on():
    """A4: all seven calls answer Unimplemented."""
    async with live_server() as live:
        agent = await live.join()
        assert (await refused(mint_wit(live)))[0] == "UNIMPLEMENTED"
        batch = svid_pb2.BatchNewWITSVIDRequest(params=[{"entry_id": "x"}])
        assert (await refused(agent.svid.BatchNewWITSVID(batch, timeout=10)))[0] == "UNIMPLEMENTED"
        assert live.state.bundles.own.wit_authorities == ()


async def test_a_wit_svid_binds_the_entrys_identity_to_a_key():
    """WIT-02 to WIT-13, WIT-27, WIT-35, WIT-36, S27: each item for itself, each with its status."""
    async with live_server(**WIT) as live:
        agent, other = await live.join(), await live.join()
        mine, foreign = await live.entries(entry("/web", agent.path), entry("/b", other.path))
        good = {"entry_id": mine, "public_key": KEY, "signing_algorithm": "ES256"}
        batch = [good, {**good, "entry_id": foreign}, {**good, "entry_id": ""}, {**good, "public_key": b"x"}, {**good, "signing_algorithm": "HS256"}, good]  # fmt: skip
        results = (await agent.svid.BatchNewWITSVID(svid_pb2.BatchNewWITSVIDRequest(params=batch), timeout=10)).results
        assert [result.status.code for result in results] == [0, 5, 3, 3, 3, 0]
        assert [result.status.message for result in results][:3] == [
            "OK", "entry not found or not authorized", "missing entry ID",
        ]  # fmt: skip
        assert [result.HasField("svid") for result in results] == [True, False, False, False, False, True]
        header, claims = parts(results[0].svid.token)
        (published,) = live.state.bundles.own.wit_authorities
        assert header == {"alg": "ES256", "kid": published.key_id, "typ": "wit+jwt"}
        assert claims.keys() == {"cnf", "exp", "iat", "sub"}
        assert claims["cnf"]["jwk"]["alg"] == "ES256"
        assert (claims["sub"], claims["exp"] - claims["iat"]) == ("spiffe://example.org/web", 3600)
        assert published.key_id not in {key.key_id for key in live.state.bundles.own.jwt_authorities}
        empty = agent.svid.BatchNewWITSVID(svid_pb2.BatchNewWITSVIDRequest(), timeout=10)
        assert await refused(empty) == ("INVALID_ARGUMENT", "missing parameters")
        flood = svid_pb2.BatchNewWITSVIDRequest(params=[{"entry_id": "x"}] * 501)
        assert (await refused(agent.svid.BatchNewWITSVID(flood, timeout=10)))[0] == "RESOURCE_EXHAUSTED"


async def test_minting_a_wit_svid_needs_a_sound_key_that_is_nobodys_authority():
    """N-C-07, N-C-22."""
    async with live_server(**WIT) as live:
        assert (await mint_wit(live, ttl=60)).expires_at
        (authority,) = live.state.bundles.own.wit_authorities
        for over in ({"public_key": b""}, {"algorithm": ""}, {"algorithm": "none"}, {"algorithm": "ES384"}, {"public_key": authority.public_key}, {"path": "/spire/x"}, {"ttl": -1}):  # fmt: skip
            assert (await refused(mint_wit(live, **over)))[0] == "INVALID_ARGUMENT", over


async def test_a_wit_svid_names_no_issuer_for_discovery():
    """N-W-22, WIT-26: there is no setting for one, and the one of JWT-SVIDs is not used again."""
    async with live_server(jwt={"issuer": "https://idp.example.org"}, wit={"enabled": True}) as live:
        assert parts((await mint_jwt(live)).token)[1]["iss"] == "https://idp.example.org"
        assert "iss" not in parts((await mint_wit(live)).token)[1]
    with pytest.raises(ConfigError, match=r"wit\.issuer"):
        from_mapping({"trust_domain": "example.org", "wit": {"enabled": True, "issuer": "https://idp.example.org"}})
