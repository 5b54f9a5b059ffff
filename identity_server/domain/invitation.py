"""An invitation to federate: one line that says where a trust domain's bundle is, and which keys it holds now.

Theory of operation. The line is a JWS (RFC 7515) signed by the inviting server's own X509-SVID, whose chain stands in
the header. It carries the relationship and a fingerprint of every key of the bundle (the pins). Whoever accepts it
fetches the bundle and believes it only if all its keys are pinned and the signer's chain ends in it. What that proves:
the bundle is the one the inviter meant, whoever sits between, in the name system or in the web's authorities. What it
does not prove: that the inviter is who the reader thinks. That comes from how the line came, and from nowhere else,
since whoever can change the line can sign another one with keys of his own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from identity_server.domain.agents import SERVER_PATH
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.certificates import public_key_of, read_certificate
from spiffe_core.crypto.jose import (
    algorithm_of,
    encode_part,
    read_compact,
    read_object,
    sign_compact,
    signature_is_good,
)
from spiffe_core.crypto.keys import PrivateKey, check_public_key
from spiffe_core.errors import IdentityError, InvalidRequest, Unavailable, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid

PREFIX: Final = "muniment-federation-1:"
"""How an invitation begins; the number is the version of its form."""
MAX_LINE: Final = 48 * 1024
MAX_CHAIN: Final = 5
MAX_PINS: Final = 1000
PIN_BYTES: Final = 16
DEFAULT_LIFE: Final = timedelta(hours=1)
LONGEST_LIFE: Final = timedelta(days=7)
LEEWAY: Final = timedelta(minutes=1)
"""So far ahead of ours may the inviter's clock be."""

_FIELD: Final = "invitation"
_TYPE: Final = "muniment-invitation"
_FAMILY: Final = "muniment-federation-"
_MEMBERS: Final = frozenset({"trust_domain", "url", "profile", "endpoint_spiffe_id", "pins", "iat", "exp"})


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an invitation says. `chain` is the signer's, DER, leaf first; whose it is shows when the bundle is there."""

    relationship: FederationRelationship
    pins: frozenset[str]
    issued_at: datetime
    expires_at: datetime
    chain: tuple[bytes, ...] = field(repr=False)

    @property
    def signer(self) -> SpiffeId:
        """Who must have signed it: a server of the inviting trust domain."""
        return SpiffeId(self.relationship.trust_domain, SERVER_PATH)


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """One key of a bundle for people to compare: what it is for, its ID, and its fingerprint."""

    use: str
    key_id: str
    pin: str


def pinned_keys(bundle: TrustBundle) -> tuple[PinnedKey, ...]:
    """Every key of a bundle. The fingerprint covers the use, so a key for tokens is never one for certificates."""
    return tuple(_keys(bundle))


def pins_of(bundle: TrustBundle) -> frozenset[str]:
    """The fingerprints of all keys of a bundle."""
    return frozenset(key.pin for key in _keys(bundle))


def require_pinned(bundle: TrustBundle, pins: frozenset[str]) -> None:
    """Believe a bundle whose keys are all among `pins`; keys that are gone since are no harm.

    Raises:
        Unavailable: it has a key that is not among them, or no X.509 authority.
    """
    for key in _keys(bundle):
        if key.pin not in pins:
            raise Unavailable(
                f"the bundle of {bundle.trust_domain} has a key the invitation does not name ({key.use} "
                f"{key.key_id}): either its authorities changed since the invitation was made, and a new one is "
                "needed, or somebody answers in its place"
            )
    if not bundle.x509_authorities:
        raise Unavailable(f"the bundle of {bundle.trust_domain} has no X.509 authority; there is nothing to trust")


def write_invitation(
    relationship: FederationRelationship,
    bundle: TrustBundle,
    *,
    now: datetime,
    life: timedelta,
    chain: tuple[bytes, ...],
    key: PrivateKey,
) -> str:
    """The line. `chain` and `key` are the server's own X509-SVID.

    Raises:
        InvalidRequest: it would live too long, or say more than a line may.
    """
    if not timedelta(0) < life <= LONGEST_LIFE:
        raise InvalidRequest(f"ttl: must lie between 1 second and {LONGEST_LIFE.days} days", field="ttl")
    pins = sorted(pins_of(bundle))
    if len(pins) > MAX_PINS:
        raise InvalidRequest(f"the bundle has more than {MAX_PINS} keys; an invitation cannot name them all")
    header = {
        "alg": algorithm_of(key.public_key()),
        "typ": _TYPE,
        "x5c": [base64.b64encode(der).decode("ascii") for der in chain],
    }
    claims: dict[str, object] = {
        "trust_domain": str(relationship.trust_domain),
        "url": relationship.endpoint_url,
        "profile": relationship.profile.value,
        "pins": pins,
        "iat": int(now.timestamp()),
        "exp": int((now + life).timestamp()),
    }
    if relationship.endpoint_spiffe_id is not None:
        claims["endpoint_spiffe_id"] = str(relationship.endpoint_spiffe_id)
    line = PREFIX + sign_compact(encode_part(header), encode_part(claims), key)
    if len(line) > MAX_LINE:
        raise InvalidRequest(f"the invitation would be longer than {MAX_LINE} characters")
    return line


