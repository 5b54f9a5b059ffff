"""Verification of WIT-SVIDs with their proof of possession (WIT-SVID sections 2 to 7; WIMSE workload proof token).

There is no function that believes a WIT-SVID by itself: it is no bearer token (WIT-30, WIT-32). A proof is a second
token, made with the key the first one confirms: `typ` is `wpt+jwt`, and it names whom it is for (`aud`), when it ends
(`exp`), itself (`jti`), and the WIT-SVID it belongs to (`wth`, the SHA-256 of the token's text in base64url).

Choices where the standard leaves one: a header parameter that is not known is passed over (WIT-09), `crit` refuses;
`aud` refuses the token (D13); `exp` of a proof lies at most `max_proof_life` ahead. What a token says is never quoted.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from spiffe_core.bundle import TrustBundle, WitAuthority
from spiffe_core.crypto.jose import ALGORITHMS, Jws, fits, read_compact, read_object, signature_is_good
from spiffe_core.crypto.jwk import PRIVATE_MEMBERS, key_from_jwk
from spiffe_core.crypto.keys import PublicKey
from spiffe_core.errors import InvalidBundle, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.token_claims import check_times, number_of, subject_of
from spiffe_core.wit_svid import TYPE

PROOF_TYPE = "wpt+jwt"
DEFAULT_LEEWAY = 30.0
MAX_LEEWAY = 120.0
"""Seconds by which clocks may differ (WIT-19)."""
DEFAULT_PROOF_LIFE = 300.0
MAX_ID = 1024

Bundles = Callable[[TrustDomain], TrustBundle | None]
Replayed = Callable[[str, float], bool]
"""Asked with a proof's id and its end; True if that proof was seen before (WIT-40)."""


@dataclass(frozen=True, slots=True)
class VerifiedWitSvid:
    """A token that was believed because its holder proved to have the key. Times are unix seconds."""

    spiffe_id: SpiffeId
    key: PublicKey
    expires_at: float
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Token:
    """A token that is sound, and whose holder has proved nothing yet."""

    spiffe_id: SpiffeId
    key: PublicKey
    algorithm: str
    expires_at: float
    claims: Mapping[str, Any]


def verify_wit_svid(
    token: str,
    proof: str,
    bundles: Bundles,
    *,
    audience: str,
    now: datetime,
    leeway: float = DEFAULT_LEEWAY,
    max_lifetime: float = math.inf,
    max_proof_life: float = DEFAULT_PROOF_LIFE,
    replayed: Replayed | None = None,
) -> VerifiedWitSvid:
    """Decide whether `token` with `proof` proves a SPIFFE ID to `audience` at `now`.

    `audience` is what the proof must name, exactly: the validator's own address as its clients write it. `max_lifetime`
    caps how many seconds after `now` the token may be good for.

    Raises:
        VerificationFailed: with the reason.
        ValueError: a bound is out of bounds, or the validator has no name: a mistake of the caller.
    """
    # To believe a token we must know that
    #   1. it is a JWS in compact form with typ wit+jwt, an allowed algorithm, a kid and no crit
    #   2. `sub` is a SPIFFE ID with a path, and there is a bundle for its own trust domain
    #   3. the WIT authority of that bundle that `kid` names, letter by letter, made the signature
    #   4. `exp` is there and not past, `nbf` if there is not in the future, `aud` is not there
    #   5. `cnf.jwk` is a sound public key, with an allowed `alg` that fits it
    #   6. there is a proof, made by exactly that key with exactly that algorithm
    #   7. the proof is for us, for this token, short-lived, not past, and was not seen before
    if not 0 <= leeway <= MAX_LEEWAY:
        raise ValueError(f"leeway: must lie between 0 and {MAX_LEEWAY} seconds")
    if not audience:
        raise ValueError("audience: the validator has no name of its own")
    moment = now.timestamp()
    known = _token(token, bundles, moment, leeway, max_lifetime)  # (1) to (5)
    if not proof:  # (6)
        raise VerificationFailed("proof: is missing; a WIT-SVID proves nothing by itself", Reason.BAD_SIGNATURE)
    jws = read_compact(proof)
    if jws.header.get("typ") != PROOF_TYPE or "crit" in jws.header:
        raise VerificationFailed(f"proof: typ must be {PROOF_TYPE}, without crit", Reason.BAD_HEADER)
    if jws.header.get("alg") != known.algorithm:
        raise VerificationFailed("proof: alg is not that of the confirmed key", Reason.WEAK_ALGORITHM)
    if not signature_is_good(jws, known.algorithm, known.key):
        raise VerificationFailed("proof: was not made with the confirmed key", Reason.BAD_SIGNATURE)
    _check_proof(jws, token, audience, moment, leeway, max_proof_life, replayed)  # (7)
    return VerifiedWitSvid(known.spiffe_id, known.key, known.expires_at, MappingProxyType(dict(known.claims)))


