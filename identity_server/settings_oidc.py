"""The settings of the OIDC discovery provider, with SPIRE's key names where it has them (spire_features section 6).

`OidcSection` is the table `[oidc]` of a server, which publishes its own keys. `OidcSettings` is the file of a provider
that stands alone, `identity-server oidc --config FILE`: the same keys at the top level, and where its keys come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from identity_server.domain.oidc_documents import MAX_DOMAINS, Authority, IssuerUrl, Provider
from identity_server.settings_federation import AcmeSection, provable_name
from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import ConfigError, InvalidRequest
from spiffe_core.runtime.places import agent_socket, server_socket
from spiffe_core.runtime.settings import (
    Duration,
    HealthCheckSection,
    Lifespan,
    Section,
    TelemetrySection,
    Texts,
    build_settings,
    load_settings,
    parsed_by,
)
from spiffe_core.runtime.settings_kinds import OIDC
from spiffe_core.runtime.settings_places import AbsolutePath
from spiffe_core.spiffe_id import TrustDomain

EVERYWHERE = "0.0.0.0"  # noqa: S104  # what ":443" means; verifiers are elsewhere
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SHORTEST_POLL, _LONGEST_POLL = timedelta(seconds=1), timedelta(minutes=10)
_SHORTEST_KEEP, _LONGEST_KEEP = timedelta(minutes=1), timedelta(days=7)
_POLL = timedelta(seconds=5)
NO_LISTENER = "name where to listen: serving_cert_file, acme, listen_socket_path or insecure_addr"


def _listen_address(text: str) -> str:
    """`host:port`, or `:port` for all addresses, as Go writes them; empty for no listener."""
    host, colon, port = text.rpartition(":")
    if text and (not colon or not port.isdigit() or not 0 <= int(port[:6]) <= 65535):  # noqa: PLR2004  # the highest port
        raise ValueError('must be "host:port", for example "127.0.0.1:8080" or ":8080"')
    if host.count(":") and not (host.startswith("[") and host.endswith("]")):
        raise ValueError('must have brackets around an IPv6 address, for example "[::1]:8080"')
    return text


def _name_or_none(name: str) -> str:
    return provable_name(name) if name else name


def _provable(domain: Authority) -> None:
    """Whether an ACME authority can have this host proved when the settings name no other."""
    if domain.is_ip:
        raise InvalidRequest(
            "acme.domain_name: must be set, because the first domain is an IP address", field="acme.domain_name"
        )
    check_dns_name(domain.host, field="acme.domain_name")


def _required(address: str) -> str:
    if not address:
        raise ValueError('must be "host:port"')
    return address


def _poll(value: timedelta) -> timedelta:
    if not _SHORTEST_POLL <= value <= _LONGEST_POLL:
        raise ValueError('must be from "1s" to "10m"')
    return value


ListenAddress = Annotated[str, Field(max_length=262), AfterValidator(_listen_address)]
PollInterval = Annotated[Duration, AfterValidator(_poll)]


def host_and_port(address: str) -> tuple[str, int]:
    """A listen address in two parts; no host means every IPv4 address of the machine."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]") or EVERYWHERE, int(port)


class ServingCertFileSection(Section):
    """[oidc.serving_cert_file]: HTTPS with a certificate in PEM files, leaf first, read again when they change."""

    cert_file_path: AbsolutePath
    key_file_path: AbsolutePath
    file_sync_interval: Lifespan = timedelta(minutes=1)
    addr: ListenAddress = ":443"

    @field_validator("addr")
    @classmethod
    def _named(cls, addr: str) -> str:
        return _required(addr)


class OidcAcmeSection(AcmeSection):
    """[oidc.acme]: HTTPS with a certificate from an ACME authority.

    For the first of the domains unless it says another.
    """

    domain_name: Annotated[str, AfterValidator(_name_or_none)] = ""
    cache_dir: AbsolutePath | None = None
    addr: ListenAddress = ":443"

    @field_validator("addr")
    @classmethod
    def _named(cls, addr: str) -> str:
        return _required(addr)


