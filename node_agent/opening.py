"""Parts that the composition root opens only if the settings ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from attestors.api import ObjectAttestor, WorkloadAttestor
from attestors.holders import why_not
from attestors.registry import NODE_PROVERS, WORKLOAD_ATTESTORS
from node_agent.domain.brokers import Brokers
from node_agent.domain.node_state import NodeState, believing_both
from node_agent.domain.outlook import outlook_of
from node_agent.domain.standing import Phase
from node_agent.files import BundleFile, BundleFromAgent, BundleUrl, JoinTokenCredentials, ProverCredentials
from node_agent.monitoring import Parts
from node_agent.ports import Credentials, IdentityServer
from node_agent.rpc.broker_api import BrokerApi
from node_agent.rpc.broker_endpoint import CONNECTIONS, GRACE_SECONDS, BrokerAddresses, BrokerEndpoint, Strangers
from node_agent.services.attest_workload import AttestWorkload
from node_agent.services.explain import Explain
from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.node_record import NodeRecord
from node_agent.services.pods import Pods
from node_agent.services.referenced import ReferencedWorkloads
from node_agent.services.steady_time import SteadyTime
from node_agent.services.workload_svids import WorkloadSvids
from node_agent.settings import AgentSettings
from node_agent.state_dir import DamagedState, StateDirectory
from spiffe_core.clock import Clock
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.explanation_facts import AgentFacts
from spiffe_core.wire.front_door import FrontDoor, Limits
from spiffe_core.wire.peer import TlsPeer, peer_pidfd_supported
from spiffe_core.wire.tls import ServerTls, TlsIdentity
from spiffe_core.x509_svid import X509Svid
from workload_api.sds import SecretDiscovery
from workload_api.sds_secrets import SdsNames
from workload_api.service import WorkloadApi

if TYPE_CHECKING:  # loaded only where it is configured
    from node_agent.file_sets.own_files import OwnFiles

log = logging.getLogger(__name__)


class OwnIdentity:
    """The agent's own SVID as TLS presents it; the same object until the SVID changes."""

    def __init__(self, node: NodeRecord) -> None:
        self._node = node
        self._made: tuple[X509Svid, TlsIdentity] | None = None

    def __call__(self) -> TlsIdentity:
        """The present one.

        Raises:
            Unavailable: the agent has none.
        """
        svid = self._node.state.svid
        if svid is None:
            raise Unavailable("the agent has no identity of its own yet")
        if self._made is None or self._made[0] is not svid:
            self._made = (svid, TlsIdentity(svid.chain, svid.key))
        return self._made[1]


def broker_endpoint(
    settings: AgentSettings,
    attestors: Sequence[WorkloadAttestor],
    node: NodeRecord,
    workloads: WorkloadSvids,
    jwt: JwtSvids | None,
    clock: Clock,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
) -> BrokerEndpoint | None:
    """The SPIFFE Broker Endpoint, if one is configured."""
    section = settings.broker
    if section is None:
        return None
    brokers = Brokers(section.domain())
    door = FrontDoor(limits=Limits(connections=CONNECTIONS))

    def cut(peer: TlsPeer) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(GRACE_SECONDS, lambda: door.close_where(lambda other: other is peer))

    references = ReferencedWorkloads(
        workloads,
        [one for one in attestors if isinstance(one, ObjectAttestor)],
        clock=clock,
        budget=settings.limits.attestation_seconds,
    )
    api = BrokerApi(
        workloads, references, jwt, door.caller_of, brokers, clock, jwt_key_use=settings.jwt.key_use, cut=cut
    )
    tls = ServerTls(
        OwnIdentity(node),
        lambda: workloads.bundles,
        clock.now,
        anonymous=False,
        admit=Strangers(brokers, door).admit,
    )
    addresses = BrokerAddresses(section.socket_path, section.tcp)
    return BrokerEndpoint(addresses, tls, door, references, api, interceptors)


def own_files(settings: AgentSettings, clock: Clock) -> OwnFiles | None:
    """What `files_config` asks for.

    Raises:
        ConfigError: the file says something wrong.
    """
    if settings.files_config is None:
        return None
    from node_agent.file_sets.own_files import OwnFiles  # with all kinds of key stores: few agents need any
    from node_agent.file_sets.settings import load

    return OwnFiles(load(settings.files_config), settings.socket_path, clock)


def explanations(
    parts: Parts, server: IdentityServer, attestation: AttestWorkload, clock: Clock, steady: SteadyTime
) -> Explain:
    """What answers `node-agent explain`."""

    def facts() -> AgentFacts:
        svid, session, sync = parts.node.state.svid, parts.membership.session, parts.synchronize
        return AgentFacts(
            agent_id="" if svid is None else str(svid.spiffe_id),
            banned=session.phase is Phase.REJECTED,
            member=session.is_member,
            why=session.why,
            advice=session.advice,
            reason=session.reason,
            waits_for=outlook_of(session, steady.now()).waits_for,
            ready=parts.workloads.ready,
            pushed=parts.follow is not None and parts.follow.up,
            position=parts.follow.position if parts.follow is not None else "",
            synced_before=None if sync.synced_at is None else clock.monotonic() - sync.synced_at,
            sync_trouble=sync.trouble,
        )

    return Explain(
        workloads=parts.workloads,
        attestation=attestation,
        facts=facts,
        elsewhere=server.elsewhere,
        pods=Pods(parts.attestors, clock=clock, budget=parts.settings.limits.attestation_seconds),
        clock=clock,
        new_id=lambda: secrets.token_hex(4),
    )


