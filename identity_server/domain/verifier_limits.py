"""How long the subject of a token may be for those outside who verify JWT-SVIDs. The subject is the SPIFFE ID.

A SPIFFE ID may have 2,048 bytes (SPIFFE-ID section 2.3); a cloud that exchanges tokens for its own credentials takes
less, and says so only when the exchange fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SubjectLimit:
    """The longest subject one verifier takes. SPIFFE IDs are ASCII: a character is a byte."""

    verifier: str
    """What people call it."""
    longest: int
    source: str
    """The verifier's own words on it."""


SUBJECT_LIMITS: Final = (
    SubjectLimit(
        "Google Cloud",
        127,
        "IAM API v1, projects.locations.workloadIdentityPools.providers, attributeMapping: google.subject",
    ),
    SubjectLimit(
        "AWS",
        255,
        "AWS STS API reference, AssumeRoleWithWebIdentity: SubjectFromWebIdentityToken; "
        "as OpenID Connect Core 1.0 section 2",
    ),
    SubjectLimit("Azure", 600, "Microsoft Graph v1.0, federatedIdentityCredential: subject"),
)
"""Ascending."""


def too_long_for(subject: str) -> tuple[SubjectLimit, ...]:
    """Those who take no subject as long as this one."""
    return tuple(one for one in SUBJECT_LIMITS if len(subject) > one.longest)
