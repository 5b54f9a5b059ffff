"""What the services need of the world, named for the role it plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from attestors.api import NodeProver
from node_agent.domain.entry_cache import Listing, Stamp
from node_agent.domain.node_state import NodeState
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wit_svid import WitSvid


class ServerUnproven(Unavailable):
    """Whoever answers as the server is proven by no authority believed here: not the server, or a new authority."""


class TurnedAway(Unavailable):
    """The server is proven, and ends every connection that shows this agent's SVID before it says a word."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The server's answer to a successful attestation. `bundle` is None when it could not be fetched afterwards."""

    chain: tuple[bytes, ...]
    reattestable: bool
    bundle: TrustBundle | None


class Enrolment(Protocol):
    """How an agent becomes and stays a member. Errors are IdentityErrors; AgentRefused carries SPIRE's reason."""

    async def attest(self, prover: NodeProver, csr: bytes) -> Enrolled:
        """Prove what this node is, without presenting a certificate, and read the bundle over the same connection."""
        ...

    async def renew(self, csr: bytes) -> tuple[bytes, ...]:
        """A new chain for the agent's own SVID, authenticated by the present one."""
        ...

    async def identity_changed(self) -> None:
        """Let later calls present the agent's newest SVID."""
        ...


@dataclass(frozen=True, slots=True)
class SvidRequest:
    """One workload SVID wanted."""

    entry_id: str
    csr: bytes


SvidAnswer = tuple[bytes, ...] | IdentityError
"""The chain, leaf first, or why there is none."""


@dataclass(frozen=True, slots=True)
class WitRequest:
    """One WIT-SVID wanted, for a public key as SubjectPublicKeyInfo in DER."""

    entry_id: str
    public_key: bytes
    algorithm: str


WitAnswer = WitSvid | IdentityError
"""The token, or why there is none."""


class IdentityServer(Protocol):
    """What a member asks its server. Errors are IdentityErrors; AgentRefused carries SPIRE's reason."""

    async def sync_entries(self, known: Mapping[str, Stamp]) -> Listing:
        """The entries this agent may act for; only those that differ from `known` need be in full."""
        ...

    async def fetch_bundle(self) -> TrustBundle:
        """The trust domain's own bundle."""
        ...

    async def fetch_federated_bundle(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """A federated trust domain's bundle; None when the server has none."""
        ...

    async def issue_svids(self, requests: Sequence[SvidRequest]) -> list[SvidAnswer]:
        """One answer for each request (at most 500), in order. Raises when the call failed as a whole."""
        ...

    async def new_jwt_svid(self, entry_id: str, audience: Sequence[str]) -> JwtSvid:
        """A token for one entry. What it says has not been verified yet."""
        ...

    async def issue_wits(self, requests: Sequence[WitRequest]) -> list[WitAnswer]:
        """One answer for each request (at most 500), in order. Raises when the call failed as a whole."""
        ...

    async def elsewhere(self, selectors: frozenset[Selector]) -> tuple[int, str]:
        """How many entries match these selectors and are not this agent's, and below which parent one stands."""
        ...

    async def post_status(self, version: str, bundle_sequence: int) -> None:
        """Tell the server which software this is."""
        ...


class StateStore(Protocol):
    """Where the state stands between two lives of the agent. Blocking: called on an Offload thread."""

    def save(self, state: NodeState) -> None:
        """Replace what stands there, atomically and durably."""
        ...

    def clear(self) -> None:
        """Delete it, keys and all."""
        ...


class Credentials(Protocol):
    """The evidence the operator gave this node."""

    advice: str
    """What the operator should do when the evidence is missing or was refused."""
    one_use: bool
    """Whether evidence that was accepted or refused once is never judged differently, so that only other helps."""

    def fingerprint(self) -> str:
        """Differs whenever the evidence does; "" when there is none. Reveals nothing of it."""
        ...

    def prover(self) -> NodeProver:
        """The agent's half of the attestation protocol.

        Raises:
            PreconditionFailed: there is no evidence.
        """
        ...


class FirstContact(Protocol):
    """What proves the server to an agent that knows nothing yet, as the operator configured it."""

    async def bundle(self) -> TrustBundle | None:
        """Read anew; None where nothing is configured.

        Raises:
            ConfigError, Unavailable: it cannot be read; the message names the path or the host.
        """
        ...
