"""Join tokens: one-use credentials for a node's first contact, stored hashed and bound to the key that redeems them.

Rules (architecture A18). Whoever presents the token first binds it to the public key of its CSR. The same key may
repeat for five minutes, because a reply can be lost; any other key has lost. The agent's SPIFFE ID is made from the
token (`/spire/agent/join_token/<token>`), so a token must be one SPIFFE ID path segment, and the record made before
redemption holds no part of it in clear.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from spiffe_core.errors import InvalidRequest

MAX_TOKEN_BYTES = 256
REPEAT_SECONDS = 300
"""For so long the key that redeemed a token may redeem it again."""
MAX_TTL = 2**31 - 1
UNKNOWN_TOKEN = "failed to attest: join token does not exist or has already been used"  # noqa: S105  # not a secret
EXPIRED_TOKEN = "join token expired"  # noqa: S105  # not a secret
_PREFIX = "/spire/agent/join_token/"
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as it is stored. `alias_path` is "" or the path of the SPIFFE ID the node shall also be known by."""

    digest: bytes
    alias_path: str
    expires_at: int
    redeemed_key: bytes = b""
    redeemed_at: int = 0


def check_token(token: str) -> str:
    """Return `token` if it can be one segment of a SPIFFE ID path (S35); its value never appears in the error."""
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidRequest(f"invalid join token: at most {MAX_TOKEN_BYTES} bytes are allowed", field="token")
    if not _SEGMENT.fullmatch(token) or token in {".", ".."}:
        raise InvalidRequest(
            "invalid join token: only letters, digits, '.', '-' and '_' are allowed, and it cannot be '.' or '..'",
            field="token",
        )
    return token


def check_ttl(ttl: int) -> int:
    """Return `ttl` in seconds if it is positive and fits SPIRE's int32."""
    if ttl < 1:
        raise InvalidRequest("ttl is required, you must provide one (a positive number of seconds)", field="ttl")
    if ttl > MAX_TTL:
        raise InvalidRequest(f"ttl must be at most {MAX_TTL} seconds", field="ttl")
    return ttl


def digest_of(token: str | bytes) -> bytes:
    """What is stored and looked up instead of the token: its SHA-256."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def agent_path(token: str) -> str:
    """The SPIFFE ID path of the agent that redeems `token`."""
    return _PREFIX + check_token(token)


def check_redeemable(token: JoinToken | None, key_digest: bytes, now: int) -> JoinToken:
    """Say early, and with SPIRE's words, why a token cannot be redeemed. The store's conditional UPDATE decides.

    1. Unknown: refused.
    2. Redeemed: only by the same key, within `REPEAT_SECONDS`.
    3. Not redeemed: only before it expires.
    """
    if token is None:  # (1)
        raise InvalidRequest(UNKNOWN_TOKEN)
    if token.redeemed_at:  # (2)
        if token.redeemed_key == key_digest and now < token.redeemed_at + REPEAT_SECONDS:
            return token
        raise InvalidRequest(UNKNOWN_TOKEN)
    if now >= token.expires_at:  # (3)
        raise InvalidRequest(EXPIRED_TOKEN)
    return token
