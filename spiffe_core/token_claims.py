"""The claims that JWT-SVIDs and WIT-SVIDs share, and how they are read: who, and from when until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spiffe_core.errors import InvalidId, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId


def subject_of(claims: Mapping[str, Any]) -> SpiffeId:
    """The SPIFFE ID in `sub`, which has a path.

    Raises:
        VerificationFailed: NO_SPIFFE_ID or BAD_SPIFFE_ID.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise VerificationFailed("sub: is missing or not text", Reason.NO_SPIFFE_ID)
    try:
        spiffe_id = SpiffeId.parse(subject, field="sub")
    except InvalidId:
        raise VerificationFailed("sub: is not a SPIFFE ID", Reason.BAD_SPIFFE_ID) from None
    if not spiffe_id.path:
        raise VerificationFailed("sub: a workload's SPIFFE ID has a path", Reason.BAD_SPIFFE_ID)
    return spiffe_id


def check_times(claims: Mapping[str, Any], now: float, leeway: float, max_lifetime: float) -> float:
    """`exp`, in unix seconds, of a token that is good at `now`; clocks may differ by `leeway` seconds.

    Raises:
        VerificationFailed: EXPIRED, NOT_YET_VALID, or BAD_CLAIM for a time that is missing, odd or too far away.
    """
    expires_at = number_of(claims, "exp")
    if now >= expires_at + leeway:
        raise VerificationFailed("exp: the token has expired", Reason.EXPIRED)
    if expires_at - now > max_lifetime:
        raise VerificationFailed("exp: the token is good for longer than this validator allows", Reason.BAD_CLAIM)
    if "nbf" in claims and number_of(claims, "nbf") > now + leeway:
        raise VerificationFailed("nbf: the token is not valid yet", Reason.NOT_YET_VALID)
    return expires_at


def number_of(claims: Mapping[str, Any], name: str) -> float:
    """A NumericDate: a number of at least 0 that can be compared (`True` is none)."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VerificationFailed(f"{name}: is missing or not a number", Reason.BAD_CLAIM)
    try:
        number = float(value)
    except OverflowError:
        raise VerificationFailed(f"{name}: is out of range", Reason.BAD_CLAIM) from None
    if number < 0:
        raise VerificationFailed(f"{name}: is negative", Reason.BAD_CLAIM)
    return number
