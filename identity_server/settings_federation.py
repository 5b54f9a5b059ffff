"""The settings of federation: `[federation]`, with SPIRE's key names where SPIRE has the key."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from identity_server.settings_federates_with import BundleClientSection, FederatesWith, endpoint_url
from spiffe_core.bundle import MAX_REFRESH_HINT
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import InvalidRequest
from spiffe_core.runtime.settings import Lifespan, Section, format_duration
from spiffe_core.runtime.settings_places import AbsolutePath

AHEAD = 3
"""A new authority is published so many refresh hints before it signs (SPIFFE Federation section 4.1)."""
_AHEAD_PART = 3
"""An authority is prepared at half of its predecessor's life and signs at five sixths: a third lies between."""


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError('must be an IP address, for example "0.0.0.0", "127.0.0.1" or "::"') from None


def provable_name(name: str) -> str:
    """A name that an ACME authority can have proved; a validator."""
    try:
        check_dns_name(name, field="domain_name")
    except InvalidRequest as error:
        raise ValueError(error.public) from None
    if name.startswith("*."):
        raise ValueError("must not be a wildcard; neither challenge proves one")
    return name


def _directory(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an https URL without user and password")
    return url


def one_or_many(value: object) -> object:
    """One table, or an array of tables, as the tuple a frozen settings field holds; a `BeforeValidator`."""
    return (value,) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value


Address = Annotated[str, AfterValidator(_address)]


def _public_url(text: str) -> str:
    return endpoint_url(text) if text else text


class HttpsSpiffeSection(Section):
    """[…profile.https_spiffe]: the server's own X509-SVID. Nothing can be set."""


class ServingCertFileSection(Section):
    """[…profile.https_web.serving_cert_file]: a web certificate in PEM files, leaf first, read again on change."""

    cert_file_path: AbsolutePath
    key_file_path: AbsolutePath
    file_sync_interval: Lifespan = timedelta(minutes=1)


class Http01Section(Section):
    """[…acme.http01]: a plain HTTP listener that proves the domain name; the authority asks at port 80."""

    address: Address = "0.0.0.0"  # noqa: S104  # the authority is elsewhere
    port: int = Field(default=80, ge=0, le=65535)


class AcmeSection(Section):
    """[…profile.https_web.acme]: a certificate from an ACME authority (RFC 8555), renewed by itself."""

    domain_name: Annotated[str, AfterValidator(provable_name)]
    email: str = Field(default="", max_length=254)
    directory_url: Annotated[str, AfterValidator(_directory)] = "https://acme-v02.api.letsencrypt.org/directory"
    tos_accepted: bool = False
    ca_file: AbsolutePath | None = None
    http01: Http01Section | None = None


class HttpsWebSection(Section):
    """[…profile.https_web]: a certificate that browsers would believe."""

    acme: AcmeSection | None = None
    serving_cert_file: ServingCertFileSection | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.acme is None) == (self.serving_cert_file is None):
            raise ValueError("give one table: acme or serving_cert_file")
        return self


class ProfileSection(Section):
    """[…profile]: one table, named as the profile of SPIFFE Federation section 5.2."""

    https_spiffe: HttpsSpiffeSection | None = None
    https_web: HttpsWebSection | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.https_spiffe is None) == (self.https_web is None):
            raise ValueError("give one table: https_spiffe or https_web")
        return self


class BundleEndpointSection(Section):
    """[federation.bundle_endpoint]: where other trust domains fetch our bundle. An array of tables for several."""

    address: Address = "0.0.0.0"  # noqa: S104  # other trust domains are elsewhere
    port: int = Field(default=8443, ge=0, le=65535)
    refresh_hint: Lifespan = timedelta(minutes=5)
    bundle_map: Literal["off", "own", "all"] = "own"
    profile: ProfileSection = ProfileSection(https_spiffe=HttpsSpiffeSection())

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.refresh_hint.total_seconds() > MAX_REFRESH_HINT:
            raise ValueError(f"refresh_hint must be at most {format_duration(timedelta(seconds=MAX_REFRESH_HINT))}")
        return self


class FederationSection(Section):
    """[federation]: what of other trust domains, and for them."""

    bundle_endpoint: Annotated[
        tuple[BundleEndpointSection, ...], BeforeValidator(one_or_many), Field(max_length=8)
    ] = ()
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    federates_with: FederatesWith = Field(default_factory=dict)
    bundle_client: BundleClientSection = BundleClientSection()

    @model_validator(mode="after")
    def _one_hint(self) -> Self:
        if len({one.refresh_hint for one in self.bundle_endpoint}) > 1:
            raise ValueError("bundle_endpoint: every endpoint serves the same bundle; give all the same refresh_hint")
        return self

    @property
    def refresh_hint(self) -> timedelta | None:
        """How often other trust domains are to fetch our bundle; None without an endpoint."""
        return self.bundle_endpoint[0].refresh_hint if self.bundle_endpoint else None

    def warnings(self, ca_ttl: timedelta) -> tuple[str, ...]:
        """A hint so long that a new authority would sign before everybody has fetched it (FED-02)."""
        hint = self.refresh_hint
        if hint is None or hint * AHEAD <= ca_ttl / _AHEAD_PART:
            return ()
        text = (
            f"federation.bundle_endpoint.refresh_hint: {format_duration(hint)} is long for ca.ttl = "
            f"{format_duration(ca_ttl)}: a new authority is published {format_duration(ca_ttl / _AHEAD_PART)} before "
            f"it signs, which should be at least {AHEAD} times the hint"
        )
        return (text,)
