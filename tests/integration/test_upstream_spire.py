"""The spire upstream: who we are by the Workload API, signatures and keys over mTLS, and the upstream's bundle followed."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from identity_server.settings_upstream_network import UpstreamSpireSection
from identity_server.upstream.spire import OLDER_POLLS, SpireUpstream
from spiffe_core.bundle import JwtAuthority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidRequest, NoIdentityIssued, Unavailable, Unimplemented
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2
from tests.builders import TD
from tests.doubles.scripted_backend import WorkloadCa
from tests.doubles.upstream_server import NESTED, UpstreamDouble, spoiled

KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=TD.id)


def jwt_key(kid):
    return JwtAuthority(kid, spki_der(generate(KeyKind.EC_P256).public_key()), expires_at=2_000_000_000)


@asynccontextmanager
async def following(double, *, ready=10.0, poll=0.05, **over):
    """The adapter, started. It polls every 50 ms, or hardly ever with `poll=3600`."""
    document = {
        "server_address": "127.0.0.1",
        "server_port": double.port,
        "workload_api_socket": str(double.socket),
        **over,
    }
    made = SpireUpstream(
        UpstreamSpireSection.model_validate(document),
        trust_domain=TD,
        clock=SystemClock(),
        jitter=lambda: 0.0,
        poll_seconds=poll,
        ready_seconds=ready,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()
        await made.close()  # twice does nothing


@asynccontextmanager
async def nested(**over):
    double = UpstreamDouble()
    async with double.agent(), double.server(), following(double, **over) as made:
        yield double, made


async def until(fact, seconds=25.0):
    async with asyncio.timeout(seconds):
        while not fact():
            await asyncio.sleep(0.01)


def roots(made):
    return {one.der: one.tainted for one in made.view.value.x509_authorities}


async def refusal(made):
    with pytest.raises(Unavailable) as caught:
        await made.mint_x509_ca(CSR, 3600)
    return caught.value.public


async def test_a_ca_is_signed_for_the_identity_that_the_agent_gives():
    """NewDownstreamX509CA with the SVID of the downstream entry; its roots are those of the bundle."""
    async with nested() as (double, made):
        minted = await made.mint_x509_ca(CSR, 3600)
        ours = read_certificate(minted.chain[0])
        assert spki_der(ours.certificate.public_key()) == spki_der(KEY.public_key())
        assert minted.roots == (double.ca.der,)
        assert double.called("NewDownstreamX509CA") == [f"spiffe://example.org{NESTED}"]
        assert roots(made) == {double.ca.der: False}


async def test_roots_added_tainted_and_withdrawn_above_are_shown():
    """By polling: the agent says nothing here."""
    async with nested() as (double, made):
        await until(lambda: roots(made) == {double.ca.der: False})
        new = WorkloadCa()
        double.publish(roots={double.ca.der: False, new.der: False})
        await until(lambda: roots(made) == {double.ca.der: False, new.der: False})
        double.publish(roots={double.ca.der: True, new.der: False})
        await until(lambda: roots(made)[double.ca.der])
        double.publish(roots={new.der: False}, jwt=(jwt_key("above"),))
        await until(lambda: roots(made) == {new.der: False})
        assert [one.key_id for one in made.view.value.jwt_authorities] == ["above"]


async def test_what_the_agent_hears_is_followed_at_once():
    """With an hour between two polls, a Workload API update brings the new bundle."""
    async with nested(poll=3600) as (double, made):
        await until(lambda: roots(made))
        new = WorkloadCa()
        double.publish(roots={double.ca.der: True, new.der: False})
        double.tell_agent()
        await until(lambda: roots(made) == {double.ca.der: True, new.der: False})


async def test_an_unchanged_bundle_wakes_nobody():
    async with nested() as (double, made):
        await until(lambda: roots(made))
        version, polls = made.view.version, len(double.called("GetBundle"))
        await until(lambda: len(double.called("GetBundle")) > polls + 3)
        assert made.view.version == version


async def test_a_jwt_key_is_published_and_all_of_them_come_back():
    async with nested(poll=3600) as (double, made):
        double.publish(jwt=(jwt_key("above"),))
        own = jwt_key("ours")
        assert [one.key_id for one in await made.publish_jwt_authority(own)] == ["above", "ours"]
        assert [one.key_id for one in made.view.value.jwt_authorities] == ["above", "ours"]
        assert double.jwt[1].expires_at == own.expires_at


async def test_a_bundle_read_before_a_publication_does_not_undo_it():
    """A read under way when our key is published is void, and repeated."""
    async with nested(poll=3600) as (double, made):
        await until(lambda: roots(made))
        before = double.bundle
        double.gate = asyncio.Event()
        count = len(double.called("GetBundle"))
        double.tell_agent()
        await until(lambda: len(double.called("GetBundle")) > count)
        read = made._server.bundle

        async def stale():
            made._server.bundle = read
            await read()
            return before

        gate, double.gate = double.gate, None
        made._server.bundle = stale
        await made.publish_jwt_authority(jwt_key("ours"))
        gate.set()
        polls = len(double.called("GetBundle"))
        await until(lambda: len(double.called("GetBundle")) > polls)
        await until(lambda: made._bundle is not None and made._bundle.jwt_authorities)
        assert [one.key_id for one in made.view.value.jwt_authorities] == ["ours"]


async def test_an_older_bundle_is_passed_over_until_it_was_seen_often():
    """A server that is behind, of several; against one whose database was set back."""
    async with nested() as (double, made):
        double.publish(jwt=(jwt_key("new"),))
        await until(lambda: made.view.value.jwt_authorities)
        polls = len(double.called("GetBundle"))
        double.sequence, double.jwt = 1, ()
        await until(lambda: len(double.called("GetBundle")) > polls + 3)
        assert made.view.value.jwt_authorities
        await until(lambda: not made.view.value.jwt_authorities)
        assert len(double.called("GetBundle")) >= polls + OLDER_POLLS


async def test_a_missing_downstream_entry_is_explained():
    async with nested() as (double, made):
        double.downstream.clear()
        text = await refusal(made)
        assert "has no downstream entry for this server's SPIFFE ID spiffe://example.org/nested" in text
        assert "entry create -downstream -spiffeID spiffe://example.org/nested" in text
        with pytest.raises(Unavailable, match="downstream"):
            await made.publish_jwt_authority(jwt_key("ours"))


async def test_an_agent_that_knows_nothing_of_us_is_explained_and_heard_later():
    """PermissionDenied from the Workload API (WEP-24): asked again, until the entry was created."""
    double = UpstreamDouble()
    double.backend.troubles += [NoIdentityIssued() for _ in range(2)]
    async with double.agent(), double.server(), following(double, ready=0.2) as made:
        assert "issues no identity to this server: create its entry" in await refusal(made)
        await until(lambda: roots(made))
        await made.mint_x509_ca(CSR, 3600)


async def test_an_identity_taken_away_is_not_used_any_more():
    """WAPI-28: entry deleted. The authorities known so far stay shown."""
    async with nested(ready=0.2) as (double, made):
        await made.mint_x509_ca(CSR, 3600)
        double.backend.troubles += [NoIdentityIssued() for _ in range(50)]
        double.backend.publish(double.ca.view(bundle=double.bundle))
        await until(lambda: made._identity.value is None)
        assert "issues no identity" in await refusal(made)
        assert roots(made) == {double.ca.der: False}
        double.backend.troubles.clear()
        double.tell_agent()
        await until(lambda: made._identity.value is not None)
        await made.mint_x509_ca(CSR, 3600)


async def test_a_rotated_identity_is_presented():
    async with nested(poll=3600) as (double, made):
        await made.mint_x509_ca(CSR, 3600)
        double.downstream.add("spiffe://example.org/other")
        double.tell_agent("/other")
        await until(lambda: made._svid().spiffe_id.path == "/other")
        await made.mint_x509_ca(CSR, 3600)
        assert double.called("NewDownstreamX509CA")[-1] == "spiffe://example.org/other"


async def test_an_expired_identity_is_said(monkeypatch):
    async with nested(poll=3600) as (_, made):
        await until(lambda: roots(made))
        late = made._svid().not_after
        monkeypatch.setattr(made._clock, "now", lambda: late, raising=False)
        assert "has expired and the agent" in await refusal(made)


async def test_an_absent_agent_is_named(tmp_path):
    double = UpstreamDouble()
    double.socket = tmp_path / "nobody.sock"
    async with double.server(), following(double, ready=0.3) as made:
        assert f"no identity from the agent at {tmp_path}/nobody.sock" in await refusal(made)


async def test_an_agent_of_another_trust_domain_is_named():
    double = UpstreamDouble("fed.test")
    async with double.agent(), double.server(), following(double) as made:
        await until(lambda: made._identity.value is not None)
        assert "belongs to trust domain fed.test, and this server to example.org" in await refusal(made)


async def test_a_server_that_is_not_the_upstream_is_not_believed():
    """Same SPIFFE ID, other authority: nothing is sent to it."""
    impostor, double = UpstreamDouble(), UpstreamDouble()
    async with double.agent(), impostor.server():
        double.port = impostor.port
        async with following(double) as made:
            assert "is not proven by the trust bundle" in await refusal(made)
    assert impostor.calls == []


async def test_a_server_of_another_trust_domain_is_not_believed():
    """Its authority is even known, as that of a federated trust domain would be."""
    other, double = UpstreamDouble("fed.test"), UpstreamDouble()
    double.ca.key = other.ca.key
    async with double.agent(), other.server():
        double.port = other.port
        async with following(double) as made:
            await refusal(made)
    assert other.calls == []


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        pytest.param("NewDownstreamX509CA", b"\xff\xff", "cannot be read|refused", id="no-message"),
        pytest.param(
            "NewDownstreamX509CA", spoiled(svid_pb2.NewDownstreamX509CAResponse), "x509_ca_chain: ", id="empty"
        ),
        pytest.param(
            "NewDownstreamX509CA",
            spoiled(svid_pb2.NewDownstreamX509CAResponse, ca_cert_chain=[b"x"], x509_authorities=[b"x"]),
            "must not contain a root",
            id="root-in-chain",
        ),
    ],
)
async def test_answers_that_may_not_be_used_are_refused(method, answer, words):
    async with nested() as (double, made):
        double.answers[method] = answer
        with pytest.raises(Unavailable, match=words):
            await made.mint_x509_ca(CSR, 3600)
        double.answers.clear()
        await made.mint_x509_ca(CSR, 3600)


@pytest.mark.parametrize(
    "bundle",
    [
        pytest.param(spoiled(bundle_pb2.Bundle, trust_domain="fed.test", sequence_number=9), id="other-domain"),
        pytest.param(spoiled(bundle_pb2.Bundle, trust_domain="example.org", sequence_number=9), id="empty"),
        pytest.param(
            spoiled(bundle_pb2.Bundle, trust_domain="example.org", x509_authorities=[{"asn1": b"x"}]), id="no-der"
        ),
        pytest.param(b"\xff\xff", id="no-message"),
    ],
)
async def test_bundles_that_may_not_be_used_change_nothing(bundle):
    """An upstream that shows no authority, or those of another trust domain, takes nothing away."""
    async with nested() as (double, made):
        await until(lambda: roots(made))
        before, polls = made.view.value, len(double.called("GetBundle"))
        double.answers["GetBundle"] = bundle
        double.tell_agent()
        await until(lambda: len(double.called("GetBundle")) > polls)
        await made.mint_x509_ca(CSR, 3600)  # the certificate came with roots of its own
        assert made.view.value == before


async def test_other_refusals_are_passed_on():
    async with nested(poll=3600) as (double, made):
        await until(lambda: roots(made))
        double.troubles.append(InvalidRequest("CSR must have exactly one URI SAN, it has 2"))
        assert "refused NewDownstreamX509CA: CSR must have exactly one URI SAN" in await refusal(made)
        double.troubles.append(Unimplemented("not here"))
        with pytest.raises(Unimplemented):
            await made.publish_jwt_authority(jwt_key("ours"))


async def test_an_upstream_that_comes_back_is_used_again():
    """Server, then agent, gone and back: failures are named meanwhile, and all heals by itself (R11)."""
    double = UpstreamDouble()
    async with double.agent():
        async with double.server(), following(double) as made:
            await made.mint_x509_ca(CSR, 3600)
        async with following(double, ready=5.0) as made:
            await until(lambda: made._identity.value is not None)
            assert "cannot reach the server at 127.0.0.1" in await refusal(made)
            async with double.server():
                await until(lambda: roots(made))
                await made.mint_x509_ca(CSR, 3600)


async def test_the_agents_end_costs_nothing_while_the_svid_is_good():
    double = UpstreamDouble()
    async with double.server():
        agent = double.agent()
        await agent.__aenter__()
        async with following(double) as made:
            await made.mint_x509_ca(CSR, 3600)
            await agent.__aexit__(None, None, None)
            await made.mint_x509_ca(CSR, 3600)
            double.publish(jwt=(jwt_key("later"),))
            await until(lambda: made.view.value.jwt_authorities)