def secret_discovery(settings: AgentSettings, api: WorkloadApi, door: FrontDoor, clock: Clock) -> SecretDiscovery:
    """Envoy's service on the Workload API's socket."""
    wanted = settings.sds
    names = SdsNames(
        default_svid=wanted.default_svid_name,
        default_bundle=wanted.default_bundle_name,
        default_all_bundles=wanted.default_all_bundles_name,
        disable_validator=wanted.disable_spiffe_cert_validation,
    )
    return SecretDiscovery(
        api.streams,
        door.caller_of,
        clock,
        lambda: secrets.token_hex(4),
        names=names,
        entitled_only=not settings.allow_unauthenticated_verifiers,
        wait=settings.wait_for_identity,
    )


def workload_attestors(settings: AgentSettings) -> list[WorkloadAttestor]:
    """Those that the configuration names; Unix if it names none."""
    tables = {name: options for name, options in settings.attestors.items() if name not in NODE_PROVERS.names()}
    return [WORKLOAD_ATTESTORS.build(name, options) for name, options in (tables or {"unix": {}}).items()]


def own_seed(settings: AgentSettings) -> bytes:
    """What this agent's order of servers is made from: its own, the same until the machine is started again.

    Machines made from one image may share everything that is written down, but not the kernel's number of this boot.
    """
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "|".join((boot, socket.gethostname(), str(settings.data_dir))).encode()


def check_pidfd(settings: AgentSettings) -> None:
    """Refuse, or say, that this kernel names no connecting process by pidfd. Raises ConfigError."""
    if peer_pidfd_supported():
        return
    if settings.peer_pidfd == "require":
        raise ConfigError(
            'peer_pidfd: is "require" and this kernel cannot name a connecting process by pidfd; '
            'run Linux 6.5 or newer, or set peer_pidfd = "auto"',
            field="peer_pidfd",
        )
    log.warning(
        "this kernel (before Linux 6.5) does not name connecting processes by pidfd; "
        "callers are held right after accept and checked twice instead"
    )


def check_strict(settings: AgentSettings) -> None:
    """Refuse to start where `strict` could not be kept. Raises ConfigError."""
    if settings.strict and (reason := why_not()):
        raise ConfigError(
            f"strict: this agent cannot tell which processes hold a connection: {reason}, or set strict = false",
            field="strict",
        )


def credentials_of(settings: AgentSettings) -> Credentials:
    """How the node proves itself: the node attestor that the configuration names, else a join token.

    Raises:
        ConfigError: it names two.
    """
    token = JoinTokenCredentials(settings.join_token_file, settings.join_token.get_secret_value())
    names = settings.node_attestors
    if not names:
        return token
    if len(names) > 1 or settings.join_token_file is not None or settings.join_token.get_secret_value():
        ways = ", ".join([f"attestors.{name}" for name in names])
        raise ConfigError(
            f"{ways}: a node proves itself in one way; keep one of these tables and remove join_token_file",
            field=f"attestors.{names[0]}",
        )
    return ProverCredentials(NODE_PROVERS.build(names[0], settings.attestors[names[0]]))


def load_state(settings: AgentSettings, directory: StateDirectory) -> NodeState:
    """The state of the life before. A damaged one is set aside if there is a bundle to begin again with (R8).

    Raises:
        CorruptState: it is not for this agent, or there is nothing to begin with.
    """
    try:
        return directory.load(settings.trust_domain)
    except DamagedState:
        if not settings.has_bundle:  # insecure_bootstrap is for first contact, not for the second
            raise
        return directory.set_aside(settings.trust_domain)


def first_contact_of(settings: AgentSettings) -> BundleFile | BundleUrl | BundleFromAgent:
    """Where the bundle to begin with comes from."""
    form, trust_domain = settings.trust_bundle_format, settings.trust_domain
    if settings.trust_bundle_url:
        where = settings.trust_bundle_unix_socket
        return BundleUrl(settings.trust_bundle_url, form, trust_domain, unix_socket=Path(where) if where else None)
    if settings.trust_bundle_spiffe_workload_api:
        return BundleFromAgent(settings.trust_bundle_spiffe_workload_api, trust_domain)
    return BundleFile(settings.trust_bundle_path, form, trust_domain)


def with_bundle(
    settings: AgentSettings, state: NodeState, first_contact: BundleFile | BundleUrl | BundleFromAgent, clock: Clock
) -> NodeState:
    """The bundle to begin with: the saved one while the saved SVID is good, else also what the operator configured.

    Raises:
        ConfigError: there is none.
    """
    alive = state.svid is not None and state.svid.not_after > clock.now() + timedelta(seconds=1)
    if state.bundle is not None and alive:
        return state
    configured = first_contact.read()
    if configured is not None:
        return replace(state, bundle=believing_both(state.bundle, configured))
    if state.bundle is None and not settings.insecure_bootstrap and not settings.has_bundle:
        raise ConfigError(
            "trust_bundle_path: is required to recognise the server on first contact; write it on the server with "
            "`identity-server bundle show > FILE` and name it here, or set trust_bundle_url or "
            "trust_bundle_spiffe_workload_api "
            "(insecure_bootstrap = true is for throw-away tests)",
            field="trust_bundle_path",
        )
    return state
