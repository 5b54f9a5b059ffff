"""A mutual TLS handshake in memory, with the contexts that front door and dialer use: would our own TLS believe this?

It answers for the TLS library of this process, which no version number does: libraries are patched, configured and
exchanged. Nothing leaves the process.
"""

from __future__ import annotations

import ssl
from datetime import datetime

from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.wire.tls import TlsIdentity, client_context, server_context, verified_svid

MAX_TURNS = 16
"""A handshake takes four; what takes more will not end."""


def rehearse(identity: TlsIdentity, bundle: TrustBundle, *, now: datetime) -> None:
    """Let `identity` shake hands with itself, each side believing `bundle` alone.

    Raises:
        VerificationFailed: a side did not believe the other; the message is the library's.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client = client_context(identity, bundle.x509_roots).wrap_bio(to_client, to_server)
        server = server_context(identity, bundle.x509_roots).wrap_bio(to_server, to_client, server_side=True)
        waiting = [client, server]
        for _ in range(MAX_TURNS):
            waiting = [side for side in waiting if not _advance(side)]
            if not waiting:
                break
        else:
            raise VerificationFailed("the handshake does not end", Reason.MALFORMED)
    except ssl.SSLError as error:
        said = getattr(error, "verify_message", "") or error.reason or str(error)
        raise VerificationFailed(f"{ssl.OPENSSL_VERSION} says: {said}", Reason.UNKNOWN_AUTHORITY) from error
    bundles = {bundle.trust_domain: bundle}.get
    for side, purpose in ((client, "server"), (server, "client")):
        if verified_svid(side, bundles, now=now, purpose="server" if purpose == "server" else "client") is None:
            raise VerificationFailed(f"the {purpose} presented no certificate", Reason.EMPTY_CHAIN)


def _advance(side: ssl.SSLObject) -> bool:
    """Whether this side is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