class OidcNames(Section):
    """What a discovery provider is called, and where it listens."""

    domains: Texts = Field(default=(), max_length=MAX_DOMAINS)
    jwks_uri: str = ""
    server_path_prefix: str | None = None
    set_key_use: bool = True
    allow_insecure_scheme: bool = False
    trust_forwarded_host: bool = False
    log_requests: bool = False
    serving_cert_file: ServingCertFileSection | None = None
    acme: OidcAcmeSection | None = None
    insecure_addr: ListenAddress = ""
    listen_socket_path: AbsolutePath | None = None

    @field_validator("domains")
    @classmethod
    def _readable(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parsed = [Authority.parse(one) for one in domains]
        except InvalidRequest as error:
            raise ValueError(error.public.removeprefix("domains: ")) from None
        if len(set(parsed)) != len(parsed):
            raise ValueError("must name each domain once")
        return domains

    @property
    def listens(self) -> bool:
        """Whether any listener is named."""
        return bool(self.insecure_addr) or bool(self.listen_socket_path or self.serving_cert_file or self.acme)

    @model_validator(mode="after")
    def _one_certificate(self) -> Self:
        if self.acme is not None and self.serving_cert_file is not None:
            raise ValueError("give one table: acme or serving_cert_file")
        return self

    def provider(self, issuer: str) -> Provider:
        """The provider of these names; `issuer` is what stands in tokens, "" if every domain is one of its own.

        Raises:
            ConfigError: the names do not go together.
        """
        scheme = "http" if self.allow_insecure_scheme else "https"
        if not self.domains and not issuer:
            raise ConfigError("oidc: domains: name the hosts that verifiers ask, or the issuer", field="domains")
        try:
            parsed = IssuerUrl.parse(issuer, insecure=self.allow_insecure_scheme) if issuer else None
            domains = tuple(Authority.parse(one) for one in self.domains)
            if not domains and parsed is not None:
                domains = (Authority(parsed.authority.host),)
            made = Provider(domains, parsed, self.jwks_uri, self.server_path_prefix, self.set_key_use, scheme)
            if self.acme is not None and not self.acme.domain_name:
                _provable(made.domains[0])
            return made
        except InvalidRequest as error:
            raise ConfigError(f"oidc: {error.public}", field=error.field) from None

    def warnings(self) -> tuple[str, ...]:
        """What makes keys believable to nobody, or changeable by somebody."""
        found = []
        if self.allow_insecure_scheme:
            found.append("allow_insecure_scheme: keys are announced under http; verifiers of others will refuse them")
        if self.insecure_addr and host_and_port(self.insecure_addr)[0] not in LOOPBACK:
            found.append(
                f"insecure_addr: {self.insecure_addr} is plain HTTP that other machines reach; whoever is between can "
                "put keys of their own in place of ours. Let only a proxy that speaks HTTPS reach it"
            )
        return tuple(found)


class OidcSection(OidcNames):
    """[oidc]: the server publishes its own keys; the issuer is `jwt.issuer`."""

    @model_validator(mode="after")
    def _listening(self) -> Self:
        if not self.listens:
            raise ValueError(NO_LISTENER)
        return self

    def check(self, issuer: str) -> None:
        """Whether the names go together with the issuer that stands in tokens.

        Raises:
            ValueError: they do not.
        """
        if not issuer:
            raise ValueError("jwt.issuer must be set for [oidc]: verifiers know our tokens by it")
        try:
            self.provider(issuer)
        except ConfigError as error:
            raise ValueError(error.public.replace("jwt_issuer", "jwt.issuer")) from None


class ServerApiSection(Section):
    """[server_api]: the keys come from a server's admin socket, asked every `poll_interval`."""

    address: AbsolutePath = Field(default_factory=server_socket)
    poll_interval: PollInterval = _POLL

    @field_validator("address", mode="before")
    @classmethod
    def _as_spire_writes_it(cls, value: object) -> object:
        return value.removeprefix("unix://").removeprefix("unix:") if isinstance(value, str) else value


class WorkloadApiSection(Section):
    """[workload_api]: the keys of `trust_domain` come from an agent, which sends changes by itself."""

    socket_path: AbsolutePath = Field(default_factory=agent_socket)
    trust_domain: Annotated[TrustDomain, parsed_by(TrustDomain.parse), PlainSerializer(str)]
    poll_interval: PollInterval = _POLL


class BundleFileSection(Section):
    """[file]: the keys come from a SPIFFE bundle document, read every `poll_interval`."""

    path: AbsolutePath
    poll_interval: PollInterval = _POLL


class OidcSettings(OidcNames):
    """A file for `identity-server oidc --config FILE`."""

    file_kind: ClassVar[str] = OIDC
    jwt_issuer: str = ""
    server_api: ServerApiSection | None = None
    workload_api: WorkloadApiSection | None = None
    file: BundleFileSection | None = None
    keep_keys: Duration = timedelta(hours=24)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""
    log_format: Literal["json", "text"] = "json"
    log_source_location: bool = False
    health_checks: HealthCheckSection = HealthCheckSection()
    telemetry: TelemetrySection = TelemetrySection()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("server_api", "workload_api", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("name where the keys come from: exactly one of [server_api], [workload_api] and [file]")
        if not _SHORTEST_KEEP <= self.keep_keys <= _LONGEST_KEEP:
            raise ValueError('keep_keys must be from "1m" to "7d"')
        try:
            self.names()
        except ConfigError as error:
            raise ValueError(error.public.removeprefix("oidc: ")) from None
        return self

    def names(self) -> Provider:
        """The provider's names."""
        return self.provider(self.jwt_issuer)

    @property
    def poll_interval(self) -> timedelta:
        """How often the source is asked."""
        source = self.server_api or self.workload_api or self.file
        assert source is not None
        return source.poll_interval


def load(path: str | Path, overrides: Mapping[str, object] | None = None) -> OidcSettings:
    """Read the file of a provider that stands alone.

    Raises:
        ConfigError: one line for each mistake, with file, key and rule.
    """
    return load_settings(OidcSettings, path, overrides)


def from_mapping(document: Mapping[str, object], *, source: str = "settings") -> OidcSettings:
    """Settings without a file."""
    return build_settings(OidcSettings, document, source=source)
