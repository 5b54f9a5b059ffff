"""What the Workload API and SDS need from whoever holds the identities (implemented by `node_agent.services`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.jwt_svid import JwtSvid
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.peer import UnixPeer


@dataclass(frozen=True, slots=True)
class X509Identity:
    """One X509-SVID ready to hand out: DER certificates leaf first, unencrypted PKCS#8 key, hint ("" for none)."""

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    key: PrivateKeyDer
    hint: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """Everything one set of selectors is entitled to, complete: a stream message is made from exactly one of these.

    `x509_svids` is ordered (first = default identity); empty means no identity.
    `bundle` is the own trust domain's; `federated` are those the matching entries federate with, sorted by name.
    """

    x509_svids: tuple[X509Identity, ...]
    bundle: TrustBundle
    federated: tuple[TrustBundle, ...] = ()
    rendered: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    """Finished responses by RPC name, made once and shared by every stream on this view."""


@dataclass(frozen=True, slots=True)
class VisibleBundles:
    """The bundles one set of selectors may see now. `entitled`: at least one registration entry matches."""

    entitled: bool
    bundle: TrustBundle
    federated: tuple[TrustBundle, ...] = ()

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """The bundle of `trust_domain`, if it may be seen."""
        return next((one for one in (self.bundle, *self.federated) if one.trust_domain == trust_domain), None)


@dataclass(frozen=True, slots=True)
class WitIdentity:
    """One WIT-SVID ready to hand out, with the private key it confirms as a JWK in JSON (WAPI-51)."""

    spiffe_id: SpiffeId
    token: str = field(repr=False)
    key: str = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class WitView:
    """The WIT-SVIDs one set of selectors is entitled to, complete; empty means no identity."""

    wit_svids: tuple[WitIdentity, ...] = ()


class WorkloadBackend(Protocol):
    """Who is calling, and what they may have. All methods belong to the event loop's thread."""

    async def attest(self, peer: UnixPeer) -> frozenset[Selector]:
        """The caller's selectors, read from the kernel now.

        Raises:
            Unauthenticated: the process that connected is gone.
            Unavailable: every attestor failed, or the agent has not finished its first sync.
        """
        ...

    def subscribe(self, selectors: frozenset[Selector]) -> AbstractContextManager[Watch[WorkloadView | None]]:
        """Follow what `selectors` are entitled to.

        The watch holds None while it is not known yet (an SVID is still being fetched); a view with empty
        `x509_svids` means that nothing matches. Leaving the block ends the subscription.
        """
        ...

    def visible(self, selectors: frozenset[Selector]) -> VisibleBundles:
        """The bundles `selectors` may see, whether or not SVIDs are at hand."""
        ...


class JwtBackend(Protocol):
    """Where JWT-SVIDs come from. Belongs to the event loop's thread."""

    async def jwt_svids(
        self, selectors: frozenset[Selector], audience: tuple[str, ...], requested: SpiffeId | None
    ) -> tuple[JwtSvid, ...]:
        """One token for each identity `selectors` are entitled to, or for `requested` alone, default identity first.

        Raises:
            NoIdentityIssued: nothing matches, or not `requested`.
            Unavailable: the server cannot be reached, and no token is at hand that is good still.
        """
        ...


class WitBackend(Protocol):
    """Where WIT-SVIDs come from. Belongs to the event loop's thread."""

    def subscribe_wit(self, selectors: frozenset[Selector]) -> AbstractContextManager[Watch[WitView | None]]:
        """Follow the WIT-SVIDs `selectors` are entitled to; None while they are on their way."""
        ...
