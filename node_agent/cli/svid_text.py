"""X.509-SVIDs as a person reads them, and as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from spiffe_core.errors import InvalidCertificate
from spiffe_core.terminal.pem_files import PRIVATE, PUBLIC, certificates_pem, pem, split_der
from spiffe_core.terminal.printing import Row, print_block, span
from spiffe_core.wire._gen import workload_pb2

MAX_IDENTITIES: Final = 10_000
MAX_CERTIFICATES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Identity:
    """One X.509-SVID of a response, its certificates taken apart."""

    spiffe_id: str
    hint: str
    chain: tuple[bytes, ...]
    bundle: tuple[bytes, ...]
    federated: tuple[tuple[str, tuple[bytes, ...]], ...]
    key: bytes = field(repr=False)


def read(response: workload_pb2.X509SVIDResponse) -> list[Identity]:
    """The identities in a response, federated bundles in the order of their names.

    Raises:
        InvalidCertificate: something in it is not certificates.
    """
    if len(response.svids) > MAX_IDENTITIES:
        raise InvalidCertificate(f"svids: more than {MAX_IDENTITIES} in one response", field="svids")
    federated = tuple(
        (name, _certificates(response.federated_bundles[name], f"federated_bundles[{name}]"))
        for name in sorted(response.federated_bundles)
    )
    return [
        Identity(
            spiffe_id=svid.spiffe_id,
            hint=svid.hint,
            chain=_certificates(svid.x509_svid, f"svids[{index}].x509_svid"),
            bundle=_certificates(svid.bundle, f"svids[{index}].bundle"),
            federated=federated,
            key=svid.x509_svid_key,
        )
        for index, svid in enumerate(response.svids)
    ]


def _certificates(data: bytes, place: str) -> tuple[bytes, ...]:
    certificates = tuple(split_der(data, field=place))
    if not certificates:
        raise InvalidCertificate(f"{place}: is empty", field=place)
    if len(certificates) > MAX_CERTIFICATES:
        raise InvalidCertificate(f"{place}: holds more than {MAX_CERTIFICATES} certificates", field=place)
    return certificates


def without_keys(response: workload_pb2.X509SVIDResponse) -> workload_pb2.X509SVIDResponse:
    """A copy for printing: what is on a screen is in somebody's scroll-back."""
    copy = workload_pb2.X509SVIDResponse()
    copy.CopyFrom(response)
    for svid in copy.svids:
        svid.ClearField("x509_svid_key")
    return copy


def files(identities: Sequence[Identity]) -> dict[str, tuple[str, int]]:
    """The files that SPIRE's CLI writes: name to text and mode."""
    found: dict[str, tuple[str, int]] = {}
    for number, identity in enumerate(identities):
        found[f"svid.{number}.pem"] = (certificates_pem(identity.chain), PUBLIC)
        found[f"svid.{number}.key"] = (pem("PRIVATE KEY", identity.key), PRIVATE)
        found[f"bundle.{number}.pem"] = (certificates_pem(identity.bundle), PUBLIC)
        for other, (_, bundle) in enumerate(identity.federated):
            found[f"federated_bundle.{number}.{other}.pem"] = (certificates_pem(bundle), PUBLIC)
    return found


def show(identities: Sequence[Identity], now: datetime) -> None:
    """Print each identity: who, until when, and by whose authority."""
    for identity in identities:
        print_block(_block(identity, now))


def _block(identity: Identity, now: datetime) -> list[Row]:
    leaf = _parsed(identity.chain[0])
    rows: list[Row] = [("SPIFFE ID", identity.spiffe_id)]
    if identity.hint:
        rows.append(("Hint", identity.hint))
    rows += [
        ("SVID valid after", _utc(leaf.not_valid_before_utc)),
        ("SVID valid until", _until(leaf, now)),
    ]
    for number, der in enumerate(identity.chain[1:], start=1):
        rows.append((f"Intermediate #{number}", f"{_subject(_parsed(der))}, until {_until(_parsed(der), now)}"))
    for number, der in enumerate(identity.bundle, start=1):
        rows.append((f"CA #{number}", f"{_subject(_parsed(der))}, until {_until(_parsed(der), now)}"))
    rows += [("Federated with", f"{name} ({len(bundle)} CA)") for name, bundle in identity.federated]
    return rows


def _parsed(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise InvalidCertificate("the agent sent a certificate that cannot be read", field="svids") from None


def _subject(certificate: x509.Certificate) -> str:
    names = {NameOID.SERIAL_NUMBER: "serialNumber"}
    return certificate.subject.rfc4514_string(names) or "(no subject)"


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _until(certificate: x509.Certificate, now: datetime) -> str:
    end = certificate.not_valid_after_utc
    left = f"{span(end - now)} left" if end > now else "EXPIRED"
    return f"{_utc(end)} ({left})"
