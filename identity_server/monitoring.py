"""What the server measures and how it tells how it is: the facts behind health, and SPIRE's metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from identity_server.audit_log import AuditFile
from identity_server.domain import health
from identity_server.domain.audit import (
    BEGUN,
    DONE,
    FAILED,
    MAX_REASON,
    REFUSED,
    AgentAttested,
    AuditEvent,
    AuthorityChanged,
    CallEnded,
    SvidIssued,
    TokenIssued,
)
from identity_server.domain.authority import Status
from identity_server.domain.publication import TargetState
from identity_server.domain.state import State
from identity_server.ports import AuditLog, Store
from identity_server.rpc.drain import Drain
from identity_server.rpc.throttle import Throttle
from identity_server.services.abreast import Abreast
from identity_server.services.authorities import Authorities
from identity_server.services.own_identity import OwnIdentity
from identity_server.services.publish_bundle import Observe, PublishBundle
from identity_server.services.server_agreement import ServerAgreement
from identity_server.settings import ServerSettings
from identity_server.store.metered import MeteredStore
from identity_server.store.sql_store import SqlStore
from identity_server.store.traced import TracedStore
from spiffe_core.clock import Clock
from spiffe_core.errors import Kind
from spiffe_core.health import Report
from spiffe_core.runtime.metrics import Metrics, Reading, status_word
from spiffe_core.runtime.monitor import Monitor, gauges
from spiffe_core.runtime.tracing import Tracing
from spiffe_core.runtime.watchdog import Watchdog
from spiffe_core.wire.calls import CallMetrics, Observer
from spiffe_core.wire.front_door import FrontDoor

_TIMED = {
    ("x509", "prepare"): "ca_manager_x509_ca_prepare",
    ("jwt", "prepare"): "ca_manager_jwt_key_prepare",
    ("wit", "prepare"): "ca_manager_wit_key_prepare",
}
"""What is a call counter in SPIRE: counted and timed from the line before it to the line after it."""
_COUNTED = {
    ("x509", "activate"): "ca_manager_x509_ca_activate",
    ("jwt", "activate"): "manager_jwt_key_activate",
    ("wit", "activate"): "manager_wit_key_activate",
}
_MOST_BEGUN = 256
_HEALTH = "/grpc.health.v1.Health/"
_OUTCOMES = {
    "OK": DONE,
    **dict.fromkeys(("Unavailable", "Internal", "Unknown", "DeadlineExceeded", "Canceled"), FAILED),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the server is looked at."""

    settings: ServerSettings
    clock: Clock
    store: SqlStore
    authorities: Authorities
    agreement: ServerAgreement
    own: OwnIdentity
    audit: AuditFile
    drain: Drain
    door: FrontDoor
    throttle: Throttle
    abreast: Abreast
    upstream_error: Callable[[], str | None]
    publishing: PublishBundle
    endpoint_troubles: Callable[[], tuple[str, ...] | None]

    def facts(self, watchdog: Watchdog) -> health.Facts:
        """How things stand now. Reads finished values only: it is called on several threads."""
        now = self.clock.now()
        active = self.authorities.active
        state = self.store.state.value
        following = [one.authority_id for one in state.authorities if _is_next(one.kind, one.status)]
        error = self.authorities.last_error
        due = self.own.renew_at
        return health.Facts(
            draining=self.drain.begun,
            runway=active.not_after - now.timestamp() if active is not None else None,
            ca_ttl=self.settings.ca.ttl.total_seconds(),
            authority_id=active.authority_id if active is not None else "",
            next_authority_id=following[0] if following else "",
            rotation_error=error.public if error is not None else "",
            key_trouble=self.authorities.key_trouble,
            store_trouble=self.store.trouble,
            event_lag=self.store.lag,
            revision=state.position.revision,
            audit_healthy=self.audit.healthy,
            audit_lost=self.audit.lost,
            own_late=max(0.0, (now - due).total_seconds()) if due is not None else 0.0,
            loop_lag=watchdog.lag,
            loop_blocked=watchdog.blocked,
            upstream_error=self.upstream_error(),
            published=self.publishing.states(),
            endpoint_troubles=self.endpoint_troubles(),
            differences=tuple(map(str, self.agreement.differences)),
            ready_without_database=self.settings.health_checks.ready_without_database,
        )

    def report(self, watchdog: Watchdog) -> Report:
        """The facts, judged."""
        return health.report_of(self.facts(watchdog))


