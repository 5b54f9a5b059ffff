"""WIT-SVIDs in headers: proofs that the verifier believes, and channels they are not sent over (N-W-19, WIT-41)."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from spiffe_core.bundle import TrustBundle, WitAuthority
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, to_pkcs8
from spiffe_core.errors import InvalidRequest, Reason, VerificationFailed
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wit_verify import verify_wit_svid
from tests.tokens import parts, token
from workload_api.wit import (
    MAX_URL,
    PROOF_HEADER,
    PROOF_SECONDS,
    TOKEN_HEADER,
    proof_audience,
    wit_and_proof,
    wit_headers,
)

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
TD = TrustDomain("example.org")
AUTHORITY = ec.generate_private_key(ec.SECP256R1())
BUNDLES = {TD: TrustBundle(TD, wit_authorities=(WitAuthority("k", spki_der(AUTHORITY.public_key())),))}
URL = "https://api.example.org:8443/orders"
ALGORITHMS = {KeyKind.EC_P256: "ES256", KeyKind.EC_P384: "ES384", KeyKind.RSA_2048: "RS256"}


def held(kind=KeyKind.EC_P256):
    """A WIT-SVID and the key it confirms."""
    key = generate(kind)
    jwk = {**key_to_jwk(key.public_key()), "alg": ALGORITHMS[kind]}
    claims = {"sub": "spiffe://example.org/web", "exp": int(NOW.timestamp()) + 3600, "cnf": {"jwk": jwk}}
    return token(AUTHORITY, {"alg": "ES256", "kid": "k", "typ": "wit+jwt"}, claims), to_pkcs8(key)


WIT, KEY = held()


def presented(url=URL, wit=WIT, key=KEY):
    return wit_headers(url, wit, key, now=NOW, proof_id=secrets.token_urlsafe(16))


def believed(headers, audience=URL, now=NOW):
    pair = wit_and_proof(headers)
    assert pair is not None
    return verify_wit_svid(*pair, BUNDLES.get, audience=audience, now=now)


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.value)
def test_what_is_sent_is_believed_by_whom_it_was_made_for(kind):
    """WIT-31, WIT-33, WIT-42: with the algorithm the token confirms; by nobody else, and not for long (WIT-38)."""
    wit, key = held(kind)
    headers = presented(wit=wit, key=key)
    assert [name for name, _ in headers] == [TOKEN_HEADER, PROOF_HEADER]
    assert str(believed([("Host", "x"), *headers]).spiffe_id) == "spiffe://example.org/web"
    with pytest.raises(VerificationFailed) as refusal:
        believed(headers, audience=URL + "/other")
    assert refusal.value.reason is Reason.UNEXPECTED_AUDIENCE
    with pytest.raises(VerificationFailed) as refusal:
        believed(headers, now=NOW + timedelta(seconds=PROOF_SECONDS + 31))
    assert refusal.value.reason is Reason.EXPIRED


def test_each_request_has_a_proof_of_its_own():
    """WIT-40: so that a recipient may take each of them once."""
    first, second = (parts(presented()[1][1])[1]["jti"] for _ in range(2))
    assert first != second


AUDIENCES = {
    "https://a.test": "https://a.test/",
    "https://a.test/x?y=1#z": "https://a.test/x",
    "HTTPS://a.test:1/x": "https://a.test:1/x",
    "https://[::1]:8443/": "https://[::1]:8443/",
}


@pytest.mark.parametrize("url", AUDIENCES)
def test_a_proof_names_the_target_without_query_and_fragment(url):
    assert proof_audience(url) == AUDIENCES[url]


NOT_SECURE = {
    "plain": "http://api.example.org/orders",
    "plain in capitals": "HTTP://api.example.org/orders",
    "plain to oneself": "http://127.0.0.1/",
    "a web socket": "ws://api.example.org/",
    "no scheme": "api.example.org/orders",
    "scheme relative": "//api.example.org/orders",
    "a file": "file:///orders",
}
BAD_URLS = {
    "empty": "",
    "no host": "https:///orders",
    "a user": "https://u:p@api.example.org/",
    "an empty user": "https://@api.example.org/",
    "a blank": "https://api.example.org/a b",
    "a line break": "https://api.example.org/\r\nHost: evil",
    "a port that is none": "https://api.example.org:x/",
    "an open bracket": "https://[::1/",
    "not ASCII": "https://äpi.example.org/",
    "too long": "https://a.test/" + "x" * MAX_URL,
}


@pytest.mark.parametrize("url", NOT_SECURE.values(), ids=NOT_SECURE)
def test_a_wit_is_not_sent_over_a_channel_that_is_not_secure(url):
    """N-W-19, WIT-41: the helper refuses, says why, and makes neither header nor proof."""
    assert believed(presented())
    with pytest.raises(InvalidRequest, match="secure channel only") as refusal:
        presented(url)
    assert refusal.value.field == "url"
    assert WIT not in str(refusal.value)
    assert believed(presented())


@pytest.mark.parametrize("url", BAD_URLS.values(), ids=BAD_URLS)
def test_a_url_that_two_readers_could_understand_differently_is_refused(url):
    with pytest.raises(InvalidRequest) as refusal:
        presented(url)
    assert refusal.value.field == "url"


@pytest.mark.parametrize("proof_id", ["", "x" * 1025])
def test_a_proof_has_a_name_of_bounded_length(proof_id):
    with pytest.raises(InvalidRequest, match="proof_id"):
        wit_headers(URL, WIT, KEY, now=NOW, proof_id=proof_id)


SENT = dict(presented())
NOT_PRESENTED = {
    "nothing": [],
    "N-W-13 the token alone": [(TOKEN_HEADER, WIT)],
    "the proof alone": [(PROOF_HEADER, SENT[PROOF_HEADER])],
    "two tokens": [(TOKEN_HEADER, WIT), *SENT.items()],
    "two proofs": [*SENT.items(), (PROOF_HEADER.title(), SENT[PROOF_HEADER])],
    "N-W-18 the token as a bearer token": [("Authorization", f"Bearer {WIT}"), (PROOF_HEADER, SENT[PROOF_HEADER])],
    "more than any token": [(TOKEN_HEADER, "x" * 70_000), (PROOF_HEADER, SENT[PROOF_HEADER])],
}


@pytest.mark.parametrize("headers", NOT_PRESENTED.values(), ids=NOT_PRESENTED)
def test_what_presents_no_wit(headers):
    """WIT-30, WIT-32: exactly one token with exactly one proof, in their own headers."""
    assert wit_and_proof(headers) is None
