"""JWT-SVIDs on their way: the `Authorization` header of HTTP and the metadata of gRPC (JWT-SVID sections 5.2, 5.3).

A sender makes the pair with `bearer`; a receiver takes the text out with `bearer_token` and has it validated. Nothing
else is a credential: no other scheme, no query string, no cookie, no form, and not two of them at once (RFC 6750).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from spiffe_core.crypto.jose import MAX_TOKEN_BYTES

HEADER: Final = "authorization"
"""As HTTP/2 and gRPC spell it; HTTP/1 takes it in any case."""
_CREDENTIAL = re.compile(r"bearer ([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


def bearer(token: str) -> tuple[str, str]:
    """The header, or the entry of a gRPC call's metadata, that carries a JWT-SVID. Send it over TLS only."""
    return HEADER, f"Bearer {token}"


def bearer_token(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token in a request's headers or a call's metadata; None if there is not exactly one, and nothing but it.

    What comes back is a stranger's text: have it validated before it means anything. The scheme's name may be written
    in any case (RFC 9110 section 11.1).
    """
    found = [value for name, value in headers if name.lower() == HEADER]
    if len(found) != 1 or not isinstance(found[0], str) or len(found[0]) > MAX_TOKEN_BYTES:
        return None
    match = _CREDENTIAL.fullmatch(found[0])
    return match[1] if match else None
