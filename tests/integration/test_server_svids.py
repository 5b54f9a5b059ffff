"""The SVID and Bundle services: what is signed, for whom, and what is refused (N-C, S20, S21, S27, S28)."""

import asyncio
import gc
import time
from itertools import pairwise

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2

from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.x509_verify import verify_x509_svid
from tests.doubles.live_server import TD, entry, live_server, sign, wanted

KEY = generate(KeyKind.EC_P256)


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


def leaf_of(svid):
    return x509.load_der_x509_certificate(svid.cert_chain[0])


def uris(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )


def dns(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )


def request(key=KEY, names=(), subject=None, extensions=()):
    """A CSR with any names and extensions."""
    builder = x509.CertificateSigningRequestBuilder(subject or x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


URI = x509.UniformResourceIdentifier


async def mint(live, csr, ttl=0):
    return (await live.svid.MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr, ttl=ttl), timeout=10)).svid


# --- BatchNewX509SVID ------------------------------------------------------------------------------------------------


async def test_a_workloads_svid_is_the_entrys(live):
    """The ID, TTL and DNS names are the entry's; the chain verifies with the bundle."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path, x509_svid_ttl=120, dns_names=["web.example"]))
    (result,) = await sign(agent, wanted(entry_id, KEY))
    assert (result.status.code, result.status.message) == (0, "OK")
    leaf = leaf_of(result.svid)
    assert uris(leaf) == ["spiffe://example.org/web"]
    assert dns(leaf) == ["web.example"]
    assert leaf.public_key() == KEY.public_key()
    assert result.svid.id.path == "/web"
    assert result.svid.hint == ""
    assert result.svid.expires_at == int(leaf.not_valid_after_utc.timestamp())
    assert abs(result.svid.expires_at - live.clock.now().timestamp() - 120) <= 2
    verified = verify_x509_svid(list(result.svid.cert_chain), live.state.bundles.get, now=live.clock.now())
    assert verified.spiffe_id == SpiffeId(TD, "/web")


@pytest.mark.parametrize(
    "claim", ["spiffe://example.org/spire/server", "spiffe://example.org/other", "spiffe://other.org/web"]
)
async def test_the_id_in_a_request_counts_for_nothing(live, claim):
    """S20, N-C-08: CVE-2021-27098."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    (result,) = await sign(agent, wanted(entry_id, KEY, uri=SpiffeId.parse(claim)))
    assert uris(leaf_of(result.svid)) == ["spiffe://example.org/web"]


async def test_nothing_else_of_a_request_is_copied(live):
    """N-C-11, N-C-12: CA flag, key usage, DNS and IP names, subject."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    csr = request(
        names=[URI("spiffe://example.org/web"), x509.DNSName("evil.example")],
        subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evil")]),
        extensions=[
            x509.BasicConstraints(ca=True, path_length=None),
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
        ],
    )
    (result,) = await sign(agent, wanted(entry_id, csr=csr))
    leaf = leaf_of(result.svid)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert dns(leaf) == []
    assert not leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)


async def test_unknown_and_foreign_entries_get_one_answer(live):
    """S21, N-C-15: no oracle; audited."""
    one, two = await live.join(), await live.join()
    (foreign,) = await live.entries(entry("/b", two.path))
    results = await sign(one, wanted(foreign), wanted("no-such-entry"), wanted("x" * 300), wanted("a\0b"))
    assert {(result.status.code, result.status.message) for result in results} == {
        (5, "entry not found or not authorized")
    }
    assert not any(result.HasField("svid") for result in results)
    live.server.audit.close()
    text = (live.server.settings.data_dir.parent / "audit.jsonl").read_text()
    assert text.count('"event":"refused"') == 4


async def test_each_item_fails_for_itself(live):
    """spire_wire 5.4: codes and words per item; whole-call errors for the empty batch."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    broken = bytearray(build_csr(KEY, spiffe_id=None))
    broken[-1] ^= 1
    results = await sign(
        agent,
        wanted("", KEY),
        svid_pb2.NewX509SVIDParams(entry_id=entry_id),
        wanted(entry_id, csr=b"junk"),
        wanted(entry_id, csr=bytes(broken)),
        wanted(entry_id, csr=b"x" * 1_000_000),
        wanted(entry_id, KEY),
    )
    statuses = [(result.status.code, result.status.message) for result in results]
    assert statuses[0] == (3, "missing entry ID")
    assert statuses[1] == (3, "missing CSR")
    assert [code for code, _ in statuses[2:5]] == [3, 3, 3]
    assert all(text.startswith("malformed CSR: ") for _, text in statuses[2:5])
    assert statuses[5] == (0, "OK")
    assert await refused(agent.svid.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest())) == (
        "INVALID_ARGUMENT",
        "missing parameters",
    )


