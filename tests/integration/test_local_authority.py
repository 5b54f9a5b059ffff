"""Forced rotation through the LocalAuthority service (spire_wire section 5.6, spire_features section 20, A15)."""

import asyncio
import json

import grpc.aio
import pytest

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.live_server import entry, live_server, sign, spiffe_id, wanted
from tests.tokens import parts

KINDS = {"X509": "x509", "JWT": "jwt", "WIT": "wit"}
FIELDS = {"Prepare": "prepared_authority", "Activate": "activated_authority", "Taint": "tainted_authority", "Revoke": "revoked_authority"}  # fmt: skip
KEY = generate(KeyKind.EC_P256)


async def call(live, verb, kind, authority_id=None):
    fields = {} if authority_id is None else {"authority_id": authority_id}
    request = getattr(pb, f"{verb}{kind}AuthorityRequest")(**fields)
    answer = await getattr(live.local, f"{verb}{kind}Authority")(request, timeout=30)
    return getattr(answer, FIELDS[verb])


async def states(live, kind):
    request = getattr(pb, f"Get{kind}AuthorityStateRequest")()
    answer = await getattr(live.local, f"Get{kind}AuthorityState")(request, timeout=10)
    return {name: getattr(answer, name).authority_id for name in ("active", "prepared", "old") if answer.HasField(name)}


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


def in_bundle(live, kind):
    own = live.state.bundles.own
    listed = {"X509": own.x509_authorities, "JWT": own.jwt_authorities, "WIT": own.wit_authorities}[kind]
    return {one.key_id: one.tainted for one in listed}


@pytest.fixture
async def live():
    async with live_server(wit={"enabled": True}) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
async def test_a_forced_rotation_from_prepare_to_revoke(live, kind):
    """Section 20 in order; the sequence number rises each time; every step is audited with its actor before its effect."""
    first = (await states(live, kind))["active"]
    assert in_bundle(live, kind) == {first: False}
    sequences = [live.state.bundles.own.sequence]

    prepared = await call(live, "Prepare", kind)
    second = prepared.authority_id
    assert await states(live, kind) == {"active": first, "prepared": second}
    assert prepared.expires_at > live.clock.now().timestamp()
    sequences.append(live.state.bundles.own.sequence)

    live.clock.move(11)
    assert (await call(live, "Activate", kind, second)).authority_id == second
    assert await states(live, kind) == {"active": second, "old": first}
    assert (await call(live, "Taint", kind, first)).authority_id == first
    assert in_bundle(live, kind) == {first: True, second: False}
    assert (await call(live, "Taint", kind, first)).authority_id == first, "repeating it changes nothing"
    sequences.append(live.state.bundles.own.sequence)

    assert (await call(live, "Revoke", kind, first)).authority_id == first
    assert in_bundle(live, kind) == {second: False}
    assert await states(live, kind) == {"active": second}
    sequences.append(live.state.bundles.own.sequence)
    assert sequences == sorted(set(sequences))

    live.server.audit.close()
    lines = map(json.loads, (live.server.settings.data_dir.parent / "audit.jsonl").read_text().splitlines())
    by_hand = [
        (one["change"], one["authority_id"])
        for one in lines
        if one["event"] == "authority" and one.get("actor") and one["outcome"] == "done"
    ]
    assert by_hand == [("prepare", second), ("activate", second), ("taint", first), ("taint", first), ("revoke", first)]
    keys = json.loads((live.server.settings.data_dir / "keys.json").read_text())["keys"]
    slots = {"X509": "x509-CA", "JWT": "JWT-Signer", "WIT": "WIT-Signer"}[kind]
    assert [name for name in keys if name.startswith(slots)] == [f"{slots}-B"], "the revoked key is destroyed"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_may_not_be_done(live, kind):
    """The status table of spire_wire section 5.6."""
    agent = await live.join()
    assert (await refused(states(agent, kind)))[0] == "PERMISSION_DENIED"
    active = (await states(live, kind))["active"]
    invalid = "INVALID_ARGUMENT"
    assert await refused(call(live, "Activate", kind, "")) == (invalid, "no authority ID provided")
    assert await refused(call(live, "Activate", kind, "nope")) == (invalid, "unexpected authority ID")
    assert await refused(call(live, "Activate", kind, active)) == (invalid, "unexpected authority ID")
    assert await refused(call(live, "Taint", kind, "")) == (invalid, "no authority ID provided")
    assert await refused(call(live, "Taint", kind, "nope")) == (invalid, "unexpected authority ID")
    assert await refused(call(live, "Taint", kind, active)) == (invalid, "unable to taint current local authority")
    for bad in ("", "nope", active):
        code, details = await refused(call(live, "Revoke", kind, bad))
        assert (code, details.startswith("invalid authority ID: ")) == (invalid, True)
    prepared = (await call(live, "Prepare", kind)).authority_id
    assert (await refused(call(live, "Taint", kind, prepared)))[0] == invalid
    assert "prepared" in (await refused(call(live, "Revoke", kind, prepared)))[1]
    live.clock.move(11)
    await call(live, "Activate", kind, prepared)
    code, details = await refused(call(live, "Activate", kind, active))
    assert (code, "only Prepared authorities can be activated" in details) == ("INTERNAL", True)
    code, details = await refused(call(live, "Revoke", kind, active))
    assert (code, "not tainted" in details) == ("INTERNAL", True)


