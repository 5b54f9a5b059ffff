"""What `explain` is told, and what it answers: values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import Reason
from spiffe_core.explanation_codes import Code
from spiffe_core.selectors import Selector


class Outcome(enum.Enum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain. `details` are lines below it."""

    name: str
    outcome: Outcome
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole answer: `cause` is the first line, `fix` the last."""

    code: Code
    cause: str
    fix: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What one attestor said: selectors with notes, or an error."""

    name: str
    selectors: frozenset[Selector] = frozenset()
    notes: tuple[str, ...] = ()
    error: str = ""
    fix: str = ""
    """What would mend the error, if the attestor's own words do not say."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """How the agent stands. Ages are in seconds, None for never."""

    agent_id: str = ""
    unknown: bool = False
    """The server has no such agent; `why` is the id that looks most like it."""
    banned: bool = False
    member: bool = False
    why: str = ""
    waits_for: str = ""
    advice: str = ""
    """What the agent itself says has to be done, if it knows."""
    reason: Reason | None = None
    """The kind of `why`, where the agent did not believe its server or what it answered."""
    ready: bool = False
    pushed: bool = False
    position: str = ""
    synced_before: float | None = None
    sync_trouble: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """What is held for one entry: when its SVID ends, or why there is none ("" if it is on its way)."""

    ends: datetime | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How many entries match below other parents, one of these parents, and that entry if it may be shown."""

    count: int
    parent_id: str
    entry: RegistrationEntry | None = None
    why: str = ""
    """Why this agent is not among those below that parent, if that may be shown and is known."""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found about one workload. `process` is "" for one that is only thought of."""

    agent: AgentFacts
    process: str = ""
    no_process: str = ""
    container: str = ""
    """The container of a pod that is asked about, "" if none is."""
    asked: tuple[Asked, ...] = ()
    selectors: frozenset[Selector] | None = None
    """None if there are none, because attestation failed as a whole."""
    types: frozenset[str] = frozenset()
    """The types of selectors that this agent's attestors make."""
    entries: tuple[RegistrationEntry, ...] = ()
    """What the agent is authorised for."""
    node_names: tuple[str, ...] = ()
    """Names that entries give the agent itself, such as the one its join token was made with."""
    elsewhere: Elsewhere | None = None
    """Entries that match and are not this agent's."""
    signed: bool = True
    """Whether SVIDs are looked at; the server only tells who is entitled to one."""
    issues: Mapping[str, Issue] = field(default_factory=dict)
    """What is held for the entries, by id."""


@dataclass(frozen=True, slots=True)
class ContainerExplanation:
    """The answer about one container of a pod; `process` is the number of the process that was looked at, or 0."""

    name: str
    init: bool
    process: int
    explanation: Explanation
