"""What the server's WIT-SVID must prove before it is handed out (reliability R42): the holder's check.

Nobody can be *authenticated* by this: that takes a proof made with the confirmed key (WIT-30).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.jose import fits, read_compact, read_object, signature_is_good
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wit_svid import TYPE


def check_issued_wit(
    token: str, *, expected: SpiffeId, confirmed: Mapping[str, str], bundle: TrustBundle, now: datetime
) -> tuple[str, int]:
    """Hold a token against what was asked for; returns its key id and its end in unix seconds.

    `confirmed` is the public JWK that must stand in it, with its `alg`.

    Raises:
        VerificationFailed: naming what is wrong.
    """
    jws = read_compact(token)
    if jws.header.get("typ") != TYPE:
        raise VerificationFailed(f"typ: must be {TYPE}", Reason.BAD_HEADER)
    key_id, algorithm = jws.header.get("kid"), str(jws.header.get("alg"))
    authority = next((one for one in bundle.wit_authorities if one.key_id == key_id), None)
    if authority is None:
        raise VerificationFailed("kid: names no WIT authority of the trust domain", Reason.UNKNOWN_AUTHORITY)
    if not fits(algorithm, authority.key) or not signature_is_good(jws, algorithm, authority.key):
        raise VerificationFailed("the signature is not that of the trust domain's key", Reason.BAD_SIGNATURE)
    claims = read_object(jws.payload, "payload")
    if claims.get("sub") != str(expected):
        raise VerificationFailed(f"the server's token is not for {expected}", Reason.UNEXPECTED_ID)
    if "aud" in claims or not _confirms(claims.get("cnf"), confirmed):
        raise VerificationFailed("cnf: is not the key that was asked for", Reason.BAD_CLAIM)
    end = claims.get("exp")
    if isinstance(end, bool) or not isinstance(end, int) or end <= now.timestamp():
        raise VerificationFailed("exp: is missing or past by this machine's clock: check both clocks", Reason.EXPIRED)
    return authority.key_id, end


def _confirms(claim: Any, confirmed: Mapping[str, str]) -> bool:
    return isinstance(claim, dict) and claim.get("jwk") == dict(confirmed)
