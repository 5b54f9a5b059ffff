"""Chains as other authorities send them: unordered, with the root or without it, and with more than was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature

from identity_server.domain.upstream import MAX_CHAIN, UpstreamCa
from spiffe_core.crypto.certificates import CertificateFacts, read_certificate
from spiffe_core.errors import InvalidCertificate

MAX_CANDIDATES = 32
_FIELD = "ca_chain"


def ordered(certificate: bytes, others: Sequence[bytes]) -> UpstreamCa:
    """The chain from `certificate` upwards through `others`, and its top as the root.

    The top is self-signed, or the last certificate of which nothing above was sent: then that is what is to be trusted.
    `others` may hold the certificate itself and strangers; they are passed over. Dates and extensions are not judged.

    Raises:
        InvalidCertificate: one cannot be read, or none of them signed the certificate.
    """
    if len(others) > MAX_CANDIDATES:
        raise InvalidCertificate(f"{_FIELD}: has more than {MAX_CANDIDATES} certificates", field=_FIELD)
    path = [read_certificate(certificate, field="certificate")]
    left = [read_certificate(der, field=_FIELD) for der in dict.fromkeys(others) if der != certificate]
    while not (path[-1].self_issued and _signed(path[-1], path[-1])):
        above = next((one for one in left if one.subject == path[-1].issuer and _signed(path[-1], one)), None)
        if above is None:
            break
        left.remove(above)
        path.append(above)
    if not 1 < len(path) <= MAX_CHAIN + 1:
        raise InvalidCertificate(
            f"{_FIELD}: must lead from the certificate over at most {MAX_CHAIN} others to the one that is trusted",
            field=_FIELD,
        )
    return UpstreamCa(tuple(one.der for one in path[:-1]), (path[-1].der,))


def earliest_end_above(given: UpstreamCa) -> int:
    """When the first of those above the certificate ends, in unix seconds."""
    above = (*given.chain[1:], *given.roots)
    return int(min(read_certificate(der, field=_FIELD).not_after for der in above).timestamp())


def end_of(given: UpstreamCa) -> int:
    """When the certificate itself ends, in unix seconds."""
    return int(read_certificate(given.chain[0], field="certificate").not_after.timestamp())


def _signed(child: CertificateFacts, parent: CertificateFacts) -> bool:
    try:
        child.certificate.verify_directly_issued_by(parent.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
