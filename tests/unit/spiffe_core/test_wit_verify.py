"""Verification of WIT-SVIDs with their proofs: the N-W cases. Tokens are made by an independent little JOSE."""

import hashlib
import math
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.jwt_verify import verify_jwt_svid
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wit_verify import verify_wit_svid
from tests.tokens import b64, token

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
T = int(NOW.timestamp())
TD, FED = TrustDomain("example.org"), TrustDomain("fed.test")
AUTHORITY, OTHER, HOLDER, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)
AUD = "https://api.example.org/orders"


def public(kind, kid, key):
    return kind(kid, spki_der(key.public_key()))


OWN = TrustBundle(
    TD, jwt_authorities=(public(JwtAuthority, "j", OTHER),), wit_authorities=(public(WitAuthority, "k", AUTHORITY),)
)
FOREIGN = TrustBundle(FED, wit_authorities=(public(WitAuthority, "k", OTHER),))
BUNDLES = {TD: OWN, FED: FOREIGN}


def jwk(key=HOLDER, **over):
    shown = {**key_to_jwk(key.public_key()), "alg": "ES256", **over}
    return {name: value for name, value in shown.items() if value is not None}


HEADER = {"alg": "ES256", "kid": "k", "typ": "wit+jwt"}
CLAIMS = {"sub": "spiffe://example.org/web", "exp": T + 3600, "iat": T, "cnf": {"jwk": jwk()}}


def wit(header=None, claims=None, key=AUTHORITY, algorithm="ES256"):
    return token(key, _merged(HEADER, header), _merged(CLAIMS, claims), algorithm=algorithm)


def _merged(base, over):
    return {name: value for name, value in {**base, **(over or {})}.items() if value is not None}


def prove(text, header=None, claims=None, key=HOLDER, algorithm="ES256"):
    said = {"aud": AUD, "exp": T + 60, "jti": "1", "wth": b64(hashlib.sha256(text.encode()).digest())}
    return token(key, _merged({"alg": "ES256", "typ": "wpt+jwt"}, header), _merged(said, claims), algorithm=algorithm)


def verify(text, proof=None, **over):
    proof = prove(text) if proof is None else proof
    return verify_wit_svid(text, proof, BUNDLES.get, **{"audience": AUD, "now": NOW, **over})


def refused(text, proof=None, **over):
    with pytest.raises(VerificationFailed) as failure:
        verify(text, proof, **over)
    for piece in text.split("."):
        assert len(piece) < 8 or piece not in failure.value.public
    return failure.value.reason


def test_a_token_with_its_proof_is_believed():
    """WIT-42: ES256 end to end."""
    verified = verify(wit())
    assert (str(verified.spiffe_id), verified.expires_at) == ("spiffe://example.org/web", T + 3600)
    assert verified.key.public_numbers() == HOLDER.public_key().public_numbers()


