"""What OpenSSL says of a peer's certificate, as far as it is about dates."""

from __future__ import annotations

import ssl

from spiffe_core.errors import Reason

_DATES = {9: Reason.NOT_YET_VALID, 10: Reason.EXPIRED}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def dates_of(error: Exception) -> Reason | None:
    """What is the matter with the dates of certificates that a handshake did not believe; None if it is not they."""
    return _DATES.get(error.verify_code) if isinstance(error, ssl.SSLCertVerificationError) else None
