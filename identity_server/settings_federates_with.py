"""Settings of what is fetched from other trust domains: `federates_with` with SPIRE's key names, and the client's."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from identity_server.domain.bundle_refresh import MAX_REDIRECTS
from identity_server.domain.federation import EndpointProfile, FederationRelationship, check_endpoint_url
from identity_server.domain.reachability import AddressPolicy, parse_networks
from spiffe_core.bundle import MIN_POLL
from spiffe_core.errors import InvalidRequest
from spiffe_core.runtime.settings import Lifespan, Section, Texts, parsed_by
from spiffe_core.runtime.settings_places import AbsolutePath
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

MAX_FEDERATES_WITH = 10_000


def endpoint_url(text: str) -> str:
    """A URL at which a bundle can be fetched; an `AfterValidator`."""
    try:
        return check_endpoint_url(text)
    except InvalidRequest as refusal:
        raise ValueError(refusal.public) from None


def _networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    parse_networks(texts)
    return texts


class PeerHttpsWebSection(Section):
    """[…bundle_endpoint_profile.https_web]: a public authority vouches for the host name. Nothing can be set."""


class PeerHttpsSpiffeSection(Section):
    """[…bundle_endpoint_profile.https_spiffe]: the endpoint shows the X.509-SVID with this ID."""

    endpoint_spiffe_id: Annotated[SpiffeId, parsed_by(SpiffeId.parse), PlainSerializer(str)]


class PeerProfileSection(Section):
    """[…bundle_endpoint_profile]: one table, named as the profile of SPIFFE Federation section 5.2."""

    https_web: PeerHttpsWebSection | None = None
    https_spiffe: PeerHttpsSpiffeSection | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.https_web is None) == (self.https_spiffe is None):
            raise ValueError("give one table: https_web, or https_spiffe with endpoint_spiffe_id")
        return self


class FederatesWithSection(Section):
    """[federation.federates_with."other.example"]: where that trust domain's bundle is fetched."""

    bundle_endpoint_url: Annotated[str, AfterValidator(endpoint_url)]
    bundle_endpoint_profile: PeerProfileSection

    def relationship(self, trust_domain: TrustDomain) -> FederationRelationship:
        """The relationship it describes."""
        spiffe = self.bundle_endpoint_profile.https_spiffe
        if spiffe is None:
            return FederationRelationship(trust_domain, self.bundle_endpoint_url, EndpointProfile.HTTPS_WEB)
        return FederationRelationship(
            trust_domain, self.bundle_endpoint_url, EndpointProfile.HTTPS_SPIFFE, spiffe.endpoint_spiffe_id
        )


class BundleClientSection(Section):
    """[federation.bundle_client]: how the bundles of other trust domains are fetched.

    Addresses that only this network knows are refused unless they lie in `allowed_networks`.
    """

    allowed_networks: Annotated[Texts, AfterValidator(_networks)] = ()
    ca_file: AbsolutePath | None = None
    max_redirects: int = Field(default=MAX_REDIRECTS, ge=0, le=MAX_REDIRECTS)
    min_interval: Lifespan = MIN_POLL

    @property
    def policy(self) -> AddressPolicy:
        """Which addresses are connected to."""
        return AddressPolicy(parse_networks(self.allowed_networks))

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min_interval > timedelta(days=1):
            raise ValueError("min_interval must be at most 1 day")
        return self


def _named(value: object) -> object:
    """The tables by trust domain, each name held to its rules."""
    for name in value if isinstance(value, dict) else ():
        try:
            parsed = TrustDomain.parse(str(name), field="federates_with")
        except InvalidRequest as refusal:
            raise ValueError(refusal.public) from None
        if str(parsed) != name:
            raise ValueError(f'write the trust domain as "{parsed}"')
    return value


FederatesWith = Annotated[
    dict[str, FederatesWithSection], BeforeValidator(_named), Field(max_length=MAX_FEDERATES_WITH)
]


def static_relationships(tables: dict[str, FederatesWithSection]) -> tuple[FederationRelationship, ...]:
    """The relationships of the configuration file."""
    return tuple(section.relationship(TrustDomain.parse(name)) for name, section in tables.items())
