"""What an agent must not lose over a restart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_svid import X509Svid


@dataclass(frozen=True, slots=True)
class NodeState:
    """The agent's own SVID with its renewal time, the bundle it believes, and a key whose attestation is under way.

    `pending_key` is stored before AttestAgent is sent: if the reply is lost, the attempt is repeated with the same key
    and the join token is not burnt (architecture A18).
    """

    trust_domain: TrustDomain
    svid: X509Svid | None = None
    renew_at: datetime | None = None
    reattestable: bool = False
    pending_key: PrivateKeyDer | None = None
    bundle: TrustBundle | None = None

    def bundle_of(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """The bundle that proves the server, for its own trust domain only."""
        return self.bundle if trust_domain == self.trust_domain else None


def without_keys(state: NodeState) -> NodeState:
    """What may stand on disk where keys live in memory alone: the agent attests anew in its next life."""
    return replace(state, svid=None, renew_at=None, pending_key=None)


def believing_both(believed: TrustBundle | None, configured: TrustBundle | None) -> TrustBundle | None:
    """What proves the server in a bootstrap: the bundle of the agent's last life, and the one the operator configured.

    An authority that is known to be tainted stays so.
    """
    if believed is None or configured is None:
        return believed or configured
    known = {one.der for one in believed.x509_authorities}
    more = tuple(one for one in configured.x509_authorities if one.der not in known)
    return replace(believed, x509_authorities=believed.x509_authorities + more)