async def test_kinds_do_not_mix(live):
    """The id of a JWT key is unknown among X.509 authorities, and the other way round."""
    ids = {kind: (await states(live, kind))["active"] for kind in KINDS}
    for kind in KINDS:
        for other in ids.keys() - {kind}:
            assert await refused(call(live, "Taint", kind, ids[other])) == (
                "INVALID_ARGUMENT",
                "unexpected authority ID",
            )


async def test_upstream_calls_need_an_upstream_and_disabled_kinds_are_unimplemented():
    async with live_server(jwt={"disabled": True}) as live:
        for verb in ("Taint", "Revoke"):
            request = getattr(pb, f"{verb}X509UpstreamAuthorityRequest")(subject_key_id="aa")
            answer = getattr(live.local, f"{verb}X509UpstreamAuthority")(request, timeout=10)
            assert (await refused(answer))[0] == "FAILED_PRECONDITION"
        for kind in ("JWT", "WIT"):
            assert (await refused(states(live, kind)))[0] == "UNIMPLEMENTED"
            for verb in FIELDS:
                authority_id = None if verb == "Prepare" else "x"
                assert (await refused(call(live, verb, kind, authority_id)))[0] == "UNIMPLEMENTED"


async def test_activation_waits_until_the_authority_has_been_published_for_ten_seconds(live):
    """A15: the call answers when it signs; the former one signs meanwhile."""
    prepared = (await call(live, "Prepare", "JWT")).authority_id
    first = (await states(live, "JWT"))["active"]
    activation = asyncio.ensure_future(call(live, "Activate", "JWT", prepared))
    await asyncio.sleep(0.3)
    assert not activation.done()
    request = svid_pb2.MintJWTSVIDRequest(id=spiffe_id("/x"), audience=["a"])
    minted = await live.svid.MintJWTSVID(request, timeout=10)
    assert parts(minted.svid.token)[0]["kid"] == first
    live.clock.move(11)
    assert (await asyncio.wait_for(activation, 5)).authority_id == prepared
    minted = await live.svid.MintJWTSVID(request, timeout=10)
    assert parts(minted.svid.token)[0]["kid"] == prepared


async def test_preparing_again_replaces_what_was_prepared(live):
    """Section 20: the replaced one never signs."""
    first = (await call(live, "Prepare", "X509")).authority_id
    second = (await call(live, "Prepare", "X509")).authority_id
    assert (await states(live, "X509"))["prepared"] == second != first
    live.clock.move(11)
    assert await refused(call(live, "Activate", "X509", first)) == ("INVALID_ARGUMENT", "unexpected authority ID")
    assert (await call(live, "Activate", "X509", second)).authority_id == second


async def test_an_authority_of_a_server_that_is_gone_can_be_tainted_and_revoked(live):
    """A15: it stands in the bundle and in nobody's journal."""
    first = (await states(live, "X509"))["active"]
    await call(live, "Prepare", "X509")
    live.clock.move(11)
    await call(live, "Activate", "X509", (await states(live, "X509"))["prepared"])
    await live.server.store.execute(lambda uow: uow.authorities.remove(first))
    assert (await call(live, "Taint", "X509", first)).authority_id == first
    assert in_bundle(live, "X509")[first] is True
    revoked = await call(live, "Revoke", "X509", first)
    assert revoked.expires_at > 0
    assert first not in in_bundle(live, "X509")


async def test_tainting_renews_the_servers_own_certificate_and_revoking_cuts_connections(live):
    """Section 20: at once; the agent whose certificate the revoked authority anchored must come back."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    await sign(agent, wanted(entry_id, KEY))
    before = live.server.own.identity
    old = (await states(live, "X509"))["active"]
    fresh = (await call(live, "Prepare", "X509")).authority_id
    live.clock.move(11)
    await call(live, "Activate", "X509", fresh)
    assert not await live.server.own.tick(), "activation alone replaces nothing"
    await call(live, "Taint", "X509", old)
    assert await live.server.own.tick()
    assert live.server.own.identity is not before
    anchor = verify_x509_svid(live.server.own.identity.chain, live.state.bundles.get, now=live.clock.now()).anchor_der
    assert [one.key_id for one in live.state.bundles.own.x509_authorities if one.der == anchor] == [fresh]
    (result,) = await sign(agent, wanted(entry_id, KEY))
    assert result.status.code == 0, "what a tainted authority signed still verifies"
    assert live.server.dismiss_strangers() == 0
    bundle = await agent.bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
    assert sorted(one.tainted for one in bundle.x509_authorities) == [False, True], "agents learn of it"
    await call(live, "Revoke", "X509", old)
    assert live.server.dismiss_strangers() == 1
    assert (await refused(sign(agent, wanted(entry_id, KEY))))[0] in {"UNAVAILABLE", "UNAUTHENTICATED"}
