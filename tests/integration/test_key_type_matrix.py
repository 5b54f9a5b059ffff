"""Every kind of authority over every kind of leaf: issued, linted, believed by our verifier and by the openssl command.

X509-SVID sections 2 to 4; RFC 5480, RFC 4055, RFC 9881 (ML-DSA, which OpenSSL knows from 3.5 on).
"""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from identity_server.domain.body import Bodies
from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import Profile, plan_ca, plan_leaf
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle, dump_bundle_pem, load_bundle, load_bundle_pem
from spiffe_core.crypto.csr import build_csr, parse_csr
from spiffe_core.crypto.keys import KeyKind, generate, generate_authority_key
from spiffe_core.errors import InvalidCertificate, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid

TD = TrustDomain("example.org")
NOW = int(datetime(2030, 6, 1, tzinfo=UTC).timestamp())
LEAVES = [kind for kind in KeyKind if not kind.post_quantum]
SIGNATURES = {
    KeyKind.EC_P256: "1.2.840.10045.4.3.2",
    KeyKind.EC_P384: "1.2.840.10045.4.3.3",
    KeyKind.RSA_2048: "1.2.840.113549.1.1.11",
    KeyKind.RSA_4096: "1.2.840.113549.1.1.11",
    KeyKind.ML_DSA_44: "2.16.840.1.101.3.4.3.17",
    KeyKind.ML_DSA_65: "2.16.840.1.101.3.4.3.18",
    KeyKind.ML_DSA_87: "2.16.840.1.101.3.4.3.19",
}
ROOT_BYTES = {KeyKind.ML_DSA_44: 4_200, KeyKind.ML_DSA_65: 5_750, KeyKind.ML_DSA_87: 7_750}
LEAF_BYTES = {KeyKind.ML_DSA_44: 3_100, KeyKind.ML_DSA_65: 4_000, KeyKind.ML_DSA_87: 5_300}


@cache
def authority(kind):
    key = generate_authority_key(kind)
    return key, sign(prepare(plan_ca(TD, key.public_key(), lifetime=86_400, now=NOW, serial=7)), key)


@cache
def leaf_key(kind):
    return generate(kind)


def issue(ca, leaf, serial=8):
    key, root = authority(ca)
    csr = parse_csr(build_csr(leaf_key(leaf), spiffe_id=SpiffeId(TD, "/w")))
    plan = plan_leaf(
        Profile.WORKLOAD, parent_of(root), SpiffeId(TD, "/w"), csr.public_key, ttl=3_600, now=NOW, serial=serial
    )
    return sign(Bodies().prepare(plan), key), root


def openssl_verify(folder: Path, leaf: bytes, root: bytes):
    for name, der in (("leaf", leaf), ("root", root)):
        (folder / name).write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-attime",
        str(NOW + 60),
        "-CAfile",
        folder / "root",
        folder / "leaf",
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


def openssl_knows_ml_dsa() -> bool:
    said = subprocess.run(["openssl", "version"], check=True, capture_output=True, text=True, timeout=30).stdout
    major, minor = map(int, re.match(r"OpenSSL (\d+)\.(\d+)", said).groups())
    return (major, minor) >= (3, 5)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda kind: kind.value)
@pytest.mark.parametrize("ca", list(KeyKind), ids=lambda kind: kind.value)
def test_issued_linted_verified(ca: KeyKind, leaf: KeyKind, tmp_path: Path) -> None:
    """The openssl command agrees, except that before 3.5 it cannot read an ML-DSA authority's key."""
    der, root = issue(ca, leaf)
    assert x509.load_der_x509_certificate(der).signature_algorithm_oid.dotted_string == SIGNATURES[ca]
    bundle = TrustBundle(TD).with_x509_authority(root)
    verified = verify_x509_svid([der], {TD: bundle}.get, now=datetime.fromtimestamp(NOW + 60, UTC))
    assert verified.spiffe_id == SpiffeId(TD, "/w")
    done = openssl_verify(tmp_path, der, root)
    if ca.post_quantum and not openssl_knows_ml_dsa():
        assert done.returncode != 0
    else:
        assert done.stdout.strip().endswith("OK"), done.stdout + done.stderr


