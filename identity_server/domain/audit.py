"""What an audit record says (architecture A16): who did what, to what, from where, with what outcome.

Events are values; the sink turns them into one JSON line each. Events with `flushed` set (administrative writes,
attestation verdicts and everything about the authority) stand in the file before their effect happens; the others
(leaf certificates) are queued before the signature leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Base of all events. Field values are text and numbers, never secrets."""

    event: ClassVar[str] = "event"
    flushed: ClassVar[bool] = True

    def document(self) -> dict[str, object]:
        """The event as a JSON object, its name first, empty fields left out."""
        body: dict[str, object] = {"event": self.event}
        for item in fields(self):
            value = getattr(self, item.name)
            if value not in ("", ()):
                body[item.name] = value
        return body


@dataclass(frozen=True, slots=True)
class AuthorityChanged(AuditEvent):
    """An authority was prepared, activated, retired, tainted, revoked or removed; `actor` is empty for the schedule."""

    event: ClassVar[str] = "authority"
    change: str
    authority_id: str
    not_after: int = 0
    slot: str = ""
    server_id: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class EntryChanged(AuditEvent):
    """A registration entry was created, updated or deleted."""

    event: ClassVar[str] = "entry"
    change: str
    entry_id: str
    actor: str
    spiffe_id: str = ""
    parent_id: str = ""


@dataclass(frozen=True, slots=True)
class BundleChanged(AuditEvent):
    """Authorities were added to the own trust bundle, or the bundle of another trust domain was changed or deleted."""

    event: ClassVar[str] = "bundle"
    change: str
    trust_domain: str
    actor: str
    authority_ids: str = ""
    mode: str = ""
    """Of a deletion: what becomes of the entries that federate with the trust domain."""


@dataclass(frozen=True, slots=True)
class RelationshipChanged(AuditEvent):
    """A federation relationship was created, updated or deleted."""

    event: ClassVar[str] = "federation"
    change: str
    trust_domain: str
    actor: str
    endpoint_url: str = ""
    endpoint_spiffe_id: str = ""


@dataclass(frozen=True, slots=True)
class LogLevelChanged(AuditEvent):
    """An administrator turned the log's level."""

    event: ClassVar[str] = "log_level"
    level: str
    actor: str


@dataclass(frozen=True, slots=True)
class AgentChanged(AuditEvent):
    """An agent was banned or deleted."""

    event: ClassVar[str] = "agent"
    change: str
    spiffe_id: str
    actor: str


@dataclass(frozen=True, slots=True)
class AgentAttested(AuditEvent):
    """The verdict on a node attestation. `outcome` is "attested" or the reason of the refusal."""

    event: ClassVar[str] = "attestation"
    attestation_type: str
    outcome: str
    actor: str
    spiffe_id: str = ""
    serial: str = ""


@dataclass(frozen=True, slots=True)
class JoinTokenCreated(AuditEvent):
    """A join token was made. The token itself is not recorded, only the first bytes of its SHA-256."""

    event: ClassVar[str] = "join_token"
    digest_prefix: str
    expires_at: int
    actor: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class SvidIssued(AuditEvent):
    """A leaf certificate was signed. `entry_id` is empty for agent and minted SVIDs."""

    event: ClassVar[str] = "x509_svid"
    flushed: ClassVar[bool] = False
    profile: str
    spiffe_id: str
    serial: str
    not_after: int
    actor: str
    entry_id: str = ""
    revision_number: int = 0


@dataclass(frozen=True, slots=True)
class TokenIssued(AuditEvent):
    """A JWT-SVID or WIT-SVID was signed: everything about it but the token. `entry_id` is empty for minted ones."""

    event: ClassVar[str] = "token"
    flushed: ClassVar[bool] = False
    profile: str
    spiffe_id: str
    key_id: str
    expires_at: int
    actor: str
    audience: tuple[str, ...] = ()
    jti: str = ""
    entry_id: str = ""
    revision_number: int = 0


@dataclass(frozen=True, slots=True)
class CallRefused(AuditEvent):
    """A caller asked for something that is not its own."""

    event: ClassVar[str] = "refused"
    flushed: ClassVar[bool] = False
    method: str
    actor: str
    reason: str
    entry_id: str = ""