def read_invitation(line: str, *, now: datetime, own: TrustDomain) -> Invitation:
    """Read a line: whole, undamaged, of our time, and about somebody else. Who signed it is not known yet.

    Raises:
        InvalidRequest: which of these it is not, and what to do. The line is not quoted.
    """
    text = "".join(line.split())  # a mail program may have broken it
    if len(text) > MAX_LINE:
        raise _refused(f"is longer than {MAX_LINE} characters")
    if not text.startswith(PREFIX):
        if text.startswith(_FAMILY):
            raise _refused("is of another version; both sides need releases that speak the same one")
        raise _refused(f"does not begin with {PREFIX}; paste the whole line")
    try:
        jws = read_compact(text.removeprefix(PREFIX))
        claims = read_object(jws.payload, "payload")
        chain = _chain(jws.header)
        key = check_public_key(public_key_of(read_certificate(chain[0], field=_FIELD)), field=_FIELD)
        algorithm = jws.header.get("alg")
        sound = isinstance(algorithm, str) and signature_is_good(jws, algorithm, key)
    except IdentityError:
        raise _refused("is damaged: it cannot be read; paste the whole line") from None
    if not sound:
        raise _refused("is damaged: its signature does not fit; paste the whole line")
    invitation = _claimed(claims, chain)
    if invitation.relationship.trust_domain == own:
        raise _refused("is from this trust domain itself; give it to the other side")
    if invitation.expires_at <= now:
        raise _refused(f"ended at {invitation.expires_at:%Y-%m-%d %H:%M:%S} UTC; ask for a new one")
    if invitation.issued_at > now + LEEWAY or invitation.expires_at - invitation.issued_at > LONGEST_LIFE:
        raise _refused("has times that cannot be: compare the clocks of both servers, and ask for a new one")
    return invitation


def require_signer(invitation: Invitation, bundle: TrustBundle) -> None:
    """The line was signed by a server of the trust domain whose keys it pins, when it was made.

    Raises:
        Unavailable: it was not, or the authority of the signer has left the bundle since.
    """
    try:
        verify_x509_svid(
            invitation.chain,
            lambda name: bundle if name == bundle.trust_domain else None,
            now=invitation.issued_at,
            purpose="server",
        ).require(invitation.signer)
    except VerificationFailed as refusal:
        raise Unavailable(
            f"the invitation was not signed by {invitation.signer}, as its bundle tells: {refusal.public}; ask for a "
            "new one"
        ) from None


def _keys(bundle: TrustBundle) -> Iterator[PinnedKey]:
    for authority in bundle.x509_authorities:
        yield PinnedKey("x509-svid", authority.key_id, _pin("x509-svid", "", authority.der))
    for jwt in bundle.jwt_authorities:
        yield PinnedKey("jwt-svid", jwt.key_id, _pin("jwt-svid", jwt.key_id, jwt.public_key))
    for wit in bundle.wit_authorities:
        yield PinnedKey("wit-svid", wit.key_id, _pin("wit-svid", wit.key_id, wit.public_key))


def _pin(use: str, key_id: str, content: bytes) -> str:
    """SHA-256 over lengths and parts, cut to 128 bits: what it must resist is a second preimage."""
    parts = (use.encode(), key_id.encode(), content)
    digest = hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()
    return base64.urlsafe_b64encode(digest[:PIN_BYTES]).rstrip(b"=").decode("ascii")


def _chain(header: Mapping[str, Any]) -> tuple[bytes, ...]:
    texts = header.get("x5c")
    if header.get("typ") != _TYPE or not isinstance(texts, list) or not 0 < len(texts) <= MAX_CHAIN:
        raise _refused("has no chain of its signer")
    try:
        return tuple(base64.b64decode(text, validate=True) for text in texts)
    except (TypeError, ValueError):
        raise _refused("has a chain that is not base64") from None


def _claimed(claims: Mapping[str, Any], chain: tuple[bytes, ...]) -> Invitation:
    if unknown := sorted(claims.keys() - _MEMBERS):
        raise _refused(f"says more than this release understands ({json.dumps(unknown[0][:32])}); update it")
    pins, times = claims.get("pins"), (claims.get("iat"), claims.get("exp"))
    if not isinstance(pins, list) or not 0 < len(pins) <= MAX_PINS or not all(isinstance(one, str) for one in pins):
        raise _refused("names no keys")
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 36 for one in times):
        raise _refused("has no times")
    texts = {name: claims.get(name, "") for name in ("trust_domain", "url", "profile", "endpoint_spiffe_id")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise _refused("does not say where the bundle is")
    try:
        profile = EndpointProfile(texts["profile"])
        who = SpiffeId.parse(texts["endpoint_spiffe_id"], field=_FIELD) if texts["endpoint_spiffe_id"] else None
        name = TrustDomain.parse(texts["trust_domain"], field=_FIELD)
        relationship = FederationRelationship(name, texts["url"], profile, who)
    except IdentityError as error:
        raise _refused(f"describes no relationship: {error.public}") from None
    except ValueError:
        raise _refused("names a profile that is neither https_web nor https_spiffe") from None
    issued, expires = (datetime.fromtimestamp(one, UTC) for one in times if isinstance(one, int))
    return Invitation(relationship, frozenset(pins), issued, expires, chain)


def _refused(rule: str) -> InvalidRequest:
    return InvalidRequest(f"the invitation {rule}", field=_FIELD)
