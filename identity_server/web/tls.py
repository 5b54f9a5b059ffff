"""TLS towards strangers: Mozilla's "intermediate" profile (SPIFFE Federation section 5, conformance decision D16).

TLS 1.2 and 1.3, ECDHE with AEAD suites only, the client's order of suites, no client certificate asked for, nothing to
resume; for key exchange X25519, P-256, P-384 and the hybrid with ML-KEM (`runtime/openssl.py`). Each handshake gets the
newest certificate; connections that are open keep what they began with.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from spiffe_core.wire.tls import TlsIdentity, load_identity

_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""For TLS 1.2; the suites of TLS 1.3 are OpenSSL's own, all AEAD."""


class WebTls:
    """The context for the next handshake, made anew only when `identity` gives another object.

    `identity` raises an IdentityError while there is nothing to present: the connection is then closed.
    """

    def __init__(self, identity: Callable[[], TlsIdentity]) -> None:
        self._identity = identity
        self._made: tuple[TlsIdentity, ssl.SSLContext] | None = None

    def current(self) -> ssl.SSLContext:
        """The context that presents the newest identity."""
        identity = self._identity()
        if self._made is None or self._made[0] is not identity:
            self._made = (identity, web_context(identity, "http/1.1"))
        return self._made[1]


def web_context(identity: TlsIdentity, *protocols: str) -> ssl.SSLContext:
    """A context that presents `identity` and offers these protocols (ALPN)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.set_alpn_protocols(list(protocols))
    context.verify_mode = ssl.CERT_NONE
    context.num_tickets = 0
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    load_identity(context, identity)
    return context
