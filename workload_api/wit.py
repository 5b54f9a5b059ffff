"""WIT-SVIDs on their way: the two headers of HTTP that carry one with its proof (WIT-SVID sections 5 and 7).

A WIT-SVID is no bearer token. Its holder makes a proof for each request, with the key the token confirms (WIMSE
workload proof token): for one URL, short-lived, good once. A sender makes the headers with `wit_headers`, which refuses
a URL that is not https (WIT-41); a receiver takes both texts out with `wit_and_proof` and gives them to
`verify_wit_svid`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from spiffe_core.crypto.jose import MAX_TOKEN_BYTES, algorithm_of, encode_part, sign_compact
from spiffe_core.crypto.keys import PrivateKeyDer, from_pkcs8
from spiffe_core.errors import InvalidRequest
from spiffe_core.wit_verify import MAX_ID, PROOF_TYPE, hash_of

TOKEN_HEADER: Final = "workload-identity-token"  # noqa: S105  # the name of a header
PROOF_HEADER: Final = "workload-proof-token"
PROOF_SECONDS: Final = 60
"""How long a proof is good for (WIT-39)."""
MAX_URL: Final = 8192


def wit_headers(
    url: str, token: str, key: PrivateKeyDer, *, now: datetime, proof_id: str
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The headers that present `token` in one request to `url`, which its holder proves to have `key` for.

    `proof_id` names the proof and must be a new one each time: `secrets.token_urlsafe(16)`.

    Raises:
        InvalidRequest: the URL is not https, or not one a proof can be made for.
    """
    if not 0 < len(proof_id) <= MAX_ID:
        raise InvalidRequest(f"proof_id: must have 1 to {MAX_ID} characters", field="proof_id")
    audience = proof_audience(url)
    private = from_pkcs8(key)
    header = {"alg": algorithm_of(private.public_key()), "typ": PROOF_TYPE}
    ends = int(now.timestamp()) + PROOF_SECONDS
    claims = {"aud": audience, "exp": ends, "jti": proof_id, "wth": hash_of(token)}
    proof = sign_compact(encode_part(header), encode_part(claims), private)
    return (TOKEN_HEADER, token), (PROOF_HEADER, proof)


def proof_audience(url: str) -> str:
    """Whom a proof for a request to `url` names: the URL without query and fragment.

    Raises:
        InvalidRequest: a token must not travel to where this URL leads (WIT-41).
    """
    if not 0 < len(url) <= MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(f"url: must have 1 to {MAX_URL} printable ASCII characters and no blanks", field="url")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is no number is heard of here
    except ValueError:
        raise InvalidRequest("url: cannot be read", field="url") from None
    if parts.scheme != "https":
        raise InvalidRequest(
            "url: must begin with https://, for a WIT-SVID and its proof travel over a secure channel only", field="url"
        )
    if not host or "@" in parts.netloc:
        raise InvalidRequest("url: must name a host and no user", field="url")
    return f"https://{parts.netloc}{parts.path or '/'}"


def wit_and_proof(headers: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The token and the proof of a request; None if there is not exactly one of each.

    What comes back is a stranger's text: `verify_wit_svid` says what it means. The `Authorization` header is never
    looked at (WIT-32).
    """
    found: dict[str, list[str]] = {TOKEN_HEADER: [], PROOF_HEADER: []}
    for name, value in headers:
        found.get(name.lower(), []).append(value)
    tokens, proofs = found[TOKEN_HEADER], found[PROOF_HEADER]
    if len(tokens) != 1 or len(proofs) != 1 or max(len(tokens[0]), len(proofs[0])) > MAX_TOKEN_BYTES:
        return None
    return tokens[0], proofs[0]
