"""The node agent's settings: one frozen tree, checked before anything is opened.

Each part of the agent receives its own slice. `docs/configuration.md` explains every key; `deploy/config/agent.toml` is
a complete example.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, model_validator

from attestors.registry import NODE_PROVERS
from node_agent.domain.renewal import LEAST_AVAILABILITY
from node_agent.settings_addresses import LARGEST_PORT, Delegate, ServerAddresses, server_address
from node_agent.settings_broker import BrokerSection
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.errors import InvalidAddress
from spiffe_core.runtime.places import agent_admin_socket, agent_socket, state_directory
from spiffe_core.runtime.settings import (
    Duration,
    FilePath,
    HealthCheckSection,
    Section,
    TelemetrySection,
    Texts,
    TracingSection,
    as_tuple,
    build_settings,
    load_settings,
    parsed_by,
)
from spiffe_core.runtime.settings_kinds import AGENT
from spiffe_core.runtime.settings_places import AbsolutePath, SocketPath
from spiffe_core.runtime.web_url import WebUrl
from spiffe_core.spiffe_id import TrustDomain
from workload_api.address import TcpAddress, UnixAddress, parse_address

LONGEST_REBOOTSTRAP_DELAY = timedelta(days=30)
SHORTEST_SYNC = timedelta(milliseconds=100)
LONGEST_SYNC = timedelta(hours=1)
_BUNDLE_SOURCES = ("trust_bundle_path", "trust_bundle_url", "trust_bundle_spiffe_workload_api")


def _sync(value: timedelta) -> timedelta:
    if not SHORTEST_SYNC <= value <= LONGEST_SYNC:
        raise ValueError("must lie between 100ms and 1h")
    return value


def _delay(value: timedelta) -> timedelta:
    if not timedelta() < value <= LONGEST_REBOOTSTRAP_DELAY:
        raise ValueError("must be longer than 0s and at most 30d")
    return value


def _availability(value: timedelta) -> timedelta:
    if value < LEAST_AVAILABILITY:
        raise ValueError("must be at least 24h; leave it out to have SVIDs replaced half-way through their lives")
    return value


def _unix_only() -> dict[str, dict[str, Any]]:
    return {"unix": {}}


Trust = Annotated[TrustDomain, parsed_by(TrustDomain.parse), PlainSerializer(str)]


class LimitSection(Section):
    """[limits]: what workloads may hold, and how long things may take."""

    connections: int = Field(default=8192, ge=16, le=1_000_000)
    connections_per_uid: int = Field(default=1024, ge=4, le=1_000_000)
    streams: int = Field(default=8192, ge=16, le=1_000_000)
    streams_per_uid: int = Field(default=1024, ge=4, le=1_000_000)
    calls_per_uid: int = Field(default=256, ge=1, le=1_000_000)
    jwt_svids: int = Field(default=1000, ge=1, le=1_000_000)
    prefetched_svids: int = Field(default=1000, ge=0, le=1_000_000)
    attestation_seconds: float = Field(default=5.0, ge=0.1, le=60.0, strict=False)


class JwtSection(Section):
    """[jwt]: JWT-SVIDs for workloads, and their validation."""

    disabled: bool = False
    allowed_foreign_claims: Annotated[Texts, Field(max_length=64)] = ()
    key_use: bool = False


class WitSection(Section):
    """[wit]: WIT-SVIDs, an incubating standard; their calls answer Unimplemented unless they are switched on."""

    enabled: bool = False


SecretName = Annotated[str, Field(min_length=1, max_length=255)]


class WorkloadApiSection(Section):
    """[workload_api]: the SPIFFE Workload API. With SDS disabled as well there is no socket for workloads at all."""

    disabled: bool = False


class SdsSection(Section):
    """[sds]: Envoy's secret discovery service, and the names it answers to beside SPIFFE IDs and trust domains."""

    disabled: bool = False
    default_svid_name: SecretName = "default"
    default_bundle_name: SecretName = "ROOTCA"
    default_all_bundles_name: SecretName = "ALL"
    disable_spiffe_cert_validation: bool = False


