"""What the Workload API and SDS need from whoever holds the identities (implemented by `node_agent.services`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.runtime.watch import Watch
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId
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
