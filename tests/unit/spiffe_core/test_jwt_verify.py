"""Verification of JWT-SVIDs: every N-J case that a pure function can decide, and what must not be over-rejected.

Each case spoils one thing of a good token; the good token is verified by the same call, so that a refusal is about the
fault. Tokens are made by an independent little JOSE (tests/tokens.py).
"""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from spiffe_core.bundle import TrustBundle, WitAuthority
from spiffe_core.bundle_document import dump_bundle, load_bundle
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import spki_der
from spiffe_core.errors import InvalidRequest, Kind, Reason, VerificationFailed
from spiffe_core.jwt_verify import MAX_KEYS_TRIED, verify_jwt_svid
from spiffe_core.spiffe_id import SpiffeId
from tests.jwt_cases import (
    ACCEPTED,
    AUD,
    BUNDLES,
    EC,
    EC2,
    EC384,
    EC521,
    ED_BUNDLE,
    FED,
    GOOD,
    HEAD,
    ID,
    NOW,
    OWN,
    REFUSED,
    RSA,
    SIGNATURE,
    TD,
    T,
    authority,
    make,
)
from tests.tokens import b64


def verify(text: str, bundles: Any = BUNDLES, **over: Any) -> Any:
    return verify_jwt_svid(text, bundles.get, **{"audience": (AUD,), "now": NOW, **over})


def refused(text: str, **over: Any) -> Reason:
    with pytest.raises(VerificationFailed) as failure:
        verify(text, **over)
    assert failure.value.kind is Kind.UNAUTHENTICATED
    for piece in text.split("."):
        assert len(piece) < 8 or piece not in failure.value.public, "the token is not quoted"
    return failure.value.reason


def test_a_good_token_is_believed() -> None:
    verified = verify(GOOD)
    assert (str(verified.spiffe_id), verified.audience, verified.expires_at) == (ID, (AUD,), T + 300)
    assert verified.claims["iat"] == T
    with pytest.raises(TypeError):
        verified.claims["sub"] = "x"


ALGORITHMS = {
    "RS256": "r", "RS384": "r", "RS512": "r", "PS256": "r", "PS384": "r", "PS512": "r",
    "ES256": "k", "ES384": "e384", "ES512": "e521",
}  # fmt: skip
KEYS = {"k": EC, "r": RSA, "e384": EC384, "e521": EC521}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_of_the_nine_algorithms_verifies(algorithm: str) -> None:
    """JWT-07."""
    kid = ALGORITHMS[algorithm]
    assert verify(make({"alg": algorithm, "kid": kid}, key=KEYS[kid], algorithm=algorithm)).spiffe_id.path == "/web"


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_must_not_be_refused(name: str) -> None:
    assert verify(ACCEPTED[name]).spiffe_id.path


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_be_refused(name: str) -> None:
    """S41, S42, S43: algorithms and keys, audiences, times."""
    text, reason = REFUSED[name]
    assert refused(text) is reason
    assert verify(GOOD)


def test_weak_and_foreign_keys_in_a_bundle_count_for_nothing() -> None:
    """N-J-08, N-J-13: such a key is no part of a bundle."""
    assert not ED_BUNDLE.jwt_authorities
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.raises(InvalidRequest, match="2048"):
        authority("weak", weak)
    document = json.dumps({"keys": [{"use": "jwt-svid", "kid": "weak", **key_to_jwk(weak.public_key())}]})
    bundle = load_bundle(document.encode(), TD).bundle
    assert refused(make({"alg": "RS256", "kid": "weak"}, key=weak, algorithm="RS256"), bundles={TD: bundle}) is (
        Reason.EMPTY_BUNDLE
    )


