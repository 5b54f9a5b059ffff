"""JWT-SVIDs as values: which audiences may be asked for, which claims stand in one (JWT-SVID sections 2 and 3).

A JWT-SVID is a bearer token: whoever holds its text is the workload. So the text is in no repr and in no message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NewType

from spiffe_core.errors import InvalidRequest
from spiffe_core.spiffe_id import SpiffeId

MAX_AUDIENCES = 32
MAX_AUDIENCE_BYTES = 1024
TYPE = "JWT"
Audience = NewType("Audience", tuple[str, ...])
"""Audiences as `check_audience` gives them."""


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A signed token and what it says. Times are unix seconds."""

    token: str = field(repr=False)
    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    issued_at: int
    expires_at: int
    hint: str = ""


def check_audience(audience: Iterable[str], *, field: str = "audience") -> Audience:
    """The audiences a token is made for: blank ones left out, each once, in the order given (N-C-20).

    Raises:
        InvalidRequest: none is left, there are too many, or one is too long.
    """
    named: dict[str, None] = {}
    for number, one in enumerate(audience):
        if number >= MAX_AUDIENCES:
            raise InvalidRequest(f"{field}: at most {MAX_AUDIENCES} audiences fit into one token", field=field)
        if len(one) > MAX_AUDIENCE_BYTES or (
            not one.isascii() and len(one.encode(errors="replace")) > MAX_AUDIENCE_BYTES
        ):
            raise InvalidRequest(f"{field}: an audience has at most {MAX_AUDIENCE_BYTES} bytes", field=field)
        if one.strip():
            named[one] = None
    if not named:
        raise InvalidRequest("at least one audience is required", field=field)
    return Audience(tuple(named))


def jwt_header(algorithm: str, key_id: str) -> dict[str, object]:
    """The header (JWT-SVID section 2): these three members and no others."""
    return {"alg": algorithm, "kid": key_id, "typ": TYPE}


def jwt_claims(
    spiffe_id: SpiffeId, audience: tuple[str, ...], *, issued_at: int, expires_at: int, issuer: str = "", jti: str = ""
) -> dict[str, object]:
    """The claims (JWT-SVID section 3): `aud` always a list, `iss` and `jti` only when there is one, never `nbf`."""
    claims: dict[str, object] = {"aud": list(audience), "exp": expires_at, "iat": issued_at, "sub": str(spiffe_id)}
    if issuer:
        claims["iss"] = issuer
    if jti:
        claims["jti"] = jti
    return claims