@pytest.mark.parametrize("ca", list(KeyKind), ids=lambda kind: kind.value)
def test_a_changed_byte_or_another_key_is_refused(ca: KeyKind) -> None:
    """N-X: the signature is checked with the authority's own algorithm, and with its key alone."""
    der, root = issue(ca, KeyKind.EC_P256)
    now = datetime.fromtimestamp(NOW + 60, UTC)
    bundle = TrustBundle(TD).with_x509_authority(root)
    at = der.index(b"spiffe://example.org/w") + len("spiffe://example.org/")
    with pytest.raises(VerificationFailed) as changed:
        verify_x509_svid([der[:at] + b"x" + der[at + 1 :]], {TD: bundle}.get, now=now)
    assert changed.value.reason is Reason.BAD_SIGNATURE
    with pytest.raises(VerificationFailed):
        verify_x509_svid([der[:-1] + bytes([der[-1] ^ 1])], {TD: bundle}.get, now=now)
    stranger = generate_authority_key(ca)
    same_name = sign(prepare(plan_ca(TD, stranger.public_key(), lifetime=86_400, now=NOW, serial=7)), stranger)
    with pytest.raises(VerificationFailed) as other:
        verify_x509_svid([der], {TD: TrustBundle(TD).with_x509_authority(same_name)}.get, now=now)
    assert other.value.reason is Reason.UNKNOWN_AUTHORITY


@pytest.mark.parametrize("ca", list(KeyKind), ids=lambda kind: kind.value)
def test_the_pre_encoded_body_and_the_builder_write_the_same_bytes(ca: KeyKind) -> None:
    _, root = authority(ca)
    parent, bodies = parent_of(root), Bodies()
    for serial in (9, 10):
        plan = plan_leaf(
            Profile.WORKLOAD,
            parent,
            SpiffeId(TD, "/w"),
            leaf_key(KeyKind.EC_P256).public_key(),
            ttl=60,
            now=NOW,
            serial=serial,
        )
        assert bodies.prepare(plan).redeem() == prepare(plan).redeem()


@pytest.mark.parametrize("ca", list(KeyKind), ids=lambda kind: kind.value)
def test_a_bundle_carries_the_authority_as_jwks_and_pem(ca: KeyKind) -> None:
    """Trust Domain and Bundle section 4: both forms are read back whole, without a warning."""
    _, root = authority(ca)
    bundle = TrustBundle(TD).with_x509_authority(root)
    for loaded in (load_bundle(dump_bundle(bundle), TD), load_bundle_pem(dump_bundle_pem(bundle), TD)):
        assert (loaded.bundle.x509_roots, loaded.warnings) == ((root,), ())


@pytest.mark.parametrize("ca", list(ROOT_BYTES), ids=lambda kind: kind.value)
def test_ml_dsa_certificates_have_a_bounded_size(ca: KeyKind) -> None:
    """What a bundle and a handshake grow by; far below the 64 KiB that a verifier reads."""
    leaf, root = issue(ca, KeyKind.EC_P256)
    assert ROOT_BYTES[ca] - 500 < len(root) < ROOT_BYTES[ca]
    assert LEAF_BYTES[ca] - 500 < len(leaf) < LEAF_BYTES[ca]


def test_an_ml_dsa_key_is_an_authoritys_and_nobody_elses() -> None:
    """No leaf is certified for one, no leaf with one is believed, no token is verified with one."""
    key, root = authority(KeyKind.ML_DSA_44)
    with pytest.raises(ValueError, match="for authorities only"):
        generate(KeyKind.ML_DSA_65)
    with pytest.raises(InvalidCertificate, match="EC or RSA"):
        plan_leaf(Profile.WORKLOAD, parent_of(root), SpiffeId(TD, "/w"), key.public_key(), ttl=60, now=NOW, serial=1)
    document = dump_bundle(TrustBundle(TD).with_x509_authority(root)).decode()
    token = document.replace('"use":"x509-svid"', '"use":"jwt-svid","kid":"k"')
    loaded = load_bundle(token.encode(), TD)
    assert loaded.bundle.jwt_authorities == ()
    assert "kty: is missing or not a kind of key that is used here" in loaded.warnings[0]
    for spoiled in (
        document.replace("ML-DSA-44", "ML-DSA-65"),
        document.replace("ML-DSA-44", "ML-DSA-1"),
        document.replace('"pub":"', '"pub":"A'),
        document.replace('"pub":"', '"priv":"AA","pub":"'),
    ):
        assert load_bundle(spoiled.encode(), TD).bundle.x509_authorities == ()