@pytest.mark.parametrize("use", ["x509-svid", "wit-svid", "sig", None])
def test_only_keys_published_for_jwt_svids_count(use: str | None) -> None:
    """N-J-27, N-W-20, JWT-29: beside a proper key, which goes on working."""
    entry = {"kid": "only", **key_to_jwk(EC2.public_key()), **({"use": use} if use else {})}
    good = json.loads(dump_bundle(OWN))["keys"][0]
    bundles = {TD: load_bundle(json.dumps({"keys": [entry, good]}).encode(), TD).bundle}
    assert refused(make({"kid": "only"}, key=EC2), bundles=bundles) is Reason.UNKNOWN_AUTHORITY
    assert verify(GOOD, bundles)
    wit = TrustBundle(TD, jwt_authorities=OWN.jwt_authorities[:1], wit_authorities=(WitAuthority("w", spki_der(EC2.public_key())),))  # fmt: skip
    assert refused(make({"kid": "w"}, key=EC2), bundles={TD: wit}) is Reason.UNKNOWN_AUTHORITY


def test_a_key_that_left_the_bundle_verifies_nothing() -> None:
    """N-J-22, N-J-23, N-J-25: tainted it still verifies, revoked it does not; an empty bundle trusts nobody."""
    tainted = OWN.with_jwt_tainted("k")
    assert verify(GOOD, {TD: tainted})
    assert refused(GOOD, bundles={TD: tainted.without_jwt_authority("k")}) is Reason.UNKNOWN_AUTHORITY
    assert refused(GOOD, bundles={TD: TrustBundle(TD)}) is Reason.EMPTY_BUNDLE
    assert refused(GOOD, bundles={TD: TrustBundle(FED, jwt_authorities=OWN.jwt_authorities)}) is Reason.NO_BUNDLE


@pytest.mark.parametrize("names", [(), ("",), ""])
def test_a_validator_without_a_name_believes_nobody(names: Any) -> None:
    """N-J-32: fail closed."""
    assert refused(GOOD, audience=names) is Reason.UNEXPECTED_AUDIENCE


def test_one_name_given_as_text_is_a_name_and_not_its_letters() -> None:
    """N-J-31."""
    assert verify(GOOD, audience=AUD)
    assert refused(make(None, {"aud": ["h"]}), audience=AUD) is Reason.UNEXPECTED_AUDIENCE


def test_the_leeway_and_the_longest_life_are_the_validators_choice() -> None:
    """JWT-21, N-J-35."""
    assert refused(make(None, {"exp": T}), leeway=0.0) is Reason.EXPIRED
    assert verify(make(None, {"exp": T - 59}), leeway=60.0)
    for wrong in (61.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="leeway"):
            verify(GOOD, leeway=wrong)
    assert refused(make(None, {"exp": T + 3_601}), max_lifetime=3_600) is Reason.BAD_CLAIM
    assert verify(make(None, {"exp": T + 3_600}), max_lifetime=3_600)
    assert refused(GOOD, now=NOW + timedelta(days=1)) is Reason.EXPIRED


def test_a_token_without_kid_is_tried_with_a_bounded_number_of_keys() -> None:
    """JWT-09 with a bound: the newest keys that fit."""
    crowd = tuple(authority(f"c{n}", ec.generate_private_key(ec.SECP256R1())) for n in range(MAX_KEYS_TRIED))
    newest = TrustBundle(TD, jwt_authorities=(*crowd, *OWN.jwt_authorities))
    oldest = TrustBundle(TD, jwt_authorities=(OWN.jwt_authorities[0], *crowd))
    assert verify(make({"kid": None}), {TD: newest})
    assert refused(make({"kid": None}), bundles={TD: oldest}) is Reason.BAD_SIGNATURE


def test_hostile_tokens_are_refused_quickly() -> None:
    """N-J-40. Judged by the processor's time: the machine may be busy with something else."""
    texts = ["." * 1_000_000, "a" * 65_536, f"{HEAD}.{b64('[' * 40_000)}.{SIGNATURE}", "é.é.é"]
    started = time.process_time()
    for text in texts:
        assert refused(text) in {Reason.MALFORMED, Reason.TOO_LARGE}
    assert time.process_time() - started < 1


def test_the_verified_id_is_a_value() -> None:
    assert verify(GOOD).spiffe_id == SpiffeId(TD, "/web")