class AgentSettings(Section):
    """Everything `node-agent run` needs to know."""

    file_kind: ClassVar[str] = AGENT
    trust_domain: Trust
    data_dir: AbsolutePath = Field(default_factory=lambda: state_directory() / "agent")
    server_address: ServerAddresses = ("127.0.0.1",)
    server_port: int = Field(default=8081, ge=1, le=LARGEST_PORT)
    socket_path: SocketPath = Field(default_factory=agent_socket)
    admin_socket_path: SocketPath | None = None
    authorized_delegates: Annotated[tuple[Delegate, ...], BeforeValidator(as_tuple), Field(max_length=256)] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""
    log_format: Literal["json", "text"] = "json"
    log_source_location: bool = False
    trust_bundle_path: FilePath | None = None
    trust_bundle_url: str = ""
    trust_bundle_unix_socket: str = ""
    trust_bundle_spiffe_workload_api: str = ""
    trust_bundle_format: Literal["pem", "spiffe"] = "pem"
    insecure_bootstrap: bool = False
    rebootstrap_mode: Literal["never", "auto", "always"] = "never"
    rebootstrap_delay: Annotated[Duration, AfterValidator(_delay)] = timedelta(minutes=10)
    join_token_file: FilePath | None = None
    join_token: SecretStr = Field(default=SecretStr(""), exclude=True)
    sync_interval: Annotated[Duration, AfterValidator(_sync)] = timedelta(seconds=5)
    availability_target: Annotated[Duration, AfterValidator(_availability)] | None = None
    push: bool = True
    peer_pidfd: Literal["auto", "require"] = "auto"
    strict: bool = False
    key_manager: Literal["disk", "memory"] = "disk"
    workload_x509_svid_key_type: Literal["ec-p256", "ec-p384", "rsa-2048"] = "ec-p256"
    allow_unauthenticated_verifiers: bool = False
    wait_for_identity: bool = False
    jwt: JwtSection = JwtSection()
    wit: WitSection = WitSection()
    workload_api: WorkloadApiSection = WorkloadApiSection()
    sds: SdsSection = SdsSection()
    broker: BrokerSection | None = None
    files_config: AbsolutePath | None = None
    attestors: dict[str, dict[str, Any]] = Field(default_factory=_unix_only, min_length=1, max_length=32)
    limits: LimitSection = LimitSection()
    health_checks: HealthCheckSection = HealthCheckSection()
    telemetry: TelemetrySection = TelemetrySection()
    tracing: TracingSection | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        self._check_first_contact()
        self._check_rebootstrap()
        if self.join_token_file is not None and self.join_token.get_secret_value():
            raise ValueError("join_token_file and join_token exclude each other; keep join_token_file")
        named = self.admin_socket_path
        if named is not None and named.is_relative_to(self.socket_path.parent):
            raise ValueError(
                "admin_socket_path must not lie below the directory of socket_path, which workloads can see; "
                "choose another directory"
            )
        broker = self.broker.socket_path if self.broker is not None else None
        if broker is not None and broker.is_relative_to(self.socket_path.parent):
            raise ValueError(
                "broker.socket_path must not lie below the directory of socket_path, which workloads can see; "
                "choose another directory"
            )
        foreign = [str(one) for one in self.authorized_delegates if not one.member_of(self.trust_domain)]
        if foreign:
            raise ValueError(f"authorized_delegates: {foreign[0]} is not of the trust domain {self.trust_domain}")
        return self

    def _check_first_contact(self) -> None:
        named = [one for one in (*_BUNDLE_SOURCES, "insecure_bootstrap") if getattr(self, one)]
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} exclude each other; remove {named[1]}")
        if self.trust_bundle_unix_socket and not (self.trust_bundle_url and self.trust_bundle_unix_socket[0] == "/"):
            raise ValueError("trust_bundle_unix_socket: must be an absolute path, and needs trust_bundle_url")
        if self.trust_bundle_url:
            try:
                WebUrl.parse(self.trust_bundle_url, "http" if self.trust_bundle_unix_socket else "https")
            except ValueError as rule:
                raise ValueError(f"trust_bundle_url: {rule}") from None

        if self.trust_bundle_spiffe_workload_api:
            self._check_bundle_agent()

    def _check_bundle_agent(self) -> None:
        try:
            address = parse_address(self.trust_bundle_spiffe_workload_api)
        except InvalidAddress as error:
            raise ValueError(f"trust_bundle_spiffe_workload_api: {error.public}") from None
        match address:
            case TcpAddress():
                rule = "must be unix:// and a path: over TCP anybody could be the agent"
            case UnixAddress(path) if Path(path) == self.socket_path:
                rule = "is this agent's own socket; name another agent's"
            case _:
                return
        raise ValueError(f"trust_bundle_spiffe_workload_api: {rule}")

    def _check_rebootstrap(self) -> None:
        mode = f'rebootstrap_mode = "{self.rebootstrap_mode}"'
        if self.rebootstrap_mode == "never":
            return
        if self.insecure_bootstrap:
            raise ValueError(
                f"{mode} and insecure_bootstrap exclude each other: whoever takes the server's address could take over "
                "the agent at any time; set trust_bundle_path"
            )
        if not self.has_bundle:
            raise ValueError(
                f"{mode} needs {', '.join(_BUNDLE_SOURCES[:-1])} or {_BUNDLE_SOURCES[-1]}: "
                "the bundle to begin again with"
            )
        if self.rebootstrap_mode == "always" and not self.node_attestors:
            raise ValueError(
                f"{mode} needs a node attestor that proves this node again and again, such as [attestors.x509pop]; "
                'a join token is good for once: set rebootstrap_mode = "auto"'
            )

    @property
    def has_bundle(self) -> bool:
        """Whether the operator named a bundle to begin with."""
        return any(getattr(self, one) for one in _BUNDLE_SOURCES)

    @property
    def node_attestors(self) -> list[str]:
        """The tables of [attestors] by which this node proves itself; none with a join token."""
        return [name for name in self.attestors if name in NODE_PROVERS.names() and name != "join_token"]

    @property
    def servers(self) -> list[tuple[str, int]]:
        """Names and ports of the servers; which of them is talked to, and in which order, is for the dialer."""
        return [server_address(text, self.server_port) for text in self.server_address]

    @property
    def patience(self) -> timedelta | None:
        """How long a server may stay unproven before the agent bootstraps again; None for ever."""
        return None if self.rebootstrap_mode == "never" else self.rebootstrap_delay

    @property
    def admin_socket(self) -> Path:
        """Where the admin socket is: as configured, else the usual place, or the data directory of an unusual agent.

        Two agents on one machine have two `socket_path` and two `data_dir`; that must be enough to keep them apart.
        """
        if self.admin_socket_path is not None:
            return self.admin_socket_path
        return agent_admin_socket() if self.socket_path == agent_socket() else self.data_dir / "admin.sock"

    @property
    def key_kind(self) -> KeyKind:
        """The kind of workload keys."""
        return KeyKind(self.workload_x509_svid_key_type)

    def warnings(self) -> tuple[str, ...]:
        """What will work and is not safe."""
        found = []
        if self.insecure_bootstrap:
            found.append(
                "INSECURE: insecure_bootstrap is on. On first contact whoever answers as the server is believed and "
                "can take over this node. Use it for throw-away tests only; set trust_bundle_path otherwise"
            )
        if self.attestors.get("k8s", {}).get("skip_kubelet_verification") is True:
            found.append(
                "INSECURE: attestors.k8s.skip_kubelet_verification is on. Whoever answers on the kubelet's port "
                "decides which pod a workload is, and gets the agent's token; set kubelet_ca_path instead"
            )
        if self.key_manager == "memory" and not self.node_attestors:
            found.append(
                'key_manager is "memory" and this agent joins by tokens: each start needs a new token; use "disk", or '
                "a node attestor that proves the node again"
            )
        if self.join_token.get_secret_value():
            found.append(
                "the join token was given as a value, which others can read from the process list or the file; "
                "use join_token_file"
            )
        return tuple(found)


def load(
    path: str | Path, overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> AgentSettings:
    """Read a TOML file; `overrides` maps dotted keys ("limits.streams") to flags' values, None for a flag not given.

    Variables in the file are filled in from `environ`, if it is given.

    Raises:
        ConfigError: one line for each mistake, with file, key and rule.
    """
    return load_settings(AgentSettings, path, overrides, environ)


def from_mapping(document: Mapping[str, object], *, source: str = "settings") -> AgentSettings:
    """Settings without a file."""
    return build_settings(AgentSettings, document, source=source)
