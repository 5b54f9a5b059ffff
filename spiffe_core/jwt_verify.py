"""Verification of JWT-SVIDs (JWT-SVID sections 2 to 4), with every bound stated.

Choices where the standard leaves one: a header parameter other than `alg`, `kid` and `typ` refuses the token (D11);
`typ` is compared letter by letter (D12); `sub` needs a path (D15); a token without `kid` is tried with the keys of its
trust domain that fit its algorithm, at most eight. A tainted key still verifies: it is refused once it has left the
bundle. What a token says is never quoted in a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from spiffe_core.bundle import JwtAuthority, TrustBundle
from spiffe_core.crypto.jose import ALGORITHMS, Jws, fits, read_compact, read_object, signature_is_good
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.token_claims import check_times, subject_of

DEFAULT_LEEWAY = 30.0
MAX_LEEWAY = 60.0
"""Seconds by which clocks may differ."""
MAX_KEYS_TRIED = 8
MAX_KEY_ID = 1024

_HEADERS = frozenset({"alg", "kid", "typ"})
_TYPES = ("JWT", "JOSE")


@dataclass(frozen=True, slots=True)
class VerifiedJwtSvid:
    """A token that was believed. `expires_at` is `exp` in unix seconds; `claims` are all of them, read-only."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    expires_at: float
    claims: Mapping[str, Any]


def verify_jwt_svid(
    token: str,
    bundles: Callable[[TrustDomain], TrustBundle | None],
    *,
    audience: Collection[str],
    now: datetime,
    leeway: float = DEFAULT_LEEWAY,
    max_lifetime: float = math.inf,
) -> VerifiedJwtSvid:
    """Decide whether `token` proves a SPIFFE ID to one of `audience` at `now`.

    `audience` are the names the validator answers to. `leeway` is bounded by `MAX_LEEWAY`; `max_lifetime` caps how many
    seconds after `now` a token may still be good for, for validators with such a policy.

    Raises:
        VerificationFailed: with the reason.
        ValueError: `leeway` is out of bounds: a mistake of the caller.
    """
    # To believe a token (JWT-SVID sections 2 to 4, RFC 7519) we must know that
    #   1. the validator has a name of its own (fail closed)
    #   2. the token is a JWS in compact form: three parts of base64url, of bounded size; its header is a JSON object
    #   3. the algorithm is one of the nine that are allowed, before anything else is looked at
    #   4. the header has no other parameters than alg, kid and typ, and typ is JWT, JOSE or absent
    #   5. the claims are a JSON object, and `sub` is a SPIFFE ID with a path
    #   6. there is a bundle for the ID's own trust domain, with at least one JWT authority
    #   7. a JWT authority of that bundle, the one that `kid` names if it names one, made the signature
    #   8. `exp` is there and not past, `nbf` if there is not in the future
    #   9. `aud` is text or a list of texts, and one of them is exactly one of the validator's names
    # The caller still decides whether this ID may do what it asks for.
    if not 0 <= leeway <= MAX_LEEWAY:
        raise ValueError(f"leeway: must lie between 0 and {MAX_LEEWAY} seconds")
    names = frozenset((audience,) if isinstance(audience, str) else audience) - {""}
    if not names:  # (1)
        raise VerificationFailed("audience: the validator has no name of its own", Reason.UNEXPECTED_AUDIENCE)
    jws = read_compact(token)  # (2)
    algorithm = _algorithm(jws)  # (3)
    key_id = _key_id(jws)  # (4)
    claims = read_object(jws.payload, "payload")  # (5)
    spiffe_id = subject_of(claims)
    bundle = bundles(spiffe_id.trust_domain)  # (6)
    if bundle is None or bundle.trust_domain != spiffe_id.trust_domain:
        raise VerificationFailed(
            f"no trust bundle for {spiffe_id.trust_domain} is loaded: the other side belongs to a different trust "
            "domain that is not federated with",
            Reason.NO_BUNDLE,
        )
    if not bundle.jwt_authorities:
        raise VerificationFailed(
            f"the trust bundle of {spiffe_id.trust_domain} has no JWT authority", Reason.EMPTY_BUNDLE
        )
    _check_signature(jws, algorithm, _candidates(bundle, algorithm, key_id))  # (7)
    expires_at = check_times(claims, now.timestamp(), leeway, max_lifetime)  # (8)
    return VerifiedJwtSvid(spiffe_id, _check_audience(claims, names), expires_at, MappingProxyType(dict(claims)))


def _algorithm(jws: Jws) -> str:
    algorithm = jws.header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise VerificationFailed("alg: is missing or not one of the nine that are allowed", Reason.WEAK_ALGORITHM)
    return algorithm


def _key_id(jws: Jws) -> str | None:
    if not jws.header.keys() <= _HEADERS:
        raise VerificationFailed("the header has a parameter other than alg, kid and typ", Reason.BAD_HEADER)
    if "typ" in jws.header and jws.header["typ"] not in _TYPES:
        raise VerificationFailed("typ: must be JWT, JOSE or absent", Reason.BAD_HEADER)
    if "kid" not in jws.header:
        return None
    key_id = jws.header["kid"]
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID:
        raise VerificationFailed(f"kid: must be text of 1 to {MAX_KEY_ID} characters", Reason.BAD_HEADER)
    return key_id


def _candidates(bundle: TrustBundle, algorithm: str, key_id: str | None) -> list[JwtAuthority]:
    """The keys that may have signed: looked up by trust domain and key id, compared letter by letter (N-J-26)."""
    named = [one for one in bundle.jwt_authorities if key_id is None or one.key_id == key_id]
    if not named:
        raise VerificationFailed("kid: names no JWT authority of the trust domain", Reason.UNKNOWN_AUTHORITY)
    fitting = [one for one in named if fits(algorithm, one.key)]
    if not fitting:
        raise VerificationFailed("alg: does not fit the key", Reason.WEAK_ALGORITHM)
    return fitting[-MAX_KEYS_TRIED:]  # the newest: a bundle grows at its end


def _check_signature(jws: Jws, algorithm: str, keys: list[JwtAuthority]) -> None:
    if not any(signature_is_good(jws, algorithm, one.key) for one in keys):
        raise VerificationFailed("the signature is not that of the trust domain's key", Reason.BAD_SIGNATURE)


def _check_audience(claims: Mapping[str, Any], names: frozenset[str]) -> tuple[str, ...]:
    value = claims.get("aud")
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed) or not any(listed):
        raise VerificationFailed("aud: is missing, empty or not text", Reason.BAD_CLAIM)
    if names.isdisjoint(listed):
        raise VerificationFailed("aud: the token is meant for somebody else", Reason.UNEXPECTED_AUDIENCE)
    return tuple(listed)
