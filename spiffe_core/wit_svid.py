"""WIT-SVIDs as values: which key may be confirmed, which claims stand in one (WIT-SVID sections 2 and 3, incubating).

A WIT-SVID names a workload *and its key*: it proves nothing without a proof made with that key, so unlike a JWT-SVID
it is no bearer token and has no audience.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spiffe_core.crypto.jose import check_algorithm
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.crypto.keys import PublicKey, check_public_key, from_spki
from spiffe_core.errors import InvalidCertificate, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId

TYPE = "wit+jwt"
MAX_ALGORITHM_BYTES = 16


@dataclass(frozen=True, slots=True)
class WitSvid:
    """A signed token and what it says. Times are unix seconds."""

    token: str = field(repr=False)
    spiffe_id: SpiffeId
    issued_at: int
    expires_at: int
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ConfirmationKey:
    """The key a workload will make its proofs with, and the one algorithm it will use (WIT-12, WIT-13)."""

    public_key: PublicKey
    algorithm: str

    @classmethod
    def read(cls, public_key: bytes, algorithm: str) -> ConfirmationKey:
        """A key as SubjectPublicKeyInfo DER with its algorithm (N-C-22).

        Raises:
            InvalidRequest: the key is missing, unreadable or weak, or the algorithm is not one of the nine or does
                not fit it.
        """
        if not public_key:
            raise InvalidRequest("missing public key", field="public_key")
        if not algorithm:
            raise InvalidRequest("missing signing algorithm", field="signing_algorithm")
        try:
            key = check_public_key(from_spki(public_key), field="public_key")
        except InvalidCertificate as refusal:
            raise InvalidRequest(f"malformed public key: {refusal.public}", field="public_key") from None
        return cls(key, check_algorithm(algorithm[:MAX_ALGORITHM_BYTES], key, field="signing_algorithm"))


def wit_header(algorithm: str, key_id: str) -> dict[str, object]:
    """The header (WIT-SVID section 2): these three members and no others."""
    return {"alg": algorithm, "kid": key_id, "typ": TYPE}


def wit_claims(spiffe_id: SpiffeId, key: ConfirmationKey, *, issued_at: int, expires_at: int) -> dict[str, object]:
    """The claims (WIT-SVID section 3): no `aud` (WIT-27), no `iss` (WIT-26), the key under `cnf.jwk` with its `alg`."""
    jwk = {**key_to_jwk(key.public_key), "alg": key.algorithm}
    return {"cnf": {"jwk": jwk}, "exp": expires_at, "iat": issued_at, "sub": str(spiffe_id)}
