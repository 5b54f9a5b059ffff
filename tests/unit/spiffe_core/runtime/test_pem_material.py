"""PEM files of the operator: what is read, what is refused, and that nothing secret is quoted."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.pem_material import OTHERS, file_stamp, read_pem_certificates, read_pem_key
from tests.authority import SpiffeTestCA
from tests.doubles.node_pki import write_certificates, write_key

CA = SpiffeTestCA("example.org")
KEY = generate(KeyKind.EC_P256)


def pem(key, form=PrivateFormat.PKCS8, secret=None):
    return key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(secret) if secret else NoEncryption())


def private(path, data, mode=0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_certificates_in_order_with_text_between(tmp_path):
    other = SpiffeTestCA("example.org")
    path = write_certificates(tmp_path / "a.pem", CA.der, other.der)
    path.write_bytes(
        b"subject=A\n"
        + path.read_bytes().replace(b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\nissuer=B\n")
    )
    assert read_pem_certificates(path, field="f") == (CA.der, other.der)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n", pem(KEY)]
)
def test_what_holds_no_certificate_is_refused_by_path(tmp_path, data):
    with pytest.raises(ConfigError, match=rf"^f: .*{tmp_path}/a\.pem"):
        read_pem_certificates(private(tmp_path / "a.pem", data), field="f")


def test_a_missing_file_a_directory_and_a_fifo_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("none", "", "fifo"):
        with pytest.raises(ConfigError, match="f: "):
            read_pem_certificates(tmp_path / name, field="f")


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048])
def test_keys_in_every_usual_form(tmp_path, kind, form):
    key = generate(kind)
    read = read_pem_key(private(tmp_path / "k.pem", pem(key, form)), field="f")
    assert spki_der(read.public_key()) == spki_der(key.public_key())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_a_key_that_others_can_use_is_refused(tmp_path, mode):
    path = write_key(tmp_path / "k.pem", KEY, mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}; chmod 0600"):
        read_pem_key(path, field="f")
    if not mode & OTHERS:
        assert read_pem_key(path, field="f", refused_mode=OTHERS)


def test_links_are_followed_to_the_file_that_counts(tmp_path):
    """Kubernetes mounts secrets as links."""
    target = write_key(tmp_path / "k.pem", KEY)
    (tmp_path / "link").symlink_to(target)
    assert read_pem_key(tmp_path / "link", field="f")
    target.chmod(0o644)
    with pytest.raises(ConfigError):
        read_pem_key(tmp_path / "link", field="f")


@pytest.mark.parametrize(
    "data",
    [
        pem(KEY, secret=b"secret-password"),
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(ec.generate_private_key(ec.SECP256K1())),
        b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXBhc3N3b3Jk\n-----END PRIVATE KEY-----\n",
        b"secret-password",
        b"x" * 70_000,
    ],
)
def test_other_keys_are_refused_and_never_quoted(tmp_path, data):
    with pytest.raises(ConfigError, match="f: ") as caught:
        read_pem_key(private(tmp_path / "k.pem", data), field="f")
    assert "secret-password" not in caught.value.public
    assert "c2Vjcm" not in str(caught.value.__cause__)


def test_a_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "k.pem"
    assert not any(file_stamp(path))
    write_key(path, KEY)
    before = file_stamp(path)
    assert any(before)
    assert file_stamp(path) == before
    (tmp_path / "new").write_bytes(path.read_bytes())
    (tmp_path / "new").replace(path)
    assert file_stamp(path) != before
