"""What of the trust bundle is put somewhere else for others to read, and whether it may replace what is there.

Several servers of one trust domain publish to the same place, each as soon as it knows of a change. So what is there
may be newer than what this server knows: it is then left alone (SPIFFE Trust Domain and Bundle section 4.1.1: the
sequence never goes back). What belongs to another trust domain is never replaced.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import json
from dataclasses import dataclass, field, replace

from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle, dump_bundle_pem
from spiffe_core.crypto.certificates import public_key_of
from spiffe_core.crypto.jwk import authority_key_to_jwk, key_to_jwk
from spiffe_core.crypto.keys import check_authority_key
from spiffe_core.errors import PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
JITTER = 0.2
_MOST_DOUBLINGS = 16


class BundleFormat(enum.Enum):
    """How a bundle is written: SPIFFE's document, a plain JWK Set (RFC 7517), or the X.509 authorities in PEM."""

    SPIFFE = "spiffe"
    JWKS = "jwks"
    PEM = "pem"

    @property
    def content_type(self) -> str:
        """The media type."""
        return "application/x-pem-file" if self is BundleFormat.PEM else "application/json"


@dataclass(frozen=True, slots=True)
class Publication:
    """Finished bytes, and what they were made of."""

    trust_domain: TrustDomain
    sequence: int
    format: BundleFormat
    content: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Present:
    """What a place holds. `sequence` and `trust_domain` as it says itself; None and "" where it cannot tell."""

    digest: str
    sequence: int | None = None
    trust_domain: str = ""


class Outcome(enum.Enum):
    """What came of publishing."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class TargetState:
    """How one place stands: the sequence it was given last, for how long it lacks the newest bundle, and why."""

    name: str
    place: str
    sequence: int | None = None
    behind_seconds: float = 0.0
    error: str = ""


def publication_of(bundle: TrustBundle, form: BundleFormat, refresh_hint: int | None = None) -> Publication:
    """`bundle` as it is put in a place; `refresh_hint` in seconds replaces its own.

    Raises:
        InvalidBundle: a key ID stands for two token keys.
    """
    if form is BundleFormat.PEM:
        content = dump_bundle_pem(bundle)
    elif form is BundleFormat.JWKS:
        content = _key_set(bundle)
    else:
        content = dump_bundle(bundle if refresh_hint is None else replace(bundle, refresh_hint=refresh_hint))
    return Publication(bundle.trust_domain, bundle.sequence, form, content)


def may_write(ours: Publication, there: Present | None, place: str) -> bool:
    """Whether `ours` is to be put in `place`; False if the same is there already.

    Raises:
        PreconditionFailed: what is there must stay; says why, and what to do.
    """
    if there is None:
        return True
    if there.trust_domain and there.trust_domain != ours.trust_domain.name:
        raise PreconditionFailed(
            f"{place} holds the bundle of the trust domain {there.trust_domain}; it is left as it is. Name another "
            f"place for {ours.trust_domain}, or delete it"
        )
    if there.sequence is not None and there.sequence > ours.sequence:
        raise PreconditionFailed(
            f"{place} holds sequence {there.sequence}, newer than ours ({ours.sequence}); it is left as it is. Another "
            "server knows more, or the database was restored: if this stays so, delete it, and ours is published"
        )
    return there.digest != ours.digest


def pause_after(failures: int, jitter: float) -> float:
    """Seconds until the next try after so many failures in a row; `jitter` lies in [-1, 1]."""
    doubled = FIRST_PAUSE * float(1 << min(max(failures - 1, 0), _MOST_DOUBLINGS))
    return min(doubled, LONGEST_PAUSE) * (1 + JITTER * jitter)


def _key_set(bundle: TrustBundle) -> bytes:
    """X.509 and JWT authorities without SPIFFE's own members, as SPIRE writes this format.

    WIT keys are left out: without `use` nothing would tell them from JWT keys (WIT-SVID section 6.1).
    """
    keys: list[dict[str, object]] = []
    for authority in bundle.x509_authorities:
        key = check_authority_key(public_key_of(authority.facts), field="x509_authorities")
        keys.append({**authority_key_to_jwk(key), "x5c": [base64.b64encode(authority.der).decode("ascii")]})
    keys.extend({"kid": jwt.key_id, **key_to_jwk(jwt.key)} for jwt in bundle.jwt_authorities)
    return json.dumps({"keys": keys}, separators=(",", ":")).encode("ascii")
