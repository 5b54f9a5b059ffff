"""What the operator hands over: join tokens and trust bundles."""

import os

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from node_agent.files import JoinTokenCredentials, read_trust_bundle
from spiffe_core.bundle_document import dump_bundle
from spiffe_core.errors import ConfigError, PreconditionFailed
from tests.authority import SpiffeTestCA
from tests.builders import TD

CA = SpiffeTestCA("example.org")


def presented(credentials):
    return next(credentials.prover().prove()).decode()


def private(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_token_file_is_read_anew_each_time(tmp_path):
    """R22: a new token needs no restart."""
    path = tmp_path / "token"
    credentials = JoinTokenCredentials(path)
    assert credentials.fingerprint() == ""
    private(path, "first\n")
    one = credentials.fingerprint()
    assert presented(credentials) == "first"
    private(path, "second")
    assert credentials.fingerprint() not in {"", one}
    assert presented(credentials) == "second"


def test_a_fingerprint_does_not_reveal_the_token(tmp_path):
    path = private(tmp_path / "token", "secret")
    assert JoinTokenCredentials(path).fingerprint() != JoinTokenCredentials(path).fingerprint()


def test_without_a_token_the_message_says_where_one_was_looked_for(tmp_path):
    with pytest.raises(PreconditionFailed, match=str(tmp_path / "token")):
        JoinTokenCredentials(tmp_path / "token").prover()
    with pytest.raises(PreconditionFailed, match="no join token was given"):
        JoinTokenCredentials(None).prover()


def test_a_token_given_as_a_value_works():
    assert presented(JoinTokenCredentials(None, "value")) == "value"


def test_a_token_that_others_can_read_is_warned_about_once(tmp_path, caplog):
    path = private(tmp_path / "token", "t")
    path.chmod(0o644)
    credentials = JoinTokenCredentials(path)
    for _ in range(3):
        credentials.fingerprint()
    assert caplog.text.count("can be read by others") == 1
    assert " t " not in caplog.text


def test_a_pipe_in_place_of_the_token_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "token")
    assert JoinTokenCredentials(tmp_path / "token").fingerprint() == ""


def test_a_huge_token_file_is_read_in_part_and_refused(tmp_path):
    path = private(tmp_path / "token", "x" * 1_000_000)
    with pytest.raises(ConfigError, match="join token"):
        presented(JoinTokenCredentials(path))


def test_a_bundle_is_read_as_pem_and_as_a_document(tmp_path):
    pem = tmp_path / "bundle.pem"
    pem.write_bytes(CA.certificate.public_bytes(Encoding.PEM))
    assert read_trust_bundle(pem, "pem", TD).x509_roots == (CA.der,)
    document = tmp_path / "bundle.json"
    document.write_bytes(dump_bundle(CA.bundle()))
    assert read_trust_bundle(document, "spiffe", TD).x509_roots == (CA.der,)


@pytest.mark.parametrize("form", ["pem", "spiffe"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"{}"])
def test_what_is_no_bundle_is_refused_with_its_path(tmp_path, form, content):
    path = tmp_path / "bundle"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_trust_bundle(path, form, TD)


def test_a_missing_bundle_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="identity-server bundle show"):
        read_trust_bundle(tmp_path / "missing", "pem", TD)
