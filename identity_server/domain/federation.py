"""Federation with other trust domains: where their bundles come from, and which bundles may be stored.

A relationship says where the bundle of a foreign trust domain is fetched and how that place is authenticated (SPIFFE
Federation sections 5.1 and 5.2); the bundle itself is stored beside it, and may also be set by hand without any
relationship (spire_features section 19.3).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.errors import Conflict, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

MAX_URL_BYTES = 2048
_HIGHEST_PORT = 65535


class EndpointProfile(enum.Enum):
    """How the endpoint that serves a foreign bundle is authenticated."""

    HTTPS_WEB = "https_web"
    """By a public authority, for its host name."""
    HTTPS_SPIFFE = "https_spiffe"
    """By an X.509-SVID with a SPIFFE ID agreed beforehand."""


class DeleteMode(enum.Enum):
    """What becomes of the entries that federate with a trust domain whose bundle is deleted."""

    RESTRICT = 0
    """As long as there are any, the bundle stays."""
    DELETE = 1
    """They are deleted too."""
    DISSOCIATE = 2
    """They stay, and federate with one trust domain less."""


@dataclass(frozen=True, slots=True)
class FederationRelationship:
    """Where one foreign trust domain's bundle is fetched."""

    trust_domain: TrustDomain
    endpoint_url: str
    profile: EndpointProfile
    endpoint_spiffe_id: SpiffeId | None = None
    """Whom the endpoint must prove to be; set exactly with the profile HTTPS_SPIFFE."""

    def __post_init__(self) -> None:
        check_endpoint_url(self.endpoint_url)
        if (self.profile is EndpointProfile.HTTPS_SPIFFE) != (self.endpoint_spiffe_id is not None):
            raise InvalidRequest(
                "bundle_endpoint_profile: https_spiffe needs an endpoint SPIFFE ID, and https_web has none",
                field="bundle_endpoint_profile",
            )


def check_endpoint_url(url: str) -> str:
    """`url` if a bundle can be fetched there: https, with a host, without user info (SPIFFE Federation section 5.2).

    Raises:
        InvalidRequest: what is wrong with it.
    """
    field = "bundle_endpoint_url"
    if len(url.encode(errors="replace")) > MAX_URL_BYTES:
        raise InvalidRequest(f"bundle endpoint URL has more than {MAX_URL_BYTES} bytes", field=field)
    if not url.isprintable() or " " in url or "\\" in url:
        raise InvalidRequest("failed to parse bundle endpoint URL: it holds characters no URL has", field=field)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequest("failed to parse bundle endpoint URL: host or port cannot be read", field=field) from None
    if parts.scheme != "https":
        raise InvalidRequest("bundle endpoint URL must use the https scheme", field=field)
    if not parts.hostname:
        raise InvalidRequest("bundle endpoint URL must specify the host", field=field)
    if "@" in parts.netloc:
        raise InvalidRequest("bundle endpoint URL must not contain user info", field=field)
    if port is not None and not 0 < port <= _HIGHEST_PORT:
        raise InvalidRequest("failed to parse bundle endpoint URL: the port must lie between 1 and 65535", field=field)
    return url


def untainted(bundle: TrustBundle) -> TrustBundle:
    """A bundle as others may hand it in: whether an authority is tainted is for its own trust domain to say."""
    return replace(
        bundle,
        x509_authorities=tuple(replace(one, tainted=False) if one.tainted else one for one in bundle.x509_authorities),
        jwt_authorities=tuple(replace(one, tainted=False) if one.tainted else one for one in bundle.jwt_authorities),
        wit_authorities=tuple(replace(one, tainted=False) if one.tainted else one for one in bundle.wit_authorities),
    )


def sharing_keys(bundles: Iterable[TrustBundle], known: Iterable[TrustBundle]) -> dict[TrustDomain, list[TrustDomain]]:
    """Of those bundles that have an authority's key in common with another trust domain's: with which ones.

    Whoever holds such a key speaks for all (SPIFFE Trust Domain and Bundle sections 2 and 6.2: a key for one domain).
    Each known bundle is looked at once, however many are asked about.
    """
    holders: dict[str | bytes, set[TrustDomain]] = {}
    for one in known:
        for key in _keys(one):
            holders.setdefault(key, set()).add(one.trust_domain)
    shared: dict[TrustDomain, list[TrustDomain]] = {}
    for bundle in bundles:
        others = set().union(*(holders.get(key, ()) for key in _keys(bundle))) - {bundle.trust_domain}
        if others:
            shared[bundle.trust_domain] = sorted(others, key=_name)
    return shared


def _name(trust_domain: TrustDomain) -> str:
    return trust_domain.name


def _keys(bundle: TrustBundle) -> frozenset[str | bytes]:
    """The keys of all authorities: of certificates their identifiers, of tokens themselves."""
    tokens = (*bundle.jwt_authorities, *bundle.wit_authorities)
    return frozenset((*(one.key_id for one in bundle.x509_authorities), *(one.public_key for one in tokens)))


def with_published_key(bundle: TrustBundle, key: JwtAuthority | WitAuthority) -> TrustBundle:
    """Add a token key that somebody else signs with. One that stands there already is left as it is, tainted or not.

    Raises:
        Conflict: its key ID stands for another key. Replacing that would hand somebody else's tokens to the caller.
    """
    for known in (*bundle.jwt_authorities, *bundle.wit_authorities):
        if known.key_id == key.key_id:
            if type(known) is type(key) and known.public_key == key.public_key:
                return bundle
            raise Conflict(f"key_id: {key.key_id!r} stands for another key in this bundle; choose another key ID")
    if isinstance(key, WitAuthority):
        return bundle.with_wit_authority(replace(key, tainted=False) if key.tainted else key)
    return bundle.with_jwt_authority(replace(key, tainted=False) if key.tainted else key)
