"""What the agent measures and how it tells how it is: the facts behind health, SPIRE's metrics (spire_features 9).

The services know nothing of it: what they call is wrapped, what they hold is read when the page is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from attestors.api import Findings, PromptAttestor, SourcedAttestor, Subject, WorkloadAttestor
from node_agent.domain import health
from node_agent.domain.entry_cache import Stamp
from node_agent.domain.news import News
from node_agent.domain.outlook import outlook_of
from node_agent.domain.standing import Phase
from node_agent.services.follow_server import Changes, FollowServer
from node_agent.services.jwt_svids import JwtSvids
from node_agent.services.membership import Membership
from node_agent.services.node_record import NodeRecord
from node_agent.services.steady_time import SteadyTime
from node_agent.services.synchronize import Synchronize
from node_agent.services.workload_svids import WorkloadSvids
from node_agent.settings import AgentSettings
from spiffe_core.clock import Clock
from spiffe_core.health import Report
from spiffe_core.runtime.metrics import Metrics, Reading, Stopwatch
from spiffe_core.runtime.monitor import Monitor, gauges
from spiffe_core.runtime.watchdog import Watchdog
from spiffe_core.selectors import Selector
from spiffe_core.wire.calls import CallMetrics, Observer
from spiffe_core.wire.front_door import FrontDoor
from spiffe_core.wire.peer import UnixPeer
from workload_api.service import WorkloadApi

T = TypeVar("T")

CLIENT_METRICS: Final = {
    "sync_entries": "manager_sync_fetch_entries_updates",
    "issue_svids": "manager_sync_fetch_svids_updates",
    "attest": "node_attestor_new_svid",
    "renew": "agent_svid_rotate",
}
"""Call of the server -> SPIRE's name of what it is for."""
_BEGUN: Final = {
    "SpiffeWorkloadAPI": "workload_api_connection",
    "envoy.service.secret.v3.SecretDiscoveryService": "sds_api_connection",
    "spire.agent.debug.v1.Debug": "debug_api_connection",
    "spire.api.agent.delegatedidentity.v1.DelegatedIdentity": "delegated_identity_api_connection",
}
_OPEN: Final = {
    "SpiffeWorkloadAPI": "workload_api_connections",
    "envoy.service.secret.v3.SecretDiscoveryService": "sds_api_connections",
    "spire.agent.debug.v1.Debug": "debug_api_connections",
    "spire.api.agent.delegatedidentity.v1.DelegatedIdentity": "delegated_identity_api_connections",
}
_REFUSED: Final = {"SpiffeWorkloadAPI": "workload_api_rate_limit_exceeded"}
Attest = Callable[[UnixPeer], Awaitable[frozenset[Selector]]]


@dataclass(slots=True)
class Parts:
    """What of the agent is looked at."""

    settings: AgentSettings
    clock: Clock
    steady: SteadyTime
    node: NodeRecord
    membership: Membership
    synchronize: Synchronize
    workloads: WorkloadSvids
    jwt: JwtSvids | None
    door: FrontDoor
    api: WorkloadApi
    follow: FollowServer | None = None
    attestors: Sequence[WorkloadAttestor] = ()
    draining: bool = False

    def facts(self, watchdog: Watchdog) -> health.Facts:
        """How things stand now. Reads finished values only: it is called on several threads."""
        session, svid = self.membership.session, self.node.state.svid
        synced_at = self.synchronize.synced_at
        now, next_sync = self.steady.peek(), self.synchronize.next_at
        outlook, doubt_since = outlook_of(session, now), session.doubt_since
        return health.Facts(
            draining=self.draining,
            phase=session.phase.value,
            member=session.is_member,
            banned=session.phase is Phase.REJECTED,
            why=session.why,
            waits_for=outlook.waits_for,
            acts_in=outlook.seconds,
            doubt=None if doubt_since is None else max(0.0, now - doubt_since),
            runway=(svid.not_after - self.clock.now()).total_seconds() if svid is not None else None,
            ready=self.workloads.ready,
            in_touch=self.synchronize.synced,
            synced_before=self.clock.monotonic() - synced_at if synced_at is not None else None,
            sync_trouble=self.synchronize.trouble,
            syncs_in=None if next_sync is None else max(0.0, next_sync - now),
            unsaved=self.node.trouble,
            attestors=tuple(
                (one.name, one.trouble) for one in self.attestors if isinstance(one, SourcedAttestor) and one.trouble
            ),
            streams=self.api.streams.open,
            loop_lag=watchdog.lag,
            loop_blocked=watchdog.blocked,
        )

    def report(self, watchdog: Watchdog) -> Report:
        """The facts, judged."""
        return health.report_of(self.facts(watchdog))


def metrics_of(settings: AgentSettings) -> Metrics | None:
    """Where numbers are kept; None if nobody collects them."""
    return Metrics("spire_agent") if settings.telemetry.prometheus is not None else None


def metered(client: T, metrics: Metrics | None, clock: Clock) -> T:
    """The server's client as the services use it."""
    return client if metrics is None else cast("T", _MeteredClient(client, metrics, clock.monotonic))


def metered_changes(changes: Changes, metrics: Metrics | None) -> Changes:
    """The push stream; each delta counts as a sync, which it takes the place of."""
    return changes if metrics is None else _MeteredChanges(changes, metrics)


