"""What one message of the X.509 stream means to a workload, and the checks it passes before it is believed.

Pure: bytes and the time in, a value out. A message that breaks any rule is refused whole; a client then keeps what it
had (N-XW). Nothing of it is guessed or repaired, except that of two equal hints the first counts (WAPI-25).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from spiffe_core.bundle import BundleSet, TrustBundle, X509Authority
from spiffe_core.crypto.revocation import revocation_lists
from spiffe_core.errors import IdentityError, InvalidBundle, InvalidCertificate, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_svid import X509Svid
from spiffe_core.x509_verify import verify_x509_svid

MAX_SVIDS = 1000
MAX_BUNDLES = 1000
MAX_CERTIFICATES = 1000
_SEQUENCE = 0x30
_LONG = 0x80
_MAX_LENGTH_BYTES = 4


class ReceivedSvid(Protocol):
    """The fields of an X509SVID message."""

    spiffe_id: str
    x509_svid: bytes
    x509_svid_key: bytes
    bundle: bytes
    hint: str


@dataclass(frozen=True, slots=True)
class X509Context:
    """A workload's X.509 state, complete: what is absent here is not to be used any more (WAPI-13, WAPI-14).

    `svids` is not empty; the first is the default identity (WAPI-58).
    """

    svids: tuple[X509Svid, ...]
    bundles: BundleSet

    @property
    def default(self) -> X509Svid:
        """The identity to use when nobody says which."""
        return self.svids[0]

    def hinted(self, hint: str) -> X509Svid | None:
        """The identity with this hint, if there is one (WAPI-60)."""
        return next((svid for svid in self.svids if svid.hint == hint), None)


def x509_context(
    svids: Sequence[ReceivedSvid], federated: Mapping[str, bytes], now: datetime, crl: Sequence[bytes] = ()
) -> X509Context:
    """Read one X509SVIDResponse. `crl` are the lists by which *peers* are to be refused (none: nobody checks them).

    Raises:
        InvalidRequest, VerificationFailed: naming what is wrong; nothing of the message may be used.
    """
    # To use a message (Workload API sections 4 and 5) we must know that
    #   1. there is at least one SVID, and each has all mandatory fields
    #   2. each bundle is a concatenation of DER certificates, the same for SVIDs of the same trust domain
    #   3. each SVID is a leaf with its chain and its own key, and says the SPIFFE ID of its certificate
    #   4. federated bundles are filed under trust domain SPIFFE IDs, and none under an own one
    #   5. each SVID is valid now and chains to the bundle of its trust domain
    #   6. each revocation list that is to be checked can be read
    if not 0 < len(svids) <= MAX_SVIDS:  # (1)
        raise InvalidRequest(f"svids: must have 1 to {MAX_SVIDS} elements", field="svids")
    for number, svid in enumerate(svids):
        for name in ("spiffe_id", "x509_svid", "x509_svid_key", "bundle"):
            if not getattr(svid, name):
                raise InvalidRequest(f"svids[{number}].{name}: is mandatory", field=f"svids[{number}].{name}")
    own: dict[TrustDomain, TrustBundle] = {}
    read: dict[tuple[TrustDomain, bytes], TrustBundle] = {}
    loaded: list[X509Svid] = []
    hints: set[str] = set()
    for number, svid in enumerate(svids):
        field = f"svids[{number}]"
        spiffe_id = SpiffeId.parse(svid.spiffe_id, field=f"{field}.spiffe_id")
        known = (spiffe_id.trust_domain, svid.bundle)  # SVIDs repeat it; it is read once
        bundle = read.get(known) or read.setdefault(known, _bundle(*known, f"{field}.bundle"))  # (2)
        if own.setdefault(spiffe_id.trust_domain, bundle).x509_roots != bundle.x509_roots:
            raise InvalidBundle(f"{field}.bundle: differs from that of another SVID", field=f"{field}.bundle")
        loaded.append(_svid(svid, spiffe_id, "" if svid.hint in hints else svid.hint, field))  # (3)
        hints.add(svid.hint)
    bundles = _bundles(own, federated)  # (4)
    for checked in loaded:
        verify_x509_svid(checked.chain, bundles.get, now=now)  # (5)
    return X509Context(tuple(loaded), replace(bundles, revocations=revocation_lists(crl)))  # (6)


def x509_bundles(received: Mapping[str, bytes]) -> dict[TrustDomain, TrustBundle]:
    """Read the bundles of one X509BundlesResponse: complete, so what is absent is not to be trusted any more.

    Raises:
        InvalidRequest: there are none, or too many.
        InvalidBundle: a name is not that of a trust domain, or a bundle cannot be read; nothing of it may be used.
    """
    if not 0 < len(received) <= MAX_BUNDLES:
        raise InvalidRequest(f"bundles: must have 1 to {MAX_BUNDLES} elements", field="bundles")
    found: dict[TrustDomain, TrustBundle] = {}
    for key, data in received.items():
        name = SpiffeId.parse(key, field="bundles")
        if name.path:
            raise InvalidBundle("bundles: a key is not the SPIFFE ID of a trust domain", field="bundles")
        found[name.trust_domain] = _bundle(name.trust_domain, data, f"bundles[{key}]")
    return found


def split_der(data: bytes, *, field: str) -> tuple[bytes, ...]:
    """Cut concatenated DER into its elements. Only the outer lengths are read; DER's shortest form is demanded.

    Raises:
        InvalidCertificate: it is PEM, truncated, or not a row of DER sequences.
    """
    parts: list[bytes] = []
    start = 0
    while start < len(data):
        end = _end_of_element(data, start)
        if end is None or len(parts) == MAX_CERTIFICATES:
            raise InvalidCertificate(f"{field}: is not a row of up to {MAX_CERTIFICATES} DER certificates", field=field)
        parts.append(data[start:end])
        start = end
    return tuple(parts)


def _end_of_element(data: bytes, start: int) -> int | None:
    """Where the DER SEQUENCE that begins at `start` ends; None if none does."""
    head = data[start : start + 2 + _MAX_LENGTH_BYTES]
    if len(head) < 2 or head[0] != _SEQUENCE:  # noqa: PLR2004  # tag and first length byte
        return None
    length, size = head[1], 0
    if length >= _LONG:
        size = length - _LONG
        digits = head[2 : 2 + size]
        length = int.from_bytes(digits, "big")
        shortest = 0 < size <= _MAX_LENGTH_BYTES and len(digits) == size and digits[0] != 0 and length >= _LONG
        if not shortest:
            return None
    end = start + 2 + size + length
    return end if end <= len(data) else None


def _svid(received: ReceivedSvid, spiffe_id: SpiffeId, hint: str, field: str) -> X509Svid:
    chain = split_der(received.x509_svid, field=f"{field}.x509_svid")
    try:
        svid = X509Svid.load(chain, received.x509_svid_key, hint=hint)
    except IdentityError as error:
        raise InvalidCertificate(f"{field}: {error.public}", field=field) from None
    if svid.spiffe_id != spiffe_id:
        raise InvalidCertificate(
            f"{field}.spiffe_id: is not the SPIFFE ID of the certificate", field=f"{field}.spiffe_id"
        )
    return svid


def _bundle(trust_domain: TrustDomain, data: bytes, field: str) -> TrustBundle:
    try:
        return TrustBundle(trust_domain, tuple(X509Authority(der) for der in split_der(data, field=field)))
    except IdentityError as error:
        raise InvalidBundle(f"{field}: {error.public}", field=field) from None


def _bundles(own: Mapping[TrustDomain, TrustBundle], federated: Mapping[str, bytes]) -> BundleSet:
    """All bundles, each under its own trust domain. The first SVID's trust domain is this workload's own."""
    first, *others = own.values()
    foreign = {bundle.trust_domain: bundle for bundle in others}
    for key, data in federated.items():
        field = "federated_bundles"
        domain = SpiffeId.parse(key, field=field)
        if domain.path:
            raise InvalidBundle(f"{field}: a key is not the SPIFFE ID of a trust domain", field=field)
        if domain.trust_domain in own:
            raise InvalidBundle(f"{field}: {domain.trust_domain} is the own trust domain", field=field)
        foreign[domain.trust_domain] = _bundle(domain.trust_domain, data, f"{field}[{key}]")
    return BundleSet(first, foreign)
