"""What an upstream authority gives: certificates for our CA, and the keys of the trust domain it vouches for."""

from __future__ import annotations

from dataclasses import dataclass

from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.errors import InvalidBundle

MAX_CHAIN = 9
"""Our CA and its intermediates: with a leaf, the longest chain that verifiers take."""
MAX_ROOTS = 100
"""More trust anchors than any authority that is rotated with care has at one time."""


@dataclass(frozen=True, slots=True)
class UpstreamCa:
    """A CA certificate minted for us.

    `chain` holds DER certificates: ours first, then the intermediates above it, never a root. `roots` are the trust
    anchors in DER, at least one, each self-signed or to be trusted as if it were.

    Raises:
        InvalidBundle: the chain or the roots are empty, too many, or a root stands in the chain.
    """

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.chain) <= MAX_CHAIN:
            raise InvalidBundle(f"x509_ca_chain: must have 1 to {MAX_CHAIN} certificates", field="x509_ca_chain")
        if not 1 <= len(self.roots) <= MAX_ROOTS:
            raise InvalidBundle(
                f"upstream_x509_roots: must have 1 to {MAX_ROOTS} certificates", field="upstream_x509_roots"
            )
        if set(self.chain) & set(self.roots):
            raise InvalidBundle("x509_ca_chain: must not contain a root", field="x509_ca_chain")


@dataclass(frozen=True, slots=True)
class UpstreamView:
    """The trust domain's authorities as the upstream shows them now. Ours follow: added, tainted and withdrawn.

    `jwt_authorities` and `wit_authorities` stay empty where the upstream publishes no keys.
    """

    x509_authorities: tuple[X509Authority, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    wit_authorities: tuple[WitAuthority, ...] = ()