async def test_a_batch_of_500_with_one_bad_item_at_any_place(live):
    """S27: the other 499 each get their own key and ID; the error stands at that index only."""
    agent = await live.join()
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(500)))
    keys = [generate(KeyKind.EC_P256) for _ in range(500)]
    for bad in (0, 250, 499):
        items = [wanted(entry_id, key) for entry_id, key in zip(ids, keys, strict=True)]
        items[bad] = wanted(ids[bad], csr=b"junk")
        results = await sign(agent, *items)
        for index, result in enumerate(results):
            if index == bad:
                assert result.status.code == 3
                assert not result.HasField("svid")
                continue
            leaf = leaf_of(result.svid)
            assert uris(leaf) == [f"spiffe://example.org/w{index}"]
            assert leaf.public_key() == keys[index].public_key()
    serials = [leaf_of(result.svid).serial_number for index, result in enumerate(results) if index != bad]
    assert len(set(serials)) == 499


async def test_a_batch_is_bounded(live):
    """N-C-18."""
    agent = await live.join()
    csr = build_csr(KEY, spiffe_id=None)
    items = [svid_pb2.NewX509SVIDParams(entry_id="e", csr=csr)] * 501
    code, text = await refused(agent.svid.BatchNewX509SVID(svid_pb2.BatchNewX509SVIDRequest(params=items), timeout=20))
    assert code == "RESOURCE_EXHAUSTED"
    assert "(501) exceeds burst size (500)" in text


async def test_signing_gives_the_loop_back_in_between(live):
    """A7: nothing holds the loop longer than a few milliseconds; measured as the CPU time between two turns of it."""
    agent = await live.join()
    ids = await live.entries(*(entry(f"/w{number}", agent.path) for number in range(300)))
    items = [wanted(entry_id, KEY) for entry_id in ids]
    turns = []

    async def metronome():
        while True:
            turns.append(time.thread_time())
            await asyncio.sleep(0)

    gc.collect()
    ticking = asyncio.ensure_future(metronome())
    results = await sign(agent, *items)
    ticking.cancel()
    assert {result.status.code for result in results} == {0}
    gaps = sorted(after - before for before, after in pairwise(turns))
    slow = [gap for gap in gaps if gap > 0.05]
    assert len(slow) <= 2, slow


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(3, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p521", "p224", "secp256k1", "rsa-1024", "rsa-e3", "ed25519"],
)
async def test_keys_of_a_forbidden_kind_are_refused(live, key):
    """S28, N-C-05, N-C-06."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, algorithm).public_bytes(Encoding.DER)
    (result,) = await sign(agent, wanted(entry_id, csr=csr))
    assert result.status.code == 3


async def test_the_key_of_the_authority_is_not_certified(live):
    """N-C-07."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    (result,) = await sign(agent, wanted(entry_id, live.server.authorities.issuer.signer.key))
    assert result.status.code == 3
    assert "signing authority" in result.status.message


async def test_a_ttl_beyond_the_authority_ends_with_it(live):
    """N-C-14."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path, x509_svid_ttl=2**31 - 1))
    (result,) = await sign(agent, wanted(entry_id, KEY))
    assert result.svid.expires_at == live.server.authorities.active.not_after


async def test_without_an_active_authority_nothing_is_signed(live):
    """N-C-25: Unavailable per item, no partial SVID; health says so."""
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    live.server.authorities.issuer.signer = None
    (result,) = await sign(agent, wanted(entry_id, KEY))
    assert result.status.code == 14
    assert not result.HasField("svid")
    code, _ = await refused(mint(live, request(names=[URI("spiffe://example.org/x")])))
    assert code == "UNAVAILABLE"


async def test_an_entry_deleted_meanwhile_is_not_signed_for(live):
    agent = await live.join()
    (entry_id,) = await live.entries(entry("/web", agent.path))
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]))
    (result,) = await sign(agent, wanted(entry_id, KEY))
    assert result.status.code == 5


# --- MintX509SVID ----------------------------------------------------------------------------------------------------


async def test_an_administrator_mints_what_the_request_asks(live):
    """spire_wire 5.4, spire_features 22: URI and DNS names, svid.id set, the CSR's subject."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Mine")])
    names = [URI("spiffe://example.org/hook"), x509.DNSName("hook.ns.svc"), x509.DNSName("*.pods.example")]
    svid = await mint(live, request(names=names, subject=subject), ttl=3600)
    leaf = leaf_of(svid)
    assert (svid.id.trust_domain, svid.id.path) == ("example.org", "/hook")
    assert dns(leaf) == ["hook.ns.svc", "*.pods.example"]
    assert leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "Mine"
    verify_x509_svid(list(svid.cert_chain), live.state.bundles.get, now=live.clock.now())


