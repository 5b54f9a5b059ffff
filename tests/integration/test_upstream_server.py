"""A server below a root in files: what it signs, how the root is replaced, and who may ask for a CA (spire_wire 5.4, 5.6)."""

from __future__ import annotations

from datetime import timedelta

import grpc
import grpc.aio
import pytest
from cryptography import x509

from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, to_pkcs8
from spiffe_core.errors import VerificationFailed
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.tls import TlsIdentity
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, certify, trusting
from tests.doubles.live_server import entry, live_server, sign, wanted
from tests.doubles.upstream_files import UpstreamFiles

TD = TrustDomain("example.org")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "pki").mkdir()
    return UpstreamFiles(tmp_path / "pki")


def bundle_of(*roots):
    return trusting(TrustBundle(TD, tuple(X509Authority(one.der) for one in roots)))


def verified(chain, *roots):
    later = SystemClock().now() + timedelta(seconds=15)  # the server's clock was moved by 11 s
    return verify_x509_svid(tuple(chain), bundle_of(*roots), now=later)


async def minted(server, path="/minted"):
    csr = build_csr(generate(KeyKind.EC_P256), spiffe_id=f"spiffe://example.org{path}")
    return (await server.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr), timeout=10)).svid


async def state(server):
    return await server.local.GetX509AuthorityState(pb.GetX509AuthorityStateRequest(), timeout=10)


async def rotate(server):
    """Prepare and activate, and give back who signs then."""
    prepared = (
        await server.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=20)
    ).prepared_authority
    server.clock.move(11)  # as if it had been published for long enough
    wish = pb.ActivateX509AuthorityRequest(authority_id=prepared.authority_id)
    await server.local.ActivateX509Authority(wish, timeout=20)
    return prepared


def ski(ca):
    return X509Authority(ca.der).key_id


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("workers", [0, 1], ids=["inline", "signing worker"])
async def test_leaves_come_with_the_certificates_between_them_and_the_root(files, workers):
    """The bundle holds the roots and not our CA; agents, workloads and the server itself present the chain (X509-SVID 5)."""
    root = SpiffeTestCA(name="root", ttl=timedelta(days=5))
    signer = root.intermediate(name="signer", ttl=timedelta(days=3))
    files.below(signer, root)
    async with live_server(upstream=files.settings(bundle=True), ca={"signing_workers": workers}) as server:
        assert server.state.bundles.own.x509_roots == (root.der,)
        agent = await server.join()
        (entry_id,) = await server.entries(entry(parent=agent.path))
        (answer,) = await sign(agent, wanted(entry_id))
        for chain in (answer.svid.cert_chain, agent.own.cert_chain, server.server.own.identity.chain):
            assert len(chain) == 3
            assert chain[2] == signer.der
            verified(chain, root)
            with pytest.raises(VerificationFailed):
                verified(chain, SpiffeTestCA(name="root"))
        active = (await state(server)).active
        assert active.upstream_authority_subject_key_id == ski(signer)
        assert active.authority_id == X509Authority(answer.svid.cert_chain[1]).key_id
        ours = x509.load_der_x509_certificate(answer.svid.cert_chain[1])
        assert answer.svid.expires_at <= ours.not_valid_after_utc.timestamp()


async def test_leaves_end_with_the_first_certificate_of_the_chain(files):
    """S37: a root about to end ends what is below it."""
    root = SpiffeTestCA(name="root", ttl=timedelta(minutes=10))
    files.root(root)
    async with live_server(upstream=files.settings()) as server:
        svid = await minted(server)
        ends = root.certificate.not_valid_after_utc.timestamp()
        assert svid.expires_at == ends
        assert (await state(server)).active.expires_at == ends


async def test_an_authority_outlives_a_restart(files, tmp_path):
    """R1: the journal knows the chain and the root; the upstream is not asked again, and may be away."""
    files.root(SpiffeTestCA(ttl=timedelta(days=2)))
    async with live_server(tmp_path / "s", upstream=files.settings()) as server:
        before = (await state(server)).active
        chain = (await minted(server)).cert_chain
    async with live_server(tmp_path / "s", upstream=files.settings()) as server:
        assert (await state(server)).active == before
        assert (await minted(server)).cert_chain[1:] == chain[1:]


async def test_the_root_is_replaced_without_a_gap(files):
    """Spire_features 20: new root on disk, prepare, activate, taint and revoke the old root; both verify meanwhile."""
    old, new = SpiffeTestCA(name="old", ttl=timedelta(days=2)), SpiffeTestCA(name="new", ttl=timedelta(days=2))
    files.root(old)
    async with live_server(upstream=files.settings()) as server:
        first = await minted(server)
        files.root(new)
        await rotate(server)
        second = await minted(server)
        assert set(server.state.bundles.own.x509_roots) == {old.der, new.der}
        verified(first.cert_chain, old)
        verified(second.cert_chain, new)
        states = await state(server)
        assert (states.active.upstream_authority_subject_key_id, states.old.upstream_authority_subject_key_id) == (
            ski(new),
            ski(old),
        )
        taint = pb.TaintX509UpstreamAuthorityRequest(subject_key_id=ski(old))
        answer = await server.local.TaintX509UpstreamAuthority(taint, timeout=10)
        assert answer.upstream_authority_subject_key_id == ski(old)
        assert [one.tainted for one in server.state.bundles.own.x509_authorities] == [True, False]
        assert await server.server.own.tick()
        verified(server.server.own.identity.chain, new)
        revoke = pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=ski(old))
        await server.local.RevokeX509UpstreamAuthority(revoke, timeout=10)
        assert server.state.bundles.own.x509_roots == (new.der,)
        assert not (await state(server)).HasField("old")
        await server.server.errands.run_waiting()
        assert len([one for one in server.server.store.state.value.authorities if one.kind == "x509"]) == 1


