"""Every KeyManager behaves the same (architecture A12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from identity_server.keys import MAX_SLOTS, DiskKeys, MemoryKeys
from identity_server.ports import KeyManager
from spiffe_core.crypto.jose import algorithm_of, encode_part, read_compact, sign_compact, signature_is_good
from spiffe_core.crypto.keys import KeyKind, spki_der
from spiffe_core.errors import InvalidRequest
from tests.softhsm import soft_token


@pytest.fixture(params=["memory", "disk", "pkcs11"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> KeyManager:
    if request.param == "pkcs11":
        return soft_token(tmp_path / "token").keys()
    return MemoryKeys() if request.param == "memory" else DiskKeys(tmp_path / "data" / "keys.json")


def test_a_new_manager_is_empty(keys: KeyManager) -> None:
    assert (keys.list(), keys.signer("x509-CA-A")) == ((), None)


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048])
def test_the_signer_is_the_private_half_of_what_generate_returned(keys: KeyManager, kind: KeyKind) -> None:
    public = keys.generate("x509-CA-A", kind)
    signer = keys.signer("x509-CA-A")
    assert signer is not None
    assert spki_der(public) == spki_der(signer.public_key())


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048, KeyKind.RSA_4096])
def test_a_signer_signs_certificates_requests_and_tokens(keys: KeyManager, kind: KeyKind) -> None:
    """What `cryptography` and our own token code make with the signer verifies with the public half."""
    public = keys.generate("x509-CA-A", kind)
    signer = keys.signer("x509-CA-A")
    assert signer is not None
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    digest = hashes.SHA384() if kind is KeyKind.EC_P384 else hashes.SHA256()
    start = datetime(2030, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, public, 1, start, start + timedelta(days=1))
    certificate = builder.sign(signer, digest)
    certificate.verify_directly_issued_by(certificate)
    assert x509.CertificateSigningRequestBuilder(name).sign(signer, digest).is_signature_valid
    jws = read_compact(sign_compact(encode_part({"alg": algorithm_of(public)}), encode_part({}), signer))
    assert signature_is_good(jws, algorithm_of(public), public)
    keys.check()
    assert keys.trouble == ""


def test_a_signer_signs(keys: KeyManager) -> None:
    public = keys.generate("x509-CA-A", KeyKind.EC_P256)
    signer = keys.signer("x509-CA-A")
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signer.sign(b"data", ec.ECDSA(hashes.SHA256())), b"data", ec.ECDSA(hashes.SHA256()))


def test_generating_again_replaces_only_that_slot(keys: KeyManager) -> None:
    first, other = keys.generate("x509-CA-A", KeyKind.EC_P256), keys.generate("x509-CA-B", KeyKind.EC_P256)
    second = keys.generate("x509-CA-A", KeyKind.EC_P256)
    assert spki_der(first) != spki_der(second)
    held = {slot: spki_der(signer.public_key()) for slot in keys.list() if (signer := keys.signer(slot))}
    assert {"x509-CA-A": spki_der(second), "x509-CA-B": spki_der(other)} == held


def test_deleting_empties_one_slot_and_may_be_repeated(keys: KeyManager) -> None:
    keys.generate("x509-CA-A", KeyKind.EC_P256)
    keys.generate("x509-CA-B", KeyKind.EC_P256)
    for _ in range(2):
        keys.delete("x509-CA-A")
        assert (keys.list(), keys.signer("x509-CA-A")) == (("x509-CA-B",), None)


@pytest.mark.parametrize("slot", ["", "a b", "../x", "a/b", "a\n", "-a", "a" * 65])
def test_a_slots_name_is_checked(keys: KeyManager, slot: str) -> None:
    with pytest.raises(InvalidRequest, match="slot"):
        keys.generate(slot, KeyKind.EC_P256)
    assert keys.list() == ()


def test_the_number_of_slots_is_bounded(keys: KeyManager) -> None:
    for number in range(MAX_SLOTS):
        keys.generate(f"slot-{number}", KeyKind.EC_P256)
    with pytest.raises(InvalidRequest, match="slots are taken"):
        keys.generate("one-more", KeyKind.EC_P256)
    keys.generate("slot-0", KeyKind.EC_P256)


def test_a_manager_says_where_its_keys_are_and_whether_they_stay(keys: KeyManager) -> None:
    assert isinstance(keys.persistent, bool)
    assert keys.location


def test_nothing_secret_is_printed(keys: KeyManager) -> None:
    keys.generate("x509-CA-A", KeyKind.EC_P256)
    assert "PRIVATE" not in f"{keys!r} {keys.signer('x509-CA-A')!r}"