class CountedAudit:
    """The audit log; what is recorded is counted as well, under SPIRE's names."""

    def __init__(self, log: AuditLog, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._metrics = metrics
        self._monotonic = monotonic
        self._begun: dict[tuple[str, str], float] = {}

    def record(self, *events: AuditEvent) -> None:
        """Write, then count."""
        self._log.record(*events)
        for event in events:
            self._count(event)

    def _count(self, event: AuditEvent) -> None:
        match event:
            case SvidIssued():
                ca = event.profile == "downstream"
                self._metrics.add("server_ca_sign_x509_ca_svid" if ca else "server_ca_sign_x509_svid")
            case TokenIssued():
                self._metrics.add("server_ca_sign_wit_svid" if "wit" in event.profile else "server_ca_sign_jwt_svid")
            case AgentAttested(outcome="attested"):
                self._metrics.add("server_ca_sign_x509_svid")
            case AuthorityChanged():
                self._authority(event)

    def _authority(self, event: AuthorityChanged) -> None:
        change, key = event.change, (event.change, event.authority_id)
        if event.outcome == BEGUN:
            if len(self._begun) < _MOST_BEGUN:
                self._begun[key] = self._monotonic()
            return
        seconds = self._monotonic() - self._begun.pop(key, self._monotonic())
        done, kind = event.outcome == DONE, _kind_of(event.slot)
        timed = "ca_manager_bundle_prune" if change == "forget" else _TIMED.get((kind, change))
        if timed is not None:
            self._metrics.observe(timed, seconds, status="OK" if done else "Internal")
        if done and change == "forget":
            self._metrics.add("ca_manager_bundle_pruned")
        if done and (kind, change) in _COUNTED:
            self._metrics.add(_COUNTED[kind, change])


def metrics_of(settings: ServerSettings) -> Metrics | None:
    """Where numbers are kept; None if nobody collects them."""
    return Metrics("spire_server") if settings.telemetry.prometheus is not None else None


def counted(audit: AuditLog, metrics: Metrics | None, clock: Clock) -> AuditLog:
    """The audit log as the services use it."""
    return audit if metrics is None else CountedAudit(audit, metrics, clock.monotonic)


def rotations(metrics: Metrics | None) -> Callable[[float], None]:
    """Who is told how long a renewal of the server's own certificate took."""
    if metrics is None:
        return lambda _: None
    return lambda seconds: metrics.observe("svid_rotate", seconds, status="OK")


def publishings(metrics: Metrics | None) -> Observe:
    """Who is told how a try to publish the trust bundle went."""

    def observe(publisher: str, seconds: float, failure: Kind | None) -> None:
        if metrics is not None:
            status = "OK" if failure is None else status_word(failure)
            metrics.observe("bundle_publish", seconds, status=status, publisher=publisher)

    return observe


def bundle_fetches(metrics: Metrics | None) -> Callable[[bool, float], None]:
    """Who is told how the fetch of another trust domain's bundle ended and how long it took."""
    if metrics is None:
        return lambda _worked, _seconds: None

    def count(worked: bool, seconds: float) -> None:
        status = "OK" if worked else "Unavailable"
        metrics.observe("bundle_manager_fetch_federated_bundle", seconds, status=status)

    return count


def bundle_updates(metrics: Metrics | None) -> Callable[[], None]:
    """Who is told that a new bundle of another trust domain was stored."""
    if metrics is None:
        return lambda: None
    return lambda: metrics.add("bundle_manager_update_federated_bundle")


def metered(store: SqlStore, metrics: Metrics | None, clock: Clock) -> Store:
    """The store as the services use it."""
    if metrics is None:
        return store
    store.measure_reloads(lambda seconds: metrics.observe("entry_cache_reload", seconds, status="OK"))
    return MeteredStore(store, metrics, clock.monotonic)


def traced_store(store: Store, tracing: Tracing | None) -> Store:
    """The store as the services use it, with a span around each command when calls are traced."""
    return store if tracing is None else TracedStore(store)


class CallAudit:
    """Records the end of every call of the API; probes' questions after our health are left out."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def begun(self, method: str) -> None:
        """Nothing is known yet."""

    def ended(self, method: str, status: str, seconds: float, reason: str) -> None:
        """Queue the line."""
        if not method.startswith(_HEALTH):
            event = CallEnded(
                method=method.removeprefix("/"),
                status=status,
                milliseconds=round(seconds * 1000),
                outcome=_OUTCOMES.get(status, REFUSED),
                reason=reason[:MAX_REASON],
            )
            self._log.record(event)


def observers(metrics: Metrics | None, audit: AuditLog) -> tuple[Observer, ...]:
    """Who looks on at each call."""
    return (CallAudit(audit),) if metrics is None else (CallAudit(audit), CallMetrics(metrics))


def monitor(parts: Parts, metrics: Metrics | None) -> Monitor:
    """The server's monitor, not yet open."""
    made = Monitor(parts.report, parts.clock, parts.settings, metrics)
    if metrics is not None:
        gauges(metrics, str(parts.settings.trust_domain), parts.door, _readings(parts, made.watchdog))
    return made


def _readings(parts: Parts, watchdog: Watchdog) -> dict[str, Callable[[], Reading]]:
    trust_domain = (("trust_domain_id", str(parts.settings.trust_domain)),)

    def facts() -> health.Facts:
        return parts.facts(watchdog)

    def end() -> float:
        active = parts.authorities.active
        return float(active.not_after) if active is not None else 0.0

    return {
        "manager_x509_ca_rotate_expiration": lambda: [(trust_domain, end())],
        "manager_x509_ca_rotate_ttl": lambda: [(trust_domain, facts().runway or 0.0)],
        "manager_jwt_key_rotate_ttl": lambda: _ttl(parts, "jwt"),
        "manager_wit_key_rotate_ttl": lambda: _ttl(parts, "wit"),
        "entry_entries_by_entryid_cache_count": lambda: len(parts.store.state.value.entries),
        "entry_entries_by_parentid_cache_count": lambda: len(parts.store.state.value.children),
        "entry_nodealiases_by_entryid_cache_count": lambda: _aliases(parts.store.state.value),
        "entry_nodealiases_by_selector_cache_count": lambda: len(parts.store.state.value.aliases),
        "node_agents_by_id_cache_count": lambda: len(parts.store.state.value.agents),
        "node_agents_by_expiresat_cache_count": lambda: len(parts.store.state.value.agents),
        "bundles": lambda: len(parts.store.state.value.bundles.all()) if parts.store.state.value.bundles else 0,
        "datastore_revision": lambda: parts.store.state.value.position.revision,
        "datastore_event_lag_seconds": lambda: parts.store.lag,
        "behind_calls_refused": lambda: parts.abreast.behind,
        "behind_calls_waiting": lambda: parts.abreast.waiting,
        "settings_differ": lambda: len(parts.agreement.differences),
        "bundle_published_sequence": lambda: _published(parts.publishing, lambda one: float(one.sequence or 0)),
        "bundle_publish_behind_seconds": lambda: _published(parts.publishing, lambda one: one.behind_seconds),
        "audit_lost_lines": lambda: parts.audit.lost,
        "rate_limit_waiting": lambda: parts.throttle.waiting,
        "rate_limit_exceeded": lambda: [((("limit", name),), n) for name, n in dict(parts.throttle.refused).items()],
    }


def _published(
    publishing: PublishBundle, value: Callable[[TargetState], float]
) -> list[tuple[tuple[tuple[str, str], ...], float]]:
    """A number of each place where the trust bundle is put."""
    return [((("publisher", one.name),), value(one)) for one in publishing.states()]


def _ttl(parts: Parts, kind: str) -> list[tuple[tuple[tuple[str, str], ...], float]]:
    """How long this server's active authority of a kind still signs; nothing if there is none."""
    now = parts.clock.now().timestamp()
    labels = (("trust_domain_id", str(parts.settings.trust_domain)),)
    mine = [one for one in parts.store.state.value.authorities if one.kind == kind and one.status is Status.ACTIVE]
    return [(labels, max(0.0, one.not_after - now)) for one in mine]


def _aliases(state: State) -> float:
    return len({entry_id for records in state.aliases.values() for entry_id in records})


def _is_next(kind: str, status: Status) -> bool:
    return kind == "x509" and status is Status.PREPARED


def _kind_of(slot: str) -> str:
    """What kind of authority a slot is for, by its name in the key manager: `x509-CA-A` is for "x509"."""
    return slot.partition("-")[0].lower()