async def test_an_upstream_is_left_without_a_gap(files, tmp_path):
    """Spire_features 20: without [upstream] the next authority is its own root, and the old root can be taken out."""
    above = SpiffeTestCA(ttl=timedelta(days=2))
    files.root(above)
    async with live_server(tmp_path / "s", upstream=files.settings()) as server:
        first = await minted(server)
    async with live_server(tmp_path / "s") as server:
        verified((await minted(server)).cert_chain, above)
        taint = pb.TaintX509UpstreamAuthorityRequest(subject_key_id=ski(above))
        code, words = await refused(server.local.TaintX509UpstreamAuthority(taint, timeout=10))
        assert (code, "current authority" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        await rotate(server)
        ours = server.state.bundles.own.x509_roots
        assert (len(ours), ours[0]) == (2, above.der)
        verified(first.cert_chain, above)
        assert len((await minted(server)).cert_chain) == 1, "signed by a root"
        stranger = pb.TaintX509UpstreamAuthorityRequest(subject_key_id=X509Authority(ours[1]).key_id)
        code, words = await refused(server.local.TaintX509UpstreamAuthority(stranger, timeout=10))
        assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, "upstream authority is not configured")
        await server.local.TaintX509UpstreamAuthority(taint, timeout=10)
        revoke = pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=ski(above))
        await server.local.RevokeX509UpstreamAuthority(revoke, timeout=10)
        assert server.state.bundles.own.x509_roots == ours[1:]


