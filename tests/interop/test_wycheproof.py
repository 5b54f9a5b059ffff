"""Signatures and tokens against Project Wycheproof's vectors (S5); MUNIMENT_WYCHEPROOF names its `testvectors_v1`.

What is asked is whether anything invalid is accepted. What is valid and refused here is refused by rule: this system has
no HMAC, signs no empty payload, and reads base64url in its one spelling.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from spiffe_core.crypto.jose import ALGORITHMS, Jws, read_compact, signature_is_good
from spiffe_core.crypto.jwk import key_from_jwk
from spiffe_core.crypto.keys import from_spki
from spiffe_core.errors import InvalidBundle, InvalidCertificate, VerificationFailed
from tests.interop.peers import lacking

TOKENS = {"json_web_signature": 340, "json_web_key": 12, "json_web_crypto": 40}
"""File -> so many invalid tokens at least are in it."""
SIGNATURES = {
    "ecdsa_secp256r1_sha256_p1363": "ES256",
    "ecdsa_secp384r1_sha384_p1363": "ES384",
    "ecdsa_secp521r1_sha512_p1363": "ES512",
    "rsa_signature_2048_sha256": "RS256",
    "rsa_signature_2048_sha384": "RS384",
    "rsa_signature_2048_sha512": "RS512",
    "rsa_signature_4096_sha256": "RS256",
    "rsa_pss_2048_sha256_mgf1_32": "PS256",
    "rsa_pss_2048_sha384_mgf1_48": "PS384",
}
KEY_METADATA = frozenset({"alg", "use", "key_ops"})
"""A bundle says what a key is for with SPIFFE's own `use`, which `bundle_document` reads; the JWK's words are not asked
here, so vectors whose only fault is one of them are accepted by this layer."""


@pytest.fixture(scope="module")
def vectors() -> Path:
    named = os.environ.get("MUNIMENT_WYCHEPROOF", "")
    if not named:
        lacking("wycheproof", "MUNIMENT_WYCHEPROOF names no folder with Wycheproof's testvectors_v1")
    return Path(named)


def groups(vectors: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((vectors / f"{name}_test.json").read_text())["testGroups"]
    return found


def believed(keys: list[Mapping[str, Any]], token: str) -> bool:
    """What a verifier does with a token: its header's algorithm, the keys with its id, one good signature."""
    try:
        jws = read_compact(token)
    except VerificationFailed:
        return False
    algorithm = jws.header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        return False
    for jwk in keys:
        if "kid" not in jws.header or jwk.get("kid") == jws.header["kid"]:
            try:
                if signature_is_good(jws, algorithm, key_from_jwk(jwk)):
                    return True
            except InvalidBundle:
                continue
    return False


def tokens(vectors: Path, name: str) -> Iterator[tuple[list[Mapping[str, Any]], dict[str, Any]]]:
    for group in groups(vectors, name):
        jwk = group.get("public") or group["private"]
        keys = jwk.get("keys", [jwk])
        for test in group["tests"]:
            if isinstance(test.get("jws"), str):
                yield keys, test


def fault_is_in_the_keys_words(keys: list[Mapping[str, Any]], token: str) -> bool:
    """Whether the key says of itself that it is not for this token."""
    algorithm = read_compact(token).header["alg"]
    (key,) = keys
    words = {name: key[name] for name in KEY_METADATA & key.keys()}
    return (
        words.get("use", "sig") != "sig"
        or "verify" not in words.get("key_ops", ["verify"])
        or words.get("alg", algorithm) != algorithm
    )


@pytest.mark.parametrize("name", TOKENS)
def test_no_invalid_token_is_believed(vectors: Path, name: str) -> None:
    """S5, S41: what is accepted though invalid is so by the key's own words only."""
    refused = 0
    for keys, test in tokens(vectors, name):
        if test["result"] != "invalid":
            continue
        if believed(keys, test["jws"]):
            assert fault_is_in_the_keys_words(keys, test["jws"]), test
        else:
            refused += 1
    assert refused >= TOKENS[name]


def test_valid_tokens_are_believed_unless_a_rule_of_ours_refuses_them(vectors: Path) -> None:
    """S5: HMAC, empty payloads and stray characters are all that is refused."""
    good = 0
    for name in TOKENS:
        for keys, test in tokens(vectors, name):
            if test["result"] != "valid":
                continue
            if believed(keys, test["jws"]):
                good += 1
                continue
            symmetric = all(key["kty"] == "oct" for key in keys)
            assert symmetric or test["comment"] == "emptyPayload", test
    assert good >= 30


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_judged_as_the_vectors_say(vectors: Path, name: str) -> None:
    """S5: every invalid one refused, every valid one believed."""
    algorithm, judged = SIGNATURES[name], 0
    for group in groups(vectors, name):
        spki = group.get("publicKeyDer") or group["keyDer"]
        try:
            key = from_spki(bytes.fromhex(spki))
        except InvalidCertificate:
            continue  # an exponent of 3 and the like: nothing signed by such a key is believed here
        for test in group["tests"]:
            jws = Jws({}, b"", bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]))
            good = signature_is_good(jws, algorithm, key)
            if test["result"] != "acceptable":
                assert good == (test["result"] == "valid"), test
                judged += 1
    assert judged >= 90