async def test_a_minted_svid_without_subject_or_ttl_has_the_defaults(live):
    """N-C-13, N-C-14."""
    svid = await mint(live, request(names=[URI("spiffe://example.org/x")]))
    assert abs(svid.expires_at - live.clock.now().timestamp() - 3600) <= 2
    assert leaf_of(svid).subject.rfc4514_string() == "O=SPIRE,C=US"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "exactly one URI SAN"),
        ([URI("spiffe://example.org/a"), URI("spiffe://example.org/b")], "exactly one URI SAN"),
        ([URI("spiffe://other.org/a")], "not a member"),
        ([URI("spiffe://example.org")], "add a path"),
        ([URI("spiffe://example.org/spire/server")], "reserved"),
        ([URI("spiffe://example.org/spire/agent/x")], "reserved"),
        ([URI("https://example.org/a")], "invalid"),
        ([URI("spiffe://example.org/a/../b")], "invalid"),
        ([URI("spiffe://Example.org/a")], "invalid"),
        ([URI("spiffe://example.org/a"), x509.DNSName("bad_name!")], "DNS name is not valid"),
        ([URI("spiffe://example.org/a"), x509.DNSName("*.b.c"), x509.DNSName("a.b.c")], "covered by the wildcard"),
        ([URI("spiffe://example.org/a"), x509.DNSName("a.b"), x509.DNSName("A.b")], "given twice"),
        ([URI("spiffe://example.org/a"), *(x509.DNSName(f"n{n}.example") for n in range(101))], "at most 100"),
    ],
)
async def test_what_may_not_be_minted(live, names, words):
    """N-C-08 to N-C-12, S34."""
    code, text = await refused(mint(live, request(names=names)))
    assert code == "INVALID_ARGUMENT"
    assert words in text


@pytest.mark.parametrize("ttl", [-1, -(2**31)])
async def test_a_negative_ttl_is_refused(live, ttl):
    code, text = await refused(mint(live, request(names=[URI("spiffe://example.org/x")]), ttl))
    assert (code, text.startswith("ttl ")) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("csr", [b"", b"junk", b"-----BEGIN CERTIFICATE REQUEST-----"])
async def test_a_missing_or_malformed_request_is_refused(live, csr):
    """N-C-01, N-C-02."""
    code, _ = await refused(mint(live, csr))
    assert code == "INVALID_ARGUMENT"


# --- bundle, health --------------------------------------------------------------------------------------------------


async def test_anyone_gets_the_bundle(live):
    """spire_wire 5.2."""
    anonymous = await live.dial()
    for stubs in (anonymous, live, await live.join()):
        got = await stubs.bundle.GetBundle(bundle_pb2.GetBundleRequest())
        assert got.trust_domain == "example.org"
        assert [item.asn1 for item in got.x509_authorities] == list(live.state.bundles.own.x509_roots)
        assert got.sequence_number == live.state.bundles.own.sequence
    masked = await anonymous.bundle.GetBundle(bundle_pb2.GetBundleRequest(output_mask={"sequence_number": True}))
    assert (masked.trust_domain, len(masked.x509_authorities), masked.sequence_number) == (
        "example.org",
        0,
        live.state.bundles.own.sequence,
    )
    assert (await live.bundle.CountBundles(bundle_pb2.CountBundlesRequest())).count == 1


async def test_health_is_overall_only(live):
    """spire_wire 5.8."""
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await live.health.Check(health_pb2.HealthCheckRequest())).status == serving
    assert await refused(live.health.Check(health_pb2.HealthCheckRequest(service="x"))) == (
        "INVALID_ARGUMENT",
        "per-service health is not supported",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in live.health.Watch(health_pb2.HealthCheckRequest()):
            pass
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    live.server.drain.begin()
    status = (await live.health.Check(health_pb2.HealthCheckRequest())).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
