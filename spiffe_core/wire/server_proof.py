"""Who the server at the other end of a TLS connection has proven to be, judged by the one that dialled.

OpenSSL proves the chain and leaves the dates to us: it cannot be told that a server's certificate may begin a little
after this machine's clock (R19).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.errors import OUT_OF_TIME, Reason, VerificationFailed
from spiffe_core.lifetime import CLOCK_SKEW
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.tls import TlsIdentity, client_context, verified_svid
from spiffe_core.x509_svid import spiffe_id_of
from spiffe_core.x509_verify import VerifiedX509Svid

log = logging.getLogger(__name__)

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL: dates are judged by `claimed_id`


@dataclass(frozen=True, slots=True)
class DialTrust:
    """Whom to believe: the one ID the server must have, and the bundles that prove it.

    `bundles` None is insecure bootstrap: the server's claim is compared, nothing proves it.
    """

    expected: SpiffeId
    bundles: Callable[[TrustDomain], TrustBundle | None] | None


def dial_context(trust: DialTrust, identity: TlsIdentity | None) -> ssl.SSLContext:
    """The context of a connection on which `identity` is shown.

    Raises:
        VerificationFailed: there is no bundle that could prove the server.
    """
    roots: tuple[bytes, ...] | None = None
    if trust.bundles is not None:
        bundle = trust.bundles(trust.expected.trust_domain)
        if bundle is None or not bundle.x509_roots:
            raise VerificationFailed(
                f"no trust bundle for {trust.expected.trust_domain}: the server cannot be verified", Reason.NO_BUNDLE
            )
        roots = bundle.x509_roots
    context = client_context(identity, roots)
    context.verify_flags |= _NO_CHECK_TIME
    return context


def claimed_id(tls: ssl.SSLObject, trust: DialTrust, now: datetime) -> SpiffeId:
    """The SPIFFE ID of the server after the handshake: proven, except in insecure bootstrap.

    Raises:
        VerificationFailed: it proves none; says why, and what to do.
    """
    if trust.bundles is None:
        der = tls.getpeercert(binary_form=True)
        return spiffe_id_of(read_certificate(der or b"", field="the server's certificate"))
    try:
        svid = _verified(tls, trust.bundles, now)
    except VerificationFailed as failure:
        if failure.reason in OUT_OF_TIME:
            raise VerificationFailed(
                f"the server is out of its time by this machine's clock ({now:%Y-%m-%dT%H:%M:%SZ}; "
                f"{failure.public}): compare the clocks of both machines",
                failure.reason,
            ) from None
        if failure.reason is not Reason.NO_BUNDLE:
            raise
        raise VerificationFailed(
            f"server and agent belong to different trust domains: {failure.public}. The agent's is "
            f"{trust.expected.trust_domain}; correct trust_domain, or server_address",
            Reason.OTHER_TRUST_DOMAIN,
        ) from None
    if svid is None:
        raise VerificationFailed("the server presented no certificate", Reason.EMPTY_CHAIN)
    return svid.spiffe_id


def _verified(
    tls: ssl.SSLObject, bundles: Callable[[TrustDomain], TrustBundle | None], now: datetime
) -> VerifiedX509Svid | None:
    """The server's SVID; one that begins soon is taken too: this machine's clock may be a little behind (R19)."""
    try:
        return verified_svid(tls, bundles, now=now, purpose="server")
    except VerificationFailed as failure:
        if failure.reason is not Reason.NOT_YET_VALID:
            raise
        svid = verified_svid(tls, bundles, now=now + CLOCK_SKEW, purpose="server")
        log.warning("this machine's clock (%s) is behind the server's: %s", f"{now:%H:%M:%SZ}", failure.public)
        return svid
