"""JWT- and WIT-SVID messages as values. Nothing a token says is verified here."""

from __future__ import annotations

from spiffe_core.crypto.jose import MAX_TOKEN_BYTES
from spiffe_core.errors import InvalidRequest
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.wire._gen.spire.api.types import jwtsvid_pb2, witsvid_pb2
from spiffe_core.wire.convert_ids import spiffe_id_from_proto
from spiffe_core.wit_svid import WitSvid

MAX_SECONDS = 2**40
"""Far beyond any date a token can bear; keeps arithmetic with it exact."""


def jwt_svid_from_proto(message: jwtsvid_pb2.JWTSVID, audience: tuple[str, ...], *, field: str = "svid") -> JwtSvid:
    """A JWT-SVID that was asked for with `audience`.

    Raises:
        InvalidRequest: the token is missing or too long, a time is out of range, or the SPIFFE ID is malformed.
    """
    _check(message, field)
    spiffe_id = spiffe_id_from_proto(message.id, field=f"{field}.id")
    return JwtSvid(message.token, spiffe_id, audience, message.issued_at, message.expires_at, message.hint)


def wit_svid_from_proto(message: witsvid_pb2.WITSVID, *, field: str = "svid") -> WitSvid:
    """A WIT-SVID.

    Raises:
        InvalidRequest: as for `jwt_svid_from_proto`.
    """
    _check(message, field)
    spiffe_id = spiffe_id_from_proto(message.id, field=f"{field}.id")
    return WitSvid(message.token, spiffe_id, message.issued_at, message.expires_at, message.hint)


def _check(message: jwtsvid_pb2.JWTSVID | witsvid_pb2.WITSVID, field: str) -> None:
    if not message.token or len(message.token) > MAX_TOKEN_BYTES:
        raise InvalidRequest(f"{field}.token: must have 1 to {MAX_TOKEN_BYTES} bytes", field=f"{field}.token")
    for name in ("issued_at", "expires_at"):
        if not 0 <= getattr(message, name) <= MAX_SECONDS:
            raise InvalidRequest(f"{field}.{name}: must be unix seconds", field=f"{field}.{name}")
