"""How a bundle endpoint is authenticated, by profile. Neither profile ever falls back to the other (Federation 7.2).

No client certificate is offered, whatever the endpoint asks for (Federation 5.2.1.3, 5.2.2.3), and TLS keys are never
logged, whatever the environment says.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import Unavailable, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire.tls import CIPHERS, client_context, presented_chain, verified_svid
from spiffe_core.x509_verify import verify_x509_svid

Trusted = Callable[[TrustDomain], TrustBundle | None]


def web_context(ca_file: Path | None) -> ssl.SSLContext:
    """https_web: the system's authorities (and those in `ca_file`), for the host's name (RFC 6125). May block.

    Raises:
        Unavailable: the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise Unavailable(
                f"federation.bundle_client.ca_file: {ca_file}: {error.strerror or 'holds no certificate in PEM'}"
            ) from None
    return context


def spiffe_context(expected: SpiffeId, trusted: Trusted) -> ssl.SSLContext:
    """https_spiffe: the authorities of the endpoint's own trust domain, whoever's bundle it serves (FED-39, FED-44).

    Raises:
        Unavailable: no bundle of that trust domain is stored, or it holds no X.509 authority.
    """
    bundle = trusted(expected.trust_domain)
    if bundle is None:
        raise Unavailable(
            f"the endpoint is to show {expected}, but no bundle of {expected.trust_domain} is stored to verify that "
            "with; set it with `bundle set`, or federate with that trust domain first"
        )
    if not bundle.x509_roots:
        raise Unavailable(
            f"the endpoint is to show {expected}, but the stored bundle of {expected.trust_domain} has no X.509 "
            "authority: nothing of that trust domain is believed; set its bundle with `bundle set`"
        )
    return _plain_http(client_context(None, bundle.x509_roots))


def require_svid(expected: SpiffeId, trusted: Trusted, now: Callable[[], datetime]) -> Callable[[ssl.SSLSocket], None]:
    """The check after the handshake: an X.509-SVID of the expected ID, by the bundle of its trust domain (FED-42)."""

    def check(tls: ssl.SSLSocket) -> None:
        try:
            svid = verified_svid(tls, trusted, now=now(), purpose="server")
            if svid is None:
                raise Unavailable(f"the endpoint shows no certificate; it must show the X.509-SVID {expected}")
            svid.require(expected)
        except VerificationFailed as refusal:
            raise _not_proven(expected, refusal) from None

    return check


def unverified_context() -> ssl.SSLContext:
    """For an endpoint whose trust domain's keys are only known by their fingerprints: judged after the handshake.

    Nothing is sent that anybody could misuse, and nothing that comes is believed before `require_pinned_svid`.
    """
    return _plain_http(client_context(None, None))


def chain_keeper(kept: list[list[bytes]]) -> Callable[[ssl.SSLSocket], None]:
    """A check that only keeps the chain the endpoint presented."""
    return lambda tls: kept.append(presented_chain(tls))


def require_pinned_svid(expected: SpiffeId, bundle: TrustBundle, chain: list[bytes], now: datetime) -> None:
    """Judge a kept chain by a bundle that was found to be the right one.

    Raises:
        Unavailable: it is not the SVID of the expected ID.
    """
    try:
        verify_x509_svid(
            chain, lambda name: bundle if name == bundle.trust_domain else None, now=now, purpose="server"
        ).require(expected)
    except VerificationFailed as refusal:
        raise _not_proven(expected, refusal) from None


def _plain_http(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["http/1.1"])
    return context


def _not_proven(expected: SpiffeId, refusal: VerificationFailed) -> Unavailable:
    return Unavailable(f"the endpoint did not prove to be {expected}: {refusal.public}")
