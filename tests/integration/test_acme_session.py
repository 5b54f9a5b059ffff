"""An ACME authority that answers nonsense: told in words, bounded, and never a fault of ours."""

import contextlib
import json
import ssl

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity_server.web.acme_session import MAX_ANSWER_BYTES, AcmeSession
from identity_server.web.acme_store import new_key
from spiffe_core.errors import PreconditionFailed, Unavailable
from tests.authority import SpiffeTestCA
from tests.doubles.https_double import HttpsDouble

CA = SpiffeTestCA("acme.test")
NAMES = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")


@pytest.fixture
def authority(tmp_path):
    """Starts one that answers each request as it is told; the session that was opened with it, or what that raises."""
    web = CA.issue("spiffe://acme.test/x", uris=(), dns=("localhost",))
    certificate, key, ca_file = tmp_path / "a.pem", tmp_path / "a.key", tmp_path / "ca.pem"
    certificate.write_text("".join(map(ssl.DER_cert_to_PEM_cert, web.chain)))
    key.write_bytes(web.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ca_file.write_text(ssl.DER_cert_to_PEM_cert(CA.der))
    started, running = [], contextlib.ExitStack()

    def opened(answer, **over):
        double = HttpsDouble(str(certificate), str(key), lambda *request: answer(*request[:2]))
        started.append(running.enter_context(double))
        url = f"https://localhost:{double.port}"
        double.directory = json.dumps({name: f"{url}/{name}" for name in NAMES}).encode()
        settings = {"email": "", "tos_accepted": True, "ca_file": ca_file, **over}
        return AcmeSession(f"{url}/dir", new_key(), **settings)

    opened.started = started
    with running:
        yield opened


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "answered what cannot be read"),
        (200, b"[]", "answered what cannot be read"),
        (200, b'{"newNonce": 7}', "answered what cannot be read"),
        (500, b"", "answered what cannot be read"),
        (200, b'{"x":"' + b"a" * MAX_ANSWER_BYTES + b'"}', "cannot reach"),
        (302, b"", "cannot be read|cannot reach"),
    ],
    ids=["HTML", "an array", "no URLs", "500", "too large", "a redirect"],
)
def test_a_directory_that_is_none(authority, status, body, words):
    with pytest.raises(Unavailable, match=words):
        authority(lambda *_: (status, body))


def test_a_refusal_is_shown_in_the_authoritys_words_and_escaped(authority):
    """What a stranger says reaches the log as printable ASCII of a bounded length."""
    problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many\n\x1b[31m" + "x" * 5_000}
    with pytest.raises(Unavailable) as caught:
        authority(lambda *_: (429, json.dumps(problem).encode()))
    assert "refused: rateLimited: too many\\n\\x1b[31mxxx" in caught.value.public
    assert caught.value.public.isprintable()
    assert len(caught.value.public) < 500


def test_terms_that_nobody_accepted_stop_it_before_anything_is_sent(authority):
    def answer(_, path):
        assert path == "/dir"
        terms = {"meta": {"termsOfService": "https://localhost/terms"}}
        return 200, json.dumps({**json.loads(authority.started[0].directory), **terms}).encode()

    with pytest.raises(PreconditionFailed, match=r"has terms of service .* set acme\.tos_accepted = true"):
        authority(answer, tos_accepted=False)
