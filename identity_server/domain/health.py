"""How the server is: decided from facts (reliability R10, R16; SPIRE's subsystems in spire_features section 10).

The server is ready while an authority signs that has enough of its life left, memory agrees with the database, and
nobody told it to stop. Where probes take a server that is not ready away from its agents, `ready_without_database`
keeps it ready while the database is away: agents it knows go on getting certificates from memory (R24). An audit log
with a gap or a rotation that failed are troubles that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from identity_server.domain.publication import TargetState
from spiffe_core.health import Condition, Part, Report, loop_part

LATE_ROTATION = 12
"""The next authority takes over at a sixth of the life before the end; at a twelfth something is wrong."""
LAST_RUNWAY = 24
"""Below a 24th of its life an authority cuts most of what it signs short: others should sign."""
EVENT_LAG_SECONDS = 10.0
OWN_CERTIFICATE_LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment; durations in seconds.

    `runway` is how long the active authority still signs, None without one. `own_late` is how long the renewal of the
    server's own certificate is overdue, `event_lag` how long ago the database was last seen to agree with memory.
    """

    draining: bool = False
    runway: float | None = None
    ca_ttl: float = 86_400.0
    authority_id: str = ""
    next_authority_id: str = ""
    rotation_error: str = ""
    key_trouble: str = ""
    store_trouble: str = ""
    event_lag: float = 0.0
    revision: int = 0
    audit_healthy: bool = True
    audit_lost: int = 0
    own_late: float = 0.0
    loop_lag: float = 0.0
    loop_blocked: bool = False
    ready_without_database: bool = False
    upstream_error: str | None = None
    """Why the upstream authority could not be followed, "" if it was; None where there is none."""
    published: tuple[TargetState, ...] = ()
    """How the places stand where the trust bundle is put."""
    endpoint_troubles: tuple[str, ...] | None = None
    """What keeps the HTTPS endpoints from their newest document or certificate; None where there are no endpoints."""
    differences: tuple[str, ...] = ()
    """On which settings the servers that share the database do not agree."""


def report_of(facts: Facts) -> Report:
    """Every part, in a fixed order."""
    return Report(
        (
            _server(facts),
            _authority(facts),
            _rotator(facts),
            *_upstream(facts),
            *_publishing(facts),
            *_endpoints(facts),
            _settings(facts),
            _datastore(facts),
            _audit(facts),
            loop_part(facts.loop_lag, blocked=facts.loop_blocked),
        )
    )


def _server(facts: Facts) -> Part:
    if facts.draining:
        return Part("server", Condition.FAILED, "the server is stopping")
    if facts.own_late > OWN_CERTIFICATE_LATE_SECONDS:
        text = "the server's own certificate could not be renewed; see the log"
        return Part("server", Condition.DEGRADED, text, {"overdue_seconds": round(facts.own_late)})
    return Part("server")


def _authority(facts: Facts) -> Part:
    if facts.runway is None or facts.runway <= 0.0:
        return Part("server.ca", Condition.FAILED, "no signing authority is active: nothing is issued", _runway(facts))
    if facts.key_trouble:
        text = f"{facts.key_trouble}; nothing is issued with it meanwhile"
        return Part("server.ca", Condition.FAILED, text, _runway(facts))
    if facts.runway < facts.ca_ttl / LAST_RUNWAY:
        text = "the active authority is about to end and no other has taken over; see server.ca.rotator"
        return Part("server.ca", Condition.FAILED, text, _runway(facts))
    if facts.runway < facts.ca_ttl / LATE_ROTATION:
        text = "the active authority nears its end and no other has taken over; see server.ca.rotator"
        return Part("server.ca", Condition.DEGRADED, text, _runway(facts))
    return Part("server.ca", detail=_runway(facts))


def _runway(facts: Facts) -> dict[str, object]:
    return {
        "runway_seconds": max(0, round(facts.runway or 0.0)),
        "authority_id": facts.authority_id,
        "next_authority_id": facts.next_authority_id,
    }


def _rotator(facts: Facts) -> Part:
    if facts.rotation_error:
        return Part("server.ca.rotator", Condition.DEGRADED, facts.rotation_error)
    return Part("server.ca.rotator")


def _upstream(facts: Facts) -> tuple[Part, ...]:
    if facts.upstream_error is None:
        return ()
    if facts.upstream_error:
        return (Part("server.upstream", Condition.DEGRADED, facts.upstream_error),)
    return (Part("server.upstream"),)


def _publishing(facts: Facts) -> tuple[Part, ...]:
    if not facts.published:
        return ()
    detail: dict[str, object] = {
        one.name: {"place": one.place, "sequence": one.sequence, "behind_seconds": round(one.behind_seconds, 1)}
        for one in facts.published
    }
    failing = [one for one in facts.published if one.error]
    if failing:
        text = "; ".join(f"publish.{one.name}: {one.error}" for one in failing)
        return (Part("server.publish", Condition.DEGRADED, text, detail),)
    return (Part("server.publish", detail=detail),)


def _endpoints(facts: Facts) -> tuple[Part, ...]:
    if facts.endpoint_troubles is None:
        return ()
    if facts.endpoint_troubles:
        return (Part("server.endpoints", Condition.DEGRADED, "; ".join(facts.endpoint_troubles)),)
    return (Part("server.endpoints"),)


def _settings(facts: Facts) -> Part:
    if not facts.differences:
        return Part("server.settings")
    text = (
        f"the servers that share the database differ: {'; '.join(facts.differences)}. Make them equal; until then the "
        "shortest default lifetime of all servers holds"
    )
    return Part("server.settings", Condition.DEGRADED, text)


def _datastore(facts: Facts) -> Part:
    detail: dict[str, object] = {"revision": facts.revision, "event_lag_seconds": round(facts.event_lag, 1)}
    condition = Condition.DEGRADED if facts.ready_without_database else Condition.FAILED
    if facts.store_trouble:
        text = f"{facts.store_trouble}; known agents are served from memory, changes are refused"
        return Part("catalog.datastore", condition, text, detail)
    if facts.event_lag > EVENT_LAG_SECONDS:
        text = "the database does not answer; what is in memory may be old"
        return Part("catalog.datastore", condition, text, detail)
    return Part("catalog.datastore", detail=detail)


def _audit(facts: Facts) -> Part:
    detail: dict[str, object] = {"lost_lines": facts.audit_lost}
    if facts.audit_healthy:
        return Part("audit", detail=detail)
    text = "the audit log cannot be written: administrative changes are refused, the gap is counted; make room for it"
    return Part("audit", Condition.DEGRADED, text, detail)