def _token(token: str, bundles: Bundles, now: float, leeway: float, max_lifetime: float) -> _Token:
    jws = read_compact(token)
    algorithm, key_id = _header(jws)
    claims = read_object(jws.payload, "payload")
    spiffe_id = subject_of(claims)
    authority = _authority(bundles(spiffe_id.trust_domain), spiffe_id.trust_domain, key_id)
    if not fits(algorithm, authority.key):
        raise VerificationFailed("alg: does not fit the key", Reason.WEAK_ALGORITHM)
    if not signature_is_good(jws, algorithm, authority.key):
        raise VerificationFailed("the signature is not that of the trust domain's key", Reason.BAD_SIGNATURE)
    expires_at = check_times(claims, now, leeway, max_lifetime)
    if "aud" in claims:
        raise VerificationFailed("aud: has no place in a WIT-SVID", Reason.BAD_CLAIM)
    key, confirmed = _confirmation(claims)
    return _Token(spiffe_id, key, confirmed, expires_at, claims)


def _header(jws: Jws) -> tuple[str, str]:
    algorithm, key_id = jws.header.get("alg"), jws.header.get("kid")
    if jws.header.get("typ") != TYPE:
        raise VerificationFailed(f"typ: must be {TYPE}", Reason.BAD_HEADER)
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise VerificationFailed("alg: is missing or not one of the nine that are allowed", Reason.WEAK_ALGORITHM)
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_ID:
        raise VerificationFailed(f"kid: must be text of 1 to {MAX_ID} characters", Reason.BAD_HEADER)
    if "crit" in jws.header:
        raise VerificationFailed("crit: names something that is not understood here", Reason.BAD_HEADER)
    return algorithm, key_id


def _authority(bundle: TrustBundle | None, trust_domain: TrustDomain, key_id: str) -> WitAuthority:
    if bundle is None or bundle.trust_domain != trust_domain:
        raise VerificationFailed(f"no trust bundle for {trust_domain} is loaded", Reason.NO_BUNDLE)
    if not bundle.wit_authorities:
        raise VerificationFailed(f"the trust bundle of {trust_domain} has no WIT authority", Reason.EMPTY_BUNDLE)
    for authority in bundle.wit_authorities:
        if authority.key_id == key_id:
            return authority
    raise VerificationFailed("kid: names no WIT authority of the trust domain", Reason.UNKNOWN_AUTHORITY)


def _confirmation(claims: Mapping[str, Any]) -> tuple[PublicKey, str]:
    """The key the holder must have, and the one algorithm it will use."""
    confirmation = claims.get("cnf")
    jwk = confirmation.get("jwk") if isinstance(confirmation, dict) else None
    if not isinstance(jwk, dict):
        raise VerificationFailed("cnf: must hold the holder's public key as jwk", Reason.BAD_CLAIM)
    if PRIVATE_MEMBERS & jwk.keys():
        raise VerificationFailed("cnf.jwk: holds private or symmetric members", Reason.BAD_CLAIM)
    try:
        key = key_from_jwk(jwk)
    except InvalidBundle as refusal:
        raise VerificationFailed(f"cnf.jwk: {refusal.public}", Reason.BAD_CLAIM) from None
    algorithm = jwk.get("alg")
    if not isinstance(algorithm, str) or not fits(algorithm, key):
        raise VerificationFailed("cnf.jwk.alg: is missing, not allowed, or does not fit the key", Reason.WEAK_ALGORITHM)
    return key, algorithm


def _check_proof(
    jws: Jws, token: str, audience: str, now: float, leeway: float, longest: float, replayed: Replayed | None
) -> None:
    claims = read_object(jws.payload, "payload")
    if claims.get("aud") != audience:
        raise VerificationFailed("proof: is meant for somebody else", Reason.UNEXPECTED_AUDIENCE)
    if claims.get("wth") != hash_of(token):
        raise VerificationFailed("proof: belongs to another WIT-SVID", Reason.BAD_CLAIM)
    expires_at = number_of(claims, "exp")
    if now >= expires_at + leeway:
        raise VerificationFailed("proof: has expired", Reason.EXPIRED)
    if expires_at - now > longest:
        raise VerificationFailed(f"proof: is good for longer than {longest:g} seconds", Reason.BAD_CLAIM)
    proof_id = claims.get("jti")
    if not isinstance(proof_id, str) or not 0 < len(proof_id) <= MAX_ID:
        raise VerificationFailed(f"proof: jti must be text of 1 to {MAX_ID} characters", Reason.BAD_CLAIM)
    if replayed is not None and replayed(proof_id, expires_at + leeway):
        raise VerificationFailed("proof: was used before", Reason.BAD_CLAIM)


def hash_of(token: str) -> str:
    """The `wth` claim of a proof for `token`: base64url of the SHA-256 of its text, without padding."""
    digest = hashlib.sha256(token.encode("ascii", "replace")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
