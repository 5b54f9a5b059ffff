"""Attested agents: the record, its legal changes, and whether a presented certificate may speak for it.

Theory of operation (spire_wire section 2, spire_features section 16.3). An agent has one current serial. A renewal
stores the new serial beside it as *pending*; the first authorised call made with the pending certificate promotes it,
and from then on the old one is not active. A crash between storing and answering therefore never strands an agent: it
still holds the current certificate. A banned agent keeps its record with an empty current serial.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from spiffe_core.errors import InvalidRequest, Refusal
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

AGENT_PREFIX = "/spire/agent"
SERVER_PATH = "/spire/server"
MAX_VERSION_BYTES = 255
"""PostStatus refuses a longer agent version."""


@dataclass(frozen=True, slots=True)
class AttestedAgent:
    """One attested node. Serials are decimal text; times are unix seconds; an empty `serial` means banned."""

    spiffe_id: SpiffeId
    attestation_type: str
    serial: str
    expires_at: int
    new_serial: str = ""
    new_expires_at: int = 0
    selectors: frozenset[Selector] = frozenset()
    can_reattest: bool = False
    agent_version: str = ""

    @property
    def banned(self) -> bool:
        """True if an administrator banned it: no certificate of it is accepted and it cannot attest again."""
        return not self.serial


@dataclass(frozen=True, slots=True)
class Admission:
    """What the agent check says. Exactly one of three: let in, let in and promote the pending serial, refused."""

    refusal: Refusal | None = None
    promote: bool = False

    @property
    def admitted(self) -> bool:
        """True if the call may go on."""
        return self.refusal is None


_ADMITTED = Admission()


def admit(agent: AttestedAgent | None, presented_serial: str, not_after: datetime, now: datetime) -> Admission:
    """Decide whether a certificate may speak for `agent`, in SPIRE's order (spire_features section 16.3).

    1. The presented certificate has expired: AGENT_EXPIRED.
    2. There is no record: AGENT_NOT_ATTESTED.
    3. The current serial is empty: AGENT_BANNED.
    4. The serial is the current one: admitted. It is the pending one: admitted, and the pending one is promoted.
    5. Anything else: AGENT_NOT_ACTIVE.
    """
    if now >= not_after:  # (1)
        return Admission(Refusal.AGENT_EXPIRED)
    if agent is None:  # (2)
        return Admission(Refusal.AGENT_NOT_ATTESTED)
    if agent.banned:  # (3)
        return Admission(Refusal.AGENT_BANNED)
    if presented_serial and presented_serial == agent.serial:  # (4)
        return _ADMITTED
    if presented_serial and presented_serial == agent.new_serial:
        return Admission(promote=True)
    return Admission(Refusal.AGENT_NOT_ACTIVE)  # (5)


def attested(
    before: AttestedAgent | None,
    *,
    spiffe_id: SpiffeId,
    attestation_type: str,
    serial: str,
    expires_at: int,
    selectors: frozenset[Selector],
    can_reattest: bool,
) -> AttestedAgent:
    """The record after a successful attestation: selectors replaced, serial overwritten, pending serial cleared."""
    return AttestedAgent(
        spiffe_id=spiffe_id,
        attestation_type=attestation_type,
        serial=serial,
        expires_at=expires_at,
        selectors=selectors,
        can_reattest=can_reattest,
        agent_version=before.agent_version if before is not None else "",
    )


def renewed(agent: AttestedAgent, serial: str, expires_at: int) -> AttestedAgent:
    """The record after RenewAgent: the new serial waits beside the current one. A ban stays a ban."""
    if agent.banned:
        return agent
    return replace(agent, new_serial=serial, new_expires_at=expires_at)


def promoted(agent: AttestedAgent) -> AttestedAgent:
    """The record after the first call made with the pending certificate; no pending serial or a ban: unchanged."""
    if agent.banned or not agent.new_serial:
        return agent
    return replace(agent, serial=agent.new_serial, expires_at=agent.new_expires_at, new_serial="", new_expires_at=0)


def banned(agent: AttestedAgent) -> AttestedAgent:
    """The record after BanAgent: no serial is left that could be presented."""
    return replace(agent, serial="", new_serial="", new_expires_at=0)


def with_version(agent: AttestedAgent, version: str) -> AttestedAgent:
    """The record after PostStatus."""
    check_version(version)
    return replace(agent, agent_version=version)


def check_version(version: str) -> None:
    """Refuse an agent version that is too long to store."""
    if len(version.encode()) > MAX_VERSION_BYTES:
        raise InvalidRequest(
            f"agent version must be at most {MAX_VERSION_BYTES} bytes",
            field="agent_version",
            size=len(version.encode()),
        )


def check_agent_id(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> SpiffeId:
    """Return `spiffe_id` if it names an agent of `trust_domain`: a path under /spire/agent/."""
    if not spiffe_id.member_of(trust_domain):
        raise InvalidRequest(
            f'invalid agent ID: "{spiffe_id}" is not a member of trust domain "{trust_domain}"', field="id"
        )
    if not spiffe_id.is_under(AGENT_PREFIX) or spiffe_id.path == AGENT_PREFIX:
        raise InvalidRequest(
            f'invalid agent ID: "{spiffe_id}" is not an agent in trust domain "{trust_domain}" '
            f"(an agent's path is under {AGENT_PREFIX}/)",
            field="id",
        )
    return spiffe_id
