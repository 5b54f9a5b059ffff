"""The three attestation protocols and the one function that steps a dialogue.

A node *prover* runs in the agent, its *verifier* in the server; both sides of one protocol stand in one file.
A *workload attestor* runs in the agent and says what the kernel (or an orchestrator) knows of one process.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from spiffe_core.selectors import Selector


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the node must answer before it is believed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Attested:
    """What a verifier is willing to say about the node it spoke to.

    `agent_path` is the SPIFFE ID path, under `/spire/agent/<type>/`; `selectors` are node selectors.
    """

    agent_path: str
    selectors: frozenset[Selector]
    may_reattest: bool


Dialogue = Generator[Challenge, bytes, Attested]
"""Yields challenges, is sent the answers, returns the verdict, raises an IdentityError on refusal."""


@runtime_checkable
class NodeVerifier(Protocol):
    """The server's half of a node attestation protocol."""

    @property
    def name(self) -> str:
        """The attestation type on the wire."""
        ...

    def verify(self, payload: bytes, key_digest: bytes) -> Dialogue:
        """Begin a dialogue. `key_digest` is the SHA-256 of the CSR's SubjectPublicKeyInfo, for one-use credentials."""
        ...


@runtime_checkable
class PlacedNodeVerifier(NodeVerifier, Protocol):
    """A verifier that may also look at where the node is."""

    def verify_from(self, payload: bytes, key_digest: bytes, address: str) -> Dialogue:
        """As `verify`. `address` is the IP address of the immediate peer, "" if it has none."""
        ...


@runtime_checkable
class NodeProver(Protocol):
    """The agent's half of a node attestation protocol."""

    @property
    def name(self) -> str:
        """The attestation type on the wire."""
        ...

    def prove(self) -> Generator[bytes, bytes, None]:
        """Yield the payload first, then one answer for each challenge that is sent in."""
        ...


@dataclass(frozen=True, slots=True)
class Findings:
    """What one workload attestor found: selectors, and notes for people (`explain`), which hold no secrets."""

    selectors: frozenset[Selector]
    notes: tuple[str, ...] = field(default=())


class Subject(Protocol):
    """A process to be attested, held by a pidfd so that its number cannot be reused unnoticed."""

    @property
    def pid(self) -> int:
        """Its process number in this PID namespace."""
        ...

    @property
    def uid(self) -> int:
        """The effective user it connected as (SO_PEERCRED)."""
        ...

    @property
    def gid(self) -> int:
        """The effective group it connected as."""
        ...

    def require_alive(self) -> None:
        """Raise Unauthenticated if the process that connected has ended (checked through its pidfd)."""
        ...


@runtime_checkable
class WorkloadAttestor(Protocol):
    """Says what is known of one process. Runs on an Offload thread; may block until `deadline`."""

    @property
    def name(self) -> str:
        """The type of its selectors."""
        ...

    def attest(self, subject: Subject, deadline: float) -> Findings:
        """Read, check liveness again, answer. `deadline` is `time.monotonic()` seconds. Raises IdentityError."""
        ...


@runtime_checkable
class PromptAttestor(WorkloadAttestor, Protocol):
    """A workload attestor that often needs no thread."""

    def attest_at_once(self, subject: Subject) -> Findings | None:
        """The same reading as `attest`, on the loop, if nothing that a workload controls can keep it waiting.

        None if something may.
        """
        ...


@runtime_checkable
class SourcedAttestor(WorkloadAttestor, Protocol):
    """A workload attestor that asks somebody else, and knows how that went last."""

    @property
    def trouble(self) -> str:
        """Why whom it asks could not tell, and what to do; "" if they could, or were not asked yet. For any thread."""
        ...


@dataclass(frozen=True, slots=True)
class KubernetesObject:
    """An object of the cluster as a broker names it (SPIFFE Broker API section 3.1.3): by key, by `uid`, or by both.

    `group` is "core" for the core group; `namespace` is "" for what belongs to the cluster; `name` is "" without a key.
    """

    plural: str
    group: str
    namespace: str = ""
    name: str = ""
    uid: str = ""


@runtime_checkable
class ObjectAttestor(Protocol):
    """Says what is known of an object that somebody names. Runs on an Offload thread; may block until `deadline`."""

    def attest_object(self, wanted: KubernetesObject, deadline: float) -> Findings:
        """Look it up now. `deadline` is `time.monotonic()` seconds.

        Raises:
            InvalidRequest: objects of this kind cannot be looked up here.
            NotFound: there is no such object, or not with this UID.
            IdentityError: it could not be looked up.
        """
        ...


@dataclass(frozen=True, slots=True)
class PodContainer:
    """One container of a pod: what is said of it, and the numbers of its processes that can be seen from here."""

    name: str
    init: bool
    findings: Findings
    processes: tuple[int, ...] = ()


@runtime_checkable
class PodAttestor(WorkloadAttestor, Protocol):
    """A workload attestor that knows the pods of this node by name.

    Runs on an Offload thread, for people who ask why.
    """

    def attest_pod(self, namespace: str, name: str, deadline: float) -> tuple[PodContainer, ...]:
        """The containers of a pod, now. `deadline` is `time.monotonic()` seconds.

        Raises:
            NotFound: this node has no such pod; the text names one of a similar name.
            IdentityError: it could not be looked up.
        """
        ...


def advance(dialogue: Dialogue, answer: bytes | None = None) -> Challenge | Attested:
    """One step. `StopIteration` may not cross a thread boundary, so it is turned into a value here."""
    try:
        return next(dialogue) if answer is None else dialogue.send(answer)
    except StopIteration as stop:
        verdict: Attested = stop.value
        return verdict