def metered_attestors(
    attestors: Sequence[WorkloadAttestor], metrics: Metrics | None, clock: Clock
) -> Sequence[WorkloadAttestor]:
    """The attestors, each behind a stopwatch."""
    if metrics is None:
        return attestors
    return [
        (_MeteredPromptAttestor if isinstance(one, PromptAttestor) else _MeteredAttestor)(one, metrics, clock.monotonic)
        for one in attestors
    ]


def metered_attestation(attest: Attest, metrics: Metrics | None, clock: Clock) -> Attest:
    """The reading of one process, counted, timed, and with how many selectors it found."""
    if metrics is None:
        return attest

    async def measured(peer: UnixPeer) -> frozenset[Selector]:
        with Stopwatch(metrics, clock.monotonic, "workload_api_workload_attestation"):
            found = await attest(peer)
        metrics.sample("workload_api_discovered_selectors", len(found))
        return found

    return measured


def observers(metrics: Metrics | None) -> tuple[Observer, ...]:
    """Who looks on at each call."""
    return () if metrics is None else (CallMetrics(metrics), ApiConnections(metrics))


class ApiConnections:
    """Counts the calls of the Workload API and SDS, and those under way, which SPIRE calls connections."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: Counter[str] = Counter()
        for service, name in _OPEN.items():
            metrics.gauge(name, lambda service=service: float(self._open[service]))  # type: ignore[misc]  # bound now

    def begun(self, method: str) -> None:
        """One more."""
        service = _service_of(method)
        if service in _BEGUN:
            self._open[service] += 1
            self._metrics.add(_BEGUN[service])

    def ended(self, method: str, status: str, seconds: float, reason: str) -> None:  # noqa: ARG002  # the port's
        """One less."""
        service = _service_of(method)
        if service in _OPEN:
            self._open[service] -= 1
        if service in _REFUSED and status == "ResourceExhausted":
            self._metrics.add(_REFUSED[service], method=method.rpartition("/")[2])


def monitor(parts: Parts, metrics: Metrics | None) -> Monitor:
    """The agent's monitor, not yet open."""
    made = Monitor(parts.report, parts.clock, parts.settings, metrics)
    if metrics is not None:
        gauges(metrics, str(parts.settings.trust_domain), parts.door, _readings(parts, made.watchdog))
    return made


def _readings(parts: Parts, watchdog: Watchdog) -> dict[str, Callable[[], Reading]]:

    def facts() -> health.Facts:
        return parts.facts(watchdog)

    def since_sync() -> list[tuple[tuple[tuple[str, str], ...], float]]:
        before = facts().synced_before
        return [] if before is None else [((), before)]

    return {
        "agent_svid_ttl_seconds": lambda: facts().runway or 0.0,
        "manager_last_sync_seconds": since_sync,
        "lru_cache_record_map_size": lambda: len(parts.workloads.entries),
        "lru_cache_svid_map_size": lambda: parts.workloads.held_count,
        "jwt_svid_cache_size": lambda: len(parts.jwt) if parts.jwt is not None else 0,
        "streams": lambda: parts.api.streams.open,
        "push_stream_up": lambda: float(parts.follow is not None and parts.follow.up),
    }


class _MeteredClient:
    """Passes everything on; the calls of CLIENT_METRICS are timed."""

    def __init__(self, client: object, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._client, self._metrics, self._monotonic = client, metrics, monotonic

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        metric = CLIENT_METRICS.get(name)
        if metric is None:
            return call

        async def timed(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(self._metrics, self._monotonic, metric):
                return await call(*args, **kwargs)

        return timed


class _MeteredChanges:
    """Passes everything on, and counts."""

    def __init__(self, changes: Changes, metrics: Metrics) -> None:
        self._changes, self._metrics = changes, metrics
        self.acknowledge = changes.acknowledge

    async def follow(self, position: str, known: Callable[[], Mapping[str, Stamp]]) -> AsyncGenerator[News, None]:
        """As the stream does."""
        async with aclosing(self._changes.follow(position, known)) as stream:
            async for news in stream:
                self._metrics.add(CLIENT_METRICS["sync_entries"], status="OK")
                yield news


class _MeteredAttestor:
    """One workload attestor behind a stopwatch; it works on threads."""

    def __init__(self, attestor: WorkloadAttestor, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._attestor, self._metrics, self._monotonic = attestor, metrics, monotonic
        self.name = attestor.name

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """As the attestor does."""
        with Stopwatch(self._metrics, self._monotonic, "workload_api_workload_attestor", attestor=self.name):
            return self._attestor.attest(subject, deadline)


class _MeteredPromptAttestor(_MeteredAttestor):
    """One that often needs no thread. What it cannot tell at once is not counted: it is asked again."""

    def attest_at_once(self, subject: Subject) -> Findings | None:
        """As the attestor does."""
        began = self._monotonic()
        found = cast("PromptAttestor", self._attestor).attest_at_once(subject)
        if found is not None:
            seconds = self._monotonic() - began
            self._metrics.observe("workload_api_workload_attestor", seconds, attestor=self.name, status="OK")
        return found


def _service_of(method: str) -> str:
    return method.removeprefix("/").partition("/")[0]
