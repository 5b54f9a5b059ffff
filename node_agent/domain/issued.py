"""What the server's answer must prove before it is believed (reliability R42).

A wrong answer never replaces a good SVID: the caller keeps what it has and counts the refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.lifetime import CLOCK_SKEW
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_svid import X509Svid
from spiffe_core.x509_verify import verify_x509_svid


@dataclass(frozen=True, slots=True)
class Issued:
    """An SVID that proved itself, and the authorities it depends on.

    `anchor` is the DER of the root its chain ends in, `authority_ids` the lower-case hex key identifiers of every
    authority that signed a certificate of the chain: if one of them is tainted, the SVID is to be replaced.
    """

    svid: X509Svid
    anchor: bytes
    authority_ids: frozenset[str]


def check_issued(
    chain: Sequence[bytes],
    *,
    key: PrivateKeyDer,
    expected: Callable[[SpiffeId], bool],
    expected_text: str,
    bundle: TrustBundle,
    now: datetime,
) -> Issued:
    """Hold an answer against what was asked for.

    Raises:
        VerificationFailed, InvalidCertificate: naming what is wrong.
    """
    # To take a chain into use we must know that
    #   1. it is an X509-SVID and its key is the one we made
    #   2. it names the identity we asked for
    #   3. it is not expired by this machine's clock
    #   4. it begins no later than a small difference between two clocks allows
    #   5. it verifies with the trust bundle we hold, at a time inside its validity
    svid = X509Svid.load(tuple(chain), key)  # (1)
    if not expected(svid.spiffe_id):  # (2)
        raise VerificationFailed(
            f"the server issued a certificate for {svid.spiffe_id}, asked for was {expected_text}", Reason.UNEXPECTED_ID
        )
    if svid.not_after <= now:  # (3)
        raise VerificationFailed(
            f"the server issued a certificate that ended at {svid.not_after:%Y-%m-%dT%H:%M:%SZ} "
            f"by this machine's clock ({now:%Y-%m-%dT%H:%M:%SZ}): check both clocks",
            Reason.EXPIRED,
        )
    if svid.not_before > now + CLOCK_SKEW:  # (4)
        raise VerificationFailed(
            f"the server issued a certificate that begins at {svid.not_before:%Y-%m-%dT%H:%M:%SZ}, "
            f"this machine's clock says {now:%Y-%m-%dT%H:%M:%SZ}: check both clocks",
            Reason.NOT_YET_VALID,
        )

    def own_bundle(trust_domain: TrustDomain) -> TrustBundle | None:
        return bundle if trust_domain == bundle.trust_domain else None

    verified = verify_x509_svid(svid.chain, own_bundle, now=max(now, svid.not_before))  # (5)
    return Issued(svid, verified.anchor_der, authority_ids(svid.chain))


def authority_ids(chain: Sequence[bytes]) -> frozenset[str]:
    """The key identifiers of all that signed a certificate of `chain`."""
    identifiers = (read_certificate(der).authority_key_id for der in chain)
    return frozenset(identifier.hex() for identifier in identifiers if identifier is not None)


@dataclass(frozen=True, slots=True)
class SoundAuthorities:
    """What of a bundle an SVID may depend on: everything that is neither tainted nor gone."""

    roots: frozenset[bytes]
    tainted_ids: frozenset[str]

    @classmethod
    def of(cls, bundle: TrustBundle) -> SoundAuthorities:
        """Read a bundle once for many questions."""
        return cls(
            frozenset(one.der for one in bundle.x509_authorities if not one.tainted),
            frozenset(one.key_id for one in bundle.x509_authorities if one.tainted),
        )

    def carry(self, anchor: bytes, ids: frozenset[str]) -> bool:
        """Whether an SVID that ends in `anchor` and was signed by `ids` may be kept until its usual renewal."""
        return anchor in self.roots and not ids & self.tainted_ids
