"""What those outside who verify JWT-SVIDs by OpenID Connect take, as a table; lengths are in `verifier_limits`.

Each number has the place where the verifier says so; what a verifier does not say has no number here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from identity_server.domain.verifier_limits import SUBJECT_LIMITS, SubjectLimit

_IAM = "AWS IAM API reference, CreateOpenIDConnectProvider"
_GRAPH = "Microsoft Graph v1.0, federatedIdentityCredential"
_GOOGLE = "Google IAM API v1, projects.locations.workloadIdentityPools.providers, Oidc"


@dataclass(frozen=True, slots=True)
class Limit:
    """A largest number and who says so."""

    most: int
    source: str


@dataclass(frozen=True, slots=True)
class VerifierRules:
    """One verifier. None is "not said"."""

    name: str
    title: str
    algorithms: frozenset[str]
    algorithms_source: str
    audience: str
    """What tokens are made out to unless somebody chose another; "" where it depends on the provider."""
    subject: SubjectLimit | None = None
    issuer_length: Limit | None = None
    issuer_port: bool = True
    """Whether the issuer may have a port."""
    public: bool = True
    """Whether it fetches from the internet and believes public certificate authorities only."""
    thumbprints: Limit | None = None
    """How many certificate authorities of one's own it takes, told by SHA-1 thumbprints."""
    private_ca_source: str = ""
    """Who says that it takes none."""
    keys_of_a_kind: Limit | None = None
    """RSA keys, and as many EC keys."""
    audience_length: Limit | None = None
    audiences: Limit | None = None
    subjects: Limit | None = None
    """How many subjects one registration takes."""
    token_seconds: Limit | None = None
    anchor_bytes: Limit | None = None
    """X.509 authorities in PEM, where the verifier takes them."""


def _subject(title: str) -> SubjectLimit | None:
    return next((one for one in SUBJECT_LIMITS if one.verifier == title), None)


_AWS: Final = VerifierRules(
    name="aws",
    title="AWS",
    algorithms=frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"}),
    algorithms_source="AWS STS API reference, AssumeRoleWithWebIdentity: WebIdentityToken",
    audience="sts.amazonaws.com",
    subject=_subject("AWS"),
    issuer_length=Limit(255, f"{_IAM}: Url"),
    issuer_port=False,
    thumbprints=Limit(5, f"{_IAM}: ThumbprintList"),
    keys_of_a_kind=Limit(
        100, "AWS IAM user guide, create an OpenID Connect identity provider: 100 RSA and 100 EC keys"
    ),
    audience_length=Limit(255, f"{_IAM}: ClientIDList"),
    audiences=Limit(100, f"{_IAM}: ClientIDList"),
    anchor_bytes=Limit(204_800, "AWS IAM Roles Anywhere API reference, SourceData: x509CertificateData"),
)
_GCP: Final = VerifierRules(
    name="gcp",
    title="Google Cloud",
    algorithms=frozenset({"RS256", "ES256"}),
    algorithms_source="Google STS API v1, token: subject_token",
    audience="",
    subject=_subject("Google Cloud"),
    private_ca_source="Google Cloud, workload identity federation with other providers: prepare your external IdP",
    audience_length=Limit(256, f"{_GOOGLE}: allowedAudiences"),
    audiences=Limit(10, f"{_GOOGLE}: allowedAudiences"),
    token_seconds=Limit(48 * 3600, "Google STS API, token: subject_token, exp is less than 48 hours after iat"),
)
_AZURE: Final = VerifierRules(
    name="azure",
    title="Azure",
    algorithms=frozenset({"RS256"}),
    algorithms_source="Microsoft Entra, considerations for federated identity credentials: "
    "supported signing algorithms",
    audience="api://AzureADTokenExchange",
    subject=_subject("Azure"),
    issuer_length=Limit(600, f"{_GRAPH}: issuer"),
    audience_length=Limit(600, f"{_GRAPH}: audiences"),
    audiences=Limit(1, f"{_GRAPH}: audiences takes a single value"),
    subjects=Limit(20, "Microsoft Entra, considerations for federated identity credentials: 20 per application"),
)
_VAULT: Final = VerifierRules(
    name="vault",
    title="Vault",
    algorithms=frozenset(f"{family}{size}" for family in ("RS", "ES", "PS") for size in ("256", "384", "512")),
    algorithms_source="Vault API, JWT/OIDC auth method: jwt_supported_algs",
    audience="vault",
    public=False,
)

VERIFIERS: Final[Mapping[str, VerifierRules]] = MappingProxyType(
    {rules.name: rules for rules in (_AWS, _GCP, _AZURE, _VAULT)}
)
