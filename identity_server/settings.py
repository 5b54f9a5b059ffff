"""The identity server's settings: one frozen tree, checked before anything is opened.

Each part of the server receives its own slice. `docs/configuration.md` explains every key; `deploy/config/server.toml`
is a complete example. TTL rules follow SPIRE (spire_features sections 4.1 and 13).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from identity_server.settings_federation import FederationSection
from identity_server.settings_oidc import OidcSection
from identity_server.settings_publish import PublishSection
from identity_server.settings_upstream import UpstreamSection
from spiffe_core.runtime.places import server_socket, state_directory
from spiffe_core.runtime.settings import (
    FilePath,
    HealthCheckSection,
    Lifespan,
    Section,
    TelemetrySection,
    Texts,
    TracingSection,
    build_settings,
    format_duration,
    load_settings,
    parsed_by,
)
from spiffe_core.runtime.settings_kinds import SERVER
from spiffe_core.runtime.settings_places import AbsolutePath, SocketPath
from spiffe_core.spiffe_id import TrustDomain

MAX_ISSUER = 1024
_LONGEST_CA = timedelta(days=365 * 20)
_LONGEST_LEAF = timedelta(days=7)
_DATABASE_SERVERS = ("postgresql", "mariadb", "mysql")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError('must be an IP address, for example "0.0.0.0", "127.0.0.1" or "::"') from None


def _database(url: str) -> str:
    if url == "sqlite" or (url.startswith("sqlite:///") and len(url) > len("sqlite:///")):
        return url
    scheme, _, rest = url.partition("://")
    if scheme not in _DATABASE_SERVERS or not rest:
        raise ValueError(
            'must be "sqlite" (a file in data_dir), "sqlite:////absolute/path", "postgresql://user@host/database" or '
            '"mariadb://user@host/database"'
        )
    if ":" in rest.rpartition("@")[0]:
        raise ValueError("must not contain a password; put it into a file and name that in database.password_file")
    return url


def _issuer(text: str) -> str:
    if len(text) > MAX_ISSUER or not text.isprintable() or " " in text:
        raise ValueError(f"must be printable text without spaces, at most {MAX_ISSUER} characters")
    if "://" in text and not text.partition("://")[2]:
        raise ValueError("is a URL without a host")
    return text


KeyType = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"]
AuthorityKeyType = Literal[KeyType, "ml-dsa-44", "ml-dsa-65", "ml-dsa-87"]
Trust = Annotated[TrustDomain, parsed_by(TrustDomain.parse), PlainSerializer(str)]


class CaSubject(Section):
    """The subject of the authority's certificate; SPIRE's `ca_subject`."""

    country: Texts = ("US",)
    organization: Texts = ("SPIFFE",)
    common_name: str = Field(default="", max_length=64)


class Pkcs11Section(Section):
    """[ca.pkcs11]: the token that holds the authorities' keys. Its PIN stands in a file of its own, never here."""

    module: AbsolutePath
    token: str = Field(default="", max_length=32)
    slot: int | None = Field(default=None, ge=0)
    pin_file: AbsolutePath
    key_label_prefix: str = Field(default="muniment-", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if bool(self.token) == (self.slot is not None):
            raise ValueError("name the token by its label (token) or by its slot, not by both")
        return self


class CaSection(Section):
    """[ca]: the signing authority and its key."""

    ttl: Lifespan = timedelta(hours=24)
    key_type: AuthorityKeyType = "ec-p256"
    key_manager: Literal["disk", "memory", "pkcs11"] = "disk"
    pkcs11: Pkcs11Section | None = None
    subject: CaSubject = CaSubject()
    signing_workers: int = Field(default=0, ge=0, le=16)

    @property
    def post_quantum(self) -> bool:
        """Whether the authorities' keys are ML-DSA, an experiment."""
        return self.key_type.startswith("ml-dsa-")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.post_quantum and self.key_manager == "pkcs11":
            raise ValueError(
                f'key_type = "{self.key_type}" keys cannot be made in a PKCS#11 token; use key_manager "disk"'
            )
        if (self.key_manager == "pkcs11") != (self.pkcs11 is not None):
            raise ValueError('key_manager = "pkcs11" and the table [ca.pkcs11] belong together; set both or neither')
        if self.signing_workers and self.key_manager not in {"disk", "memory"}:
            raise ValueError("signing_workers needs a key_manager that gives keys out: disk or memory")
        if self.ttl > _LONGEST_CA:
            raise ValueError("ttl must be at most 20 years")
        return self


class ExperimentalSection(Section):
    """[experimental]: what may change or go, and is not for production."""

    ml_dsa: bool = False


class SvidSection(Section):
    """[svid]: lifetimes of certificates for workloads and agents."""

    default_x509_ttl: Lifespan = timedelta(hours=1)
    agent_ttl: Lifespan | None = None


class JwtSection(Section):
    """[jwt]: JWT-SVIDs. Their signing keys live as long as `ca.ttl`.

    Without `key_type` they are of the authority's kind.
    """

    disabled: bool = False
    key_type: KeyType | None = None
    issuer: Annotated[str, AfterValidator(_issuer)] = ""
    default_ttl: Lifespan = timedelta(minutes=5)


class WitSection(Section):
    """[wit]: WIT-SVIDs, an incubating standard; their calls answer Unimplemented unless they are switched on."""

    enabled: bool = False
    key_type: KeyType | None = None
    default_ttl: Lifespan = timedelta(hours=1)


class DatabaseSection(Section):
    """[database]: where entries, agents and the authority's journal are kept."""

    url: Annotated[str, AfterValidator(_database)] = "sqlite"
    password_file: FilePath | None = None
    tls: Literal["auto", "verify", "insecure-off"] = "auto"
    tls_ca_file: FilePath | None = None
    tls_cert_file: FilePath | None = None
    tls_key_file: FilePath | None = None

    @property
    def shared(self) -> bool:
        """Whether it is a database server, which several identity servers may use and which may be away for a while."""
        return self.url.startswith(_DATABASE_SERVERS)

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together; set both or neither")
        return self


class AuditSection(Section):
    """[audit]: one JSON line for each event; an empty `file` means standard output."""

    file: str = ""
    strict: bool = False


class LimitSection(Section):
    """[limits]: what callers may hold."""

    connections: int = Field(default=8192, ge=16, le=1_000_000)
    connections_per_uid: int = Field(default=1024, ge=4, le=1_000_000)
    handshake_seconds: float = Field(default=10.0, ge=0.1, le=120.0, strict=False)
    connection_age_seconds: float = Field(default=180.0, ge=1.0, le=86_400.0, strict=False)
    push_stream_age_seconds: float = Field(default=1800.0, ge=1.0, le=86_400.0, strict=False)
    request_bytes: int = Field(default=4 * 1024 * 1024, ge=65_536, le=64 * 1024 * 1024)


class RateLimitSection(Section):
    """[ratelimit]: how often callers over the network may attest (by address) and have signed (by agent).

    Signing is counted in certificate requests; with it, what else an agent asks is limited too, by a rate of its own
    (`rpc.throttle`). A caller that is a little too fast is held up for `wait_seconds` at most.
    """

    attestation: bool = True
    attestation_per_second: float = Field(default=50.0, ge=0.1, le=1_000_000.0, strict=False)
    attestation_burst: int = Field(default=500, ge=1, le=1_000_000)
    signing: bool = True
    signing_per_second: float = Field(default=2_000.0, ge=0.1, le=1_000_000.0, strict=False)
    signing_burst: int = Field(default=5_000, ge=500, le=10_000_000)
    wait_seconds: float = Field(default=2.0, ge=0.0, le=60.0, strict=False)


class ServerHealthSection(HealthCheckSection):
    """[health_checks] of the server: whether it is ready while only agents that memory knows can be served."""

    ready_without_database: bool = False


class ServerSettings(Section):
    """Everything `identity-server run` needs to know."""

    file_kind: ClassVar[str] = SERVER
    trust_domain: Trust
    data_dir: FilePath = Field(default_factory=lambda: state_directory() / "server")
    bind_address: Annotated[str, AfterValidator(_address)] = "0.0.0.0"  # noqa: S104  # agents are on other machines
    bind_port: int = Field(default=8081, ge=0, le=65535)
    socket_path: SocketPath = Field(default_factory=server_socket)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""
    log_format: Literal["json", "text"] = "json"
    log_source_location: bool = False
    ca: CaSection = CaSection()
    experimental: ExperimentalSection = ExperimentalSection()
    svid: SvidSection = SvidSection()
    jwt: JwtSection = JwtSection()
    wit: WitSection = WitSection()
    upstream: UpstreamSection | None = None
    federation: FederationSection = FederationSection()
    publish: PublishSection = PublishSection()
    oidc: OidcSection | None = None
    database: DatabaseSection = DatabaseSection()
    audit: AuditSection = AuditSection()
    attestors: dict[str, dict[str, Any]] = Field(default_factory=dict, max_length=32)
    limits: LimitSection = LimitSection()
    ratelimit: RateLimitSection = RateLimitSection()
    health_checks: ServerHealthSection = ServerHealthSection()
    telemetry: TelemetrySection = TelemetrySection()
    tracing: TracingSection | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.data_dir.is_absolute():
            raise ValueError("data_dir: must be an absolute path")
        if self.ca.post_quantum:
            self._post_quantum()
        if str(self.trust_domain) in self.federation.federates_with:
            raise ValueError("federation.federates_with: names this server's own trust domain")
        if self.oidc is not None:
            self.oidc.check(self.jwt.issuer)
        if max(self.svid.default_x509_ttl, self.agent_ttl) > self.ca.ttl:
            raise ValueError(
                "svid.default_x509_ttl and svid.agent_ttl must not be longer than ca.ttl "
                f"({format_duration(self.ca.ttl)}); "
                "shorten them or lengthen ca.ttl"
            )
        return self

    def _post_quantum(self) -> None:
        """ML-DSA is for X.509 authorities that sign for themselves, and only where it was asked for."""
        kind = self.ca.key_type
        if not self.experimental.ml_dsa:
            raise ValueError(f'ca.key_type = "{kind}" is an experiment; it needs experimental.ml_dsa = true')
        if self.upstream is not None:
            raise ValueError(f'ca.key_type = "{kind}" needs a server that signs for itself; leave [upstream] out')
        for name, wanted, chosen in (
            ("jwt", not self.jwt.disabled, self.jwt.key_type),
            ("wit", self.wit.enabled, self.wit.key_type),
        ):
            if wanted and chosen is None:
                raise ValueError(f'{name}.key_type must be set, for example to "ec-p256": "{kind}" keys sign no tokens')

    @property
    def agent_ttl(self) -> timedelta:
        """The life of an agent's SVID: its own setting, else the default of all SVIDs."""
        return self.svid.agent_ttl or self.svid.default_x509_ttl

    @property
    def database_place(self) -> Path | str:
        """The SQLite file, a relative path of the URL being below `data_dir`; or the URL of a database server."""
        if self.database.shared:
            return self.database.url
        if self.database.url == "sqlite":
            return self.data_dir / "datastore.sqlite3"
        return self.data_dir / self.database.url.removeprefix("sqlite:///")

    def issuing(self) -> dict[str, str | int | bool | None]:
        """The settings that show in what is issued, which all servers of one database must share (R39); no secrets."""
        subject, jwt, wit = self.ca.subject, not self.jwt.disabled, self.wit.enabled
        return {
            "trust_domain": str(self.trust_domain),
            "ca.ttl": int(self.ca.ttl.total_seconds()),
            "ca.key_type": self.ca.key_type,
            "ca.subject": json.dumps([subject.country, subject.organization, subject.common_name]),
            "svid.default_x509_ttl": int(self.svid.default_x509_ttl.total_seconds()),
            "svid.agent_ttl": int(self.agent_ttl.total_seconds()),
            "jwt.disabled": self.jwt.disabled,
            "jwt.key_type": (self.jwt.key_type or self.ca.key_type) if jwt else None,
            "jwt.issuer": self.jwt.issuer if jwt else None,
            "jwt.default_ttl": int(self.jwt.default_ttl.total_seconds()) if jwt else None,
            "wit.enabled": self.wit.enabled,
            "wit.key_type": (self.wit.key_type or self.ca.key_type) if wit else None,
            "wit.default_ttl": int(self.wit.default_ttl.total_seconds()) if wit else None,
        }

    def warnings(self) -> tuple[str, ...]:
        """What works and is probably not meant: SVIDs an authority may cut short (SPIRE's rule), unsafe switches."""
        longest = min(self.ca.ttl / 6, _LONGEST_LEAF)
        vault = self.upstream.vault if self.upstream is not None else None
        short = tuple(
            f"svid.{key}: {format_duration(ttl)} is longer than {format_duration(longest)} (a sixth of ca.ttl, at most "
            "7 days); such certificates may end early when the authority rotates"
            for key, ttl in (("default_x509_ttl", self.svid.default_x509_ttl), ("agent_ttl", self.agent_ttl))
            if ttl > longest
        )
        return (
            *short,
            *(vault.warnings() if vault is not None else ()),
            *self.federation.warnings(self.ca.ttl),
            *self.publish.warnings(),
            *(self.oidc.warnings() if self.oidc is not None else ()),
        )


def load(
    path: str | Path, overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> ServerSettings:
    """Read a TOML file; `overrides` maps dotted keys ("ca.ttl") to flags' values, None for a flag not given.

    Variables in the file are filled in from `environ`, if it is given.

    Raises:
        ConfigError: one line for each mistake, with file, key and rule.
    """
    return load_settings(ServerSettings, path, overrides, environ)


def from_mapping(document: Mapping[str, object], *, source: str = "settings") -> ServerSettings:
    """Settings without a file."""
    return build_settings(ServerSettings, document, source=source)
