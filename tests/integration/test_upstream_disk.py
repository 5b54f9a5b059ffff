"""The `disk` upstream on real files: what it signs, what it refuses to read, and how it follows changes (spire_features 2.5)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from identity_server.domain.minted_ca import check_minted
from identity_server.settings import from_mapping
from identity_server.upstream import upstream_of
from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError, InvalidCsr, Unimplemented
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.upstream_files import UpstreamFiles, key_pem, pem

TD = TrustDomain("example.org")
KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=TD.id, subject=(("C", "US"), ("O", "SPIFFE")))


@pytest.fixture
def files(tmp_path: Path) -> UpstreamFiles:
    return UpstreamFiles(tmp_path)


def opened(files, *, bundle=False, poll=0.02):
    settings = from_mapping({"trust_domain": "example.org", "upstream": files.settings(bundle=bundle)})
    made = upstream_of(settings.upstream, TD, SystemClock())
    made._poll_seconds = poll
    return made


@pytest.fixture
async def start(files):
    made = []

    async def begin(**over):
        upstream = opened(files, **over)
        made.append(upstream)
        await upstream.start()
        return upstream

    yield begin
    for one in made:
        await one.close()
        await one.close()


def now():
    return int(SystemClock().now().timestamp())


async def test_a_root_signs_our_ca(files, start):
    """S37: key, name and lifetime are those asked for, the start lies 10 s back, the end never behind the root's."""
    root = SpiffeTestCA(ttl=timedelta(hours=5))
    files.root(root)
    upstream = await start()
    assert upstream.view.value.x509_authorities == (X509Authority(root.der),)
    asked_at = now()
    given = await upstream.mint_x509_ca(CSR, 3_600)
    ours = x509.load_der_x509_certificate(given.chain[0])
    assert given.roots == (root.der,)
    assert len(given.chain) == 1
    assert 0 <= ours.not_valid_before_utc.timestamp() + 10 - asked_at <= 5
    assert (ours.not_valid_after_utc - ours.not_valid_before_utc).total_seconds() == 3_610
    assert ours.subject.rfc4514_string().endswith("O=SPIFFE,C=US")
    assert spki_der(ours.public_key()) == spki_der(KEY.public_key())
    checked = check_minted(given, KEY.public_key(), TD, now())
    assert checked.anchor_id == X509Authority(root.der).key_id
    capped = await upstream.mint_x509_ca(CSR, 86_400)
    ends = x509.load_der_x509_certificate(capped.chain[0]).not_valid_after_utc
    assert ends == root.certificate.not_valid_after_utc


async def test_an_intermediate_hands_out_its_chain(files, start):
    """A leaf below our CA verifies with the root alone, by our own verifier."""
    root = SpiffeTestCA(name="root", ttl=timedelta(days=9))
    middle = root.intermediate(name="middle", ttl=timedelta(days=5))
    signer = middle.intermediate(name="signer", ttl=timedelta(days=3))
    other = SpiffeTestCA(name="another root")
    files.below(signer, root, other)
    upstream = await start(bundle=True)
    given = await upstream.mint_x509_ca(CSR, 3_600)
    assert given.chain[1:] == (signer.der, middle.der)
    assert given.roots == (root.der, other.der)
    checked = check_minted(given, KEY.public_key(), TD, now())
    assert checked.anchor_id == X509Authority(root.der).key_id


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"ca": False}, "must be a CA"),
        ({"usage": frozenset({"crl_sign"})}, "keyCertSign"),
        ({"usage": None}, "keyCertSign"),
        ({"path_length": 0}, "path length"),
        ({"ttl": timedelta(seconds=-1)}, "not now"),
        ({"key": rsa.generate_private_key(3, 2048)}, "exponent"),
    ],
    ids=["no CA", "no keyCertSign", "no key usage", "path length 0", "expired", "weak key"],
)
async def test_a_certificate_that_cannot_sign_cas_is_refused_at_the_start(files, spoil, words):
    files.root(SpiffeTestCA(**spoil))
    with pytest.raises(ConfigError, match=words):
        await opened(files).start()


async def test_files_that_do_not_fit_together_are_refused_at_the_start(files):
    """Another key, an open key file, a certificate that is no root without a bundle, and a bundle of strangers."""
    root, other = SpiffeTestCA(name="root"), SpiffeTestCA(name="other")
    with pytest.raises(ConfigError, match="cannot be read"):
        await opened(files).start()
    files.root(root)
    files.key.write_bytes(key_pem(other.key))
    with pytest.raises(ConfigError, match="does not hold the key"):
        await opened(files).start()
    files.root(root)
    files.key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 0600"):
        await opened(files).start()
    files.below(root.intermediate(), other)
    with pytest.raises(ConfigError, match="bundle_file"):
        await opened(files).start()
    with pytest.raises(ConfigError, match="does not lead to a trusted root"):
        await opened(files, bundle=True).start()


@pytest.mark.parametrize(
    "uri", [None, "spiffe://example.com", "spiffe://example.org/server"], ids=["none", "foreign", "with a path"]
)
async def test_only_the_trust_domains_own_id_is_signed(files, start, uri):
    """N-C-08, N-C-09: exactly one URI SAN, `spiffe://<td>` without a path."""
    files.root(SpiffeTestCA())
    upstream = await start()
    csr = build_csr(KEY, spiffe_id=None if uri is None else SpiffeId.parse(uri))
    with pytest.raises(InvalidCsr, match="URI SAN"):
        await upstream.mint_x509_ca(csr, 60)


async def test_jwt_keys_are_not_published(files, start):
    files.root(SpiffeTestCA())
    upstream = await start()
    with pytest.raises(Unimplemented):
        await upstream.publish_jwt_authority(JwtAuthority("k", spki_der(KEY.public_key())))
    with pytest.raises(Unimplemented):
        await upstream.publish_wit_authority(WitAuthority("k", spki_der(KEY.public_key())))


async def test_a_new_root_is_followed_without_a_restart(files, start):
    """The view shows it as soon as the files are whole; a half-written set is passed over and the old one signs on."""
    old, new = SpiffeTestCA(name="old"), SpiffeTestCA(name="new")
    files.root(old)
    upstream = await start()
    seen = upstream.view.version
    files.cert.write_bytes(pem(new.der))  # the key is still the old one's
    assert (await upstream.mint_x509_ca(CSR, 60)).roots == (old.der,)
    assert upstream.view.version == seen
    files.root(new)
    async with asyncio.timeout(30):
        await upstream.view.changed(seen)
    assert upstream.view.value.x509_authorities == (X509Authority(new.der),)
    assert (await upstream.mint_x509_ca(CSR, 60)).roots == (new.der,)


async def test_a_mint_reads_files_that_changed_a_moment_ago(files, start):
    old, new = SpiffeTestCA(name="old"), SpiffeTestCA(name="new")
    files.root(old)
    upstream = await start(poll=3_600)
    files.root(new)
    assert (await upstream.mint_x509_ca(CSR, 60)).roots == (new.der,)