ACCEPTED = {
    "N-W-04 an unknown header": wit({"foo": "bar"}),
    "N-W-12 iat in the future": wit(None, {"iat": T + 60}),
    "WIT-14 jti": wit(None, {"jti": "x"}),
    "WIT-28 further claims": wit(None, {"extra": {"deep": [1]}}),
    "WIT-19 just expired, within the leeway": wit(None, {"exp": T - 20}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_must_not_be_refused(case):
    assert verify(ACCEPTED[case]).spiffe_id.path == "/web"


def cnf(**over):
    return {"cnf": {"jwk": jwk(**over)}}


REFUSED = {
    "N-W-01 no kid": (wit({"kid": None}), Reason.BAD_HEADER),
    "N-W-01 kid in another case": (wit({"kid": "K"}), Reason.UNKNOWN_AUTHORITY),
    "N-W-02 no typ": (wit({"typ": None}), Reason.BAD_HEADER),
    **{f"N-W-02 typ {typ}": (wit({"typ": typ}), Reason.BAD_HEADER) for typ in ("JWT", "JOSE", "WIT+JWT", "application/wit+jwt")},
    "N-W-03 none": (wit({"alg": "none"}, algorithm="none") + "AA", Reason.WEAK_ALGORITHM),
    "N-W-03 HS256": (wit({"alg": "HS256"}, key=b"k" * 32, algorithm="HS256"), Reason.WEAK_ALGORITHM),
    "N-W-03 EdDSA": (wit({"alg": "EdDSA"}), Reason.WEAK_ALGORITHM),
    "N-W-05 crit": (wit({"crit": ["foo"], "foo": 1}), Reason.BAD_HEADER),
    "N-W-06 no cnf": (wit(None, {"cnf": None}), Reason.BAD_CLAIM),
    **{
        f"N-W-06 cnf {name}": (wit(None, {"cnf": value}), Reason.BAD_CLAIM)
        for name, value in {
            "empty": {}, "text": "x", "kid": {"kid": "k"}, "jku": {"jku": "https://x"}, "jwe": {"jwe": "x"},
            "x5t": {"x5t#S256": "x"}, "jwk no object": {"jwk": "x"}, "jwk empty": {"jwk": {}},
        }.items()
    },
    "N-W-07 a private key": (wit(None, cnf(d="AAAA")), Reason.BAD_CLAIM),
    "N-W-07 a symmetric key": (wit(None, {"cnf": {"jwk": {"kty": "oct", "k": "AAAA", "alg": "HS256"}}}), Reason.BAD_CLAIM),
    "N-W-07 no point of the curve": (wit(None, cnf(x=b64(b"\1" * 32))), Reason.BAD_CLAIM),
    "N-W-07 a weak key": (wit(None, {"cnf": {"jwk": jwk(WEAK, alg="RS256")}}), Reason.BAD_CLAIM),
    **{
        f"N-W-08 {alg}": (wit(None, cnf(alg=alg)), Reason.WEAK_ALGORITHM)
        for alg in (None, "none", "HS256", "EdDSA", "ECDH-ES", "ES384")
    },
    "N-W-08 ES256 with an RSA key": (wit(None, {"cnf": {"jwk": jwk(RSA)}}), Reason.WEAK_ALGORITHM),
    "N-W-09 aud": (wit(None, {"aud": [AUD]}), Reason.BAD_CLAIM),
    "N-W-10 no exp": (wit(None, {"exp": None}), Reason.BAD_CLAIM),
    "N-W-10 exp past": (wit(None, {"exp": T - 300}), Reason.EXPIRED),
    "N-W-10 exp as text": (wit(None, {"exp": "soon"}), Reason.BAD_CLAIM),
    "N-W-11 nbf in the future": (wit(None, {"nbf": T + 300}), Reason.NOT_YET_VALID),
    "N-W-20 signed by a JWT key of the domain": (wit({"kid": "j"}, key=OTHER), Reason.UNKNOWN_AUTHORITY),
    "N-W-21 a foreign ID by our own key": (wit(None, {"sub": "spiffe://fed.test/x"}), Reason.BAD_SIGNATURE),
    "WIT-10 no sub": (wit(None, {"sub": None}), Reason.NO_SPIFFE_ID),
    "WIT-10 sub no SPIFFE ID": (wit(None, {"sub": "web"}), Reason.BAD_SPIFFE_ID),
    "WIT-10 sub without a path": (wit(None, {"sub": "spiffe://example.org"}), Reason.BAD_SPIFFE_ID),
    "another key": (wit(key=STRANGER), Reason.BAD_SIGNATURE),
    "an unknown domain": (wit(None, {"sub": "spiffe://other.test/x"}), Reason.NO_BUNDLE),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_be_refused(case):
    text, reason = REFUSED[case]
    assert refused(text) is reason


GOOD, SECOND = wit(), wit(None, {"jti": "2"})
PROOFS = {
    "N-W-13 no proof": ("", Reason.BAD_SIGNATURE),
    "N-W-14 another key": (prove(GOOD, key=STRANGER), Reason.BAD_SIGNATURE),
    "N-W-14 another algorithm": (prove(GOOD, {"alg": "PS256"}, key=RSA, algorithm="PS256"), Reason.WEAK_ALGORITHM),
    "N-W-15 for another token": (prove(SECOND), Reason.BAD_CLAIM),
    "N-W-15 for no token": (prove(GOOD, None, {"wth": None}), Reason.BAD_CLAIM),
    "N-W-16 expired": (prove(GOOD, None, {"exp": T - 120}), Reason.EXPIRED),
    "N-W-16 without an end": (prove(GOOD, None, {"exp": None}), Reason.BAD_CLAIM),
    "N-W-16 without an end in sight": (prove(GOOD, None, {"exp": T + 86_400}), Reason.BAD_CLAIM),
    "N-W-16 for another recipient": (prove(GOOD, None, {"aud": "https://other"}), Reason.UNEXPECTED_AUDIENCE),
    "N-W-16 for a list of recipients": (prove(GOOD, None, {"aud": [AUD]}), Reason.UNEXPECTED_AUDIENCE),
    "without an id": (prove(GOOD, None, {"jti": None}), Reason.BAD_CLAIM),
    "of another type": (prove(GOOD, {"typ": "JWT"}), Reason.BAD_HEADER),
    "with crit": (prove(GOOD, {"crit": ["x"]}), Reason.BAD_HEADER),
    "the token itself": (GOOD, Reason.BAD_HEADER),
    "no token at all": ("a.b.c.d", Reason.MALFORMED),
}


@pytest.mark.parametrize("case", PROOFS)
def test_a_token_without_a_good_proof_proves_nothing(case):
    """WIT-30, WIT-31, WIT-38."""
    proof, reason = PROOFS[case]
    assert refused(GOOD, proof) is reason


def test_a_proof_counts_once_and_a_fresh_one_counts_again():
    """N-W-17, WIT-17, WIT-40: the proof's own id is remembered, never the token's."""
    seen = set()

    def replayed(proof_id, end):
        assert end == T + 60 + 30
        known = proof_id in seen
        seen.add(proof_id)
        return known

    assert verify(GOOD, replayed=replayed)
    assert refused(GOOD, replayed=replayed) is Reason.BAD_CLAIM
    assert verify(GOOD, prove(GOOD, None, {"jti": "fresh"}), replayed=replayed)


def test_a_wit_is_no_jwt_svid():
    """N-W-20, WAPI-55: neither by type nor by key."""
    with pytest.raises(VerificationFailed):
        verify_jwt_svid(GOOD, BUNDLES.get, audience=(AUD,), now=NOW)
    plain = token(AUTHORITY, {"alg": "ES256", "kid": "k", "typ": "JWT"}, {**CLAIMS, "aud": [AUD]})
    with pytest.raises(VerificationFailed):
        verify_jwt_svid(plain, BUNDLES.get, audience=(AUD,), now=NOW)


def test_the_validators_policy_and_mistakes():
    """WIT-19, WIT-22."""
    assert refused(GOOD, max_lifetime=60) is Reason.BAD_CLAIM
    assert verify(GOOD, max_lifetime=math.inf)
    with pytest.raises(ValueError, match="leeway"):
        verify(GOOD, leeway=121)
    with pytest.raises(ValueError, match="audience"):
        verify(GOOD, audience="")
