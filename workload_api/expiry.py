"""When the SVIDs of a view end, read from the certificates once per view."""

from __future__ import annotations

import struct

from cryptography import x509

from workload_api.backend import WorkloadView, X509Identity

_KEY = "expiries"


def expiries(view: WorkloadView) -> tuple[int, ...]:
    """When each SVID of `view` ends, in unix seconds."""
    packed = view.rendered.get(_KEY)
    if packed is None:
        packed = view.rendered[_KEY] = b"".join(struct.pack(">q", _end(svid)) for svid in view.x509_svids)
    return struct.unpack(f">{len(packed) // 8}q", packed)


def _end(svid: X509Identity) -> int:
    return int(x509.load_der_x509_certificate(svid.chain[0]).not_valid_after_utc.timestamp())