async def test_only_the_root_of_an_old_authority_can_be_tainted(files):
    """Spire_wire 5.6: SPIRE's codes and words, case by case."""
    old, new = SpiffeTestCA(name="old", ttl=timedelta(days=2)), SpiffeTestCA(name="new", ttl=timedelta(days=2))
    files.root(old)

    def taint(key_id):
        return server.local.TaintX509UpstreamAuthority(
            pb.TaintX509UpstreamAuthorityRequest(subject_key_id=key_id), timeout=10
        )

    def revoke(key_id):
        return server.local.RevokeX509UpstreamAuthority(
            pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=key_id), timeout=10
        )

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    async with live_server(upstream=files.settings()) as server:
        assert await refused(taint("")) == (
            invalid,
            "provided subject key id is not valid: no subject key ID provided",
        )
        assert await refused(taint("00")) == (
            invalid,
            "provided subject key id is not valid: upstream authority didn't sign the old local authority",
        )
        assert await refused(taint(ski(old))) == (
            invalid,
            "provided subject key id is not valid: unable to use upstream authority singing current authority",
        )
        files.root(new)
        prepared = await server.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=20)
        assert await refused(taint(ski(new))) == (
            invalid,
            "provided subject key id is not valid: only upstream authorities signing an old authority can be used",
        )
        server.clock.move(11)
        wish = pb.ActivateX509AuthorityRequest(authority_id=prepared.prepared_authority.authority_id)
        await server.local.ActivateX509Authority(wish, timeout=20)
        code, _ = await refused(revoke(ski(old)))
        assert code is grpc.StatusCode.INTERNAL, "not tainted yet"
        own = (await state(server)).old.authority_id
        for call in (
            server.local.TaintX509Authority(pb.TaintX509AuthorityRequest(authority_id=own), timeout=10),
            server.local.RevokeX509Authority(pb.RevokeX509AuthorityRequest(authority_id=own), timeout=10),
        ):
            assert (await refused(call))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_root_that_the_upstream_still_shows_is_not_revoked(files):
    """It would come back with the next look at the upstream."""
    old, new = SpiffeTestCA(name="old", ttl=timedelta(days=2)), SpiffeTestCA(name="new", ttl=timedelta(days=2))
    files.below(old.intermediate(ttl=timedelta(days=1)), old, new)
    async with live_server(upstream=files.settings(bundle=True)) as server:
        files.below(new.intermediate(ttl=timedelta(days=1)), new, old)
        await rotate(server)
        await server.local.TaintX509UpstreamAuthority(
            pb.TaintX509UpstreamAuthorityRequest(subject_key_id=ski(old)), timeout=10
        )
        call = server.local.RevokeX509UpstreamAuthority(
            pb.RevokeX509UpstreamAuthorityRequest(subject_key_id=ski(old)), timeout=10
        )
        code, words = await refused(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "still publishes" in words


async def downstream_stubs(server, path="/nested"):
    """The stubs of a downstream server: a workload whose entry has the flag."""
    agent = await server.join()
    (entry_id,) = await server.entries(entry(path, parent=agent.path, downstream=True))
    key = generate(KeyKind.EC_P256)
    (answer,) = await sign(agent, wanted(entry_id, key))
    return await server.dial(TlsIdentity(tuple(answer.svid.cert_chain), to_pkcs8(key)))


@pytest.mark.parametrize("below", [False, True], ids=["own root", "upstream"])
async def test_a_downstream_server_gets_a_ca_that_verifies(files, below):
    """Spire_wire 5.4: the chain, the roots, SPIRE's subject, the trust domain's own ID, capped to our CA."""
    files.root(SpiffeTestCA(ttl=timedelta(hours=5)))
    async with live_server(**({"upstream": files.settings()} if below else {})) as server:
        stubs = await downstream_stubs(server)
        key = generate(KeyKind.EC_P256)
        request = svid_pb2.NewDownstreamX509CARequest(csr=build_csr(key, spiffe_id=None), preferred_ttl=90_000)
        answer = await stubs.svid.NewDownstreamX509CA(request, timeout=10)
        assert tuple(answer.x509_authorities) == server.state.bundles.own.x509_roots
        assert len(answer.ca_cert_chain) == (2 if below else 1)
        ca = x509.load_der_x509_certificate(answer.ca_cert_chain[0])
        assert spki_der(ca.public_key()) == spki_der(key.public_key())
        units = [one.value for one in ca.subject if one.oid == x509.NameOID.ORGANIZATIONAL_UNIT_NAME]
        assert units == ["DOWNSTREAM-2" if below else "DOWNSTREAM-1"]
        assert ca.not_valid_after_utc.timestamp() <= server.server.authorities.active.not_after
        leaf = certify(
            generate(KeyKind.EC_P256),
            signer=key,
            issuer=ca,
            now=SystemClock().now(),
            uris=("spiffe://example.org/far",),
        )
        roots = trusting(server.state.bundles.own)
        found = verify_x509_svid((leaf, *answer.ca_cert_chain), roots, now=SystemClock().now())
        assert str(found.spiffe_id) == "spiffe://example.org/far"
        short = await stubs.svid.NewDownstreamX509CA(
            svid_pb2.NewDownstreamX509CARequest(csr=request.csr, preferred_ttl=60), timeout=10
        )
        made = x509.load_der_x509_certificate(short.ca_cert_chain[0])
        assert (made.not_valid_after_utc - made.not_valid_before_utc).total_seconds() == 70


async def test_who_is_no_downstream_server_gets_no_ca(files):
    """S1: nobody else, whatever they hold; and a bad request is refused with its rule (N-C-01, N-C-07)."""
    async with live_server() as server:
        request = svid_pb2.NewDownstreamX509CARequest(csr=build_csr(generate(KeyKind.EC_P256), spiffe_id=None))
        agent = await server.join()
        for stubs in (server, agent, await server.dial()):
            code, _ = await refused(stubs.svid.NewDownstreamX509CA(request, timeout=10))
            assert code is grpc.StatusCode.PERMISSION_DENIED
        stubs = await downstream_stubs(server)
        for csr in (b"", b"no request"):
            wrong = svid_pb2.NewDownstreamX509CARequest(csr=csr)
            assert (await refused(stubs.svid.NewDownstreamX509CA(wrong, timeout=10)))[0] is (
                grpc.StatusCode.INVALID_ARGUMENT
            )


async def test_a_downstream_servers_jwt_key_is_published(files):
    """Spire_wire 5.2: this upstream takes none, so the key stands in our bundle; all keys come back."""
    files.root(SpiffeTestCA(ttl=timedelta(hours=5)))
    async with live_server(upstream=files.settings()) as server:
        stubs = await downstream_stubs(server)
        key = {"key_id": "far", "public_key": spki_der(generate(KeyKind.EC_P256).public_key()), "expires_at": 2**33}
        answer = await stubs.bundle.PublishJWTAuthority(
            bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=key), timeout=10
        )
        ids = {one.key_id for one in answer.jwt_authorities}
        assert "far" in ids
        assert ids == {one.key_id for one in server.state.bundles.own.jwt_authorities}
        assert len(ids) == 2


async def test_a_new_root_on_disk_is_in_the_bundle_before_anything_is_below_it(files):
    """Its anchors reach every agent long before they are needed."""
    old, new = SpiffeTestCA(name="old", ttl=timedelta(days=2)), SpiffeTestCA(name="new", ttl=timedelta(days=2))
    files.root(old)
    async with live_server(upstream=files.settings()) as server:
        files.root(new)
        assert await server.server.upstream.reload()
        await server.server.above.follow(server.server.upstream.view.value)
        assert server.state.bundles.own.x509_roots == (old.der, new.der)
        sequence = server.state.bundles.own.sequence
        await server.server.above.follow(server.server.upstream.view.value)
        assert server.state.bundles.own.sequence == sequence
