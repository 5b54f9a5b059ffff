"""What an upstream authority sends back is believed only if it is what was asked for, all of it checked.

The upstream is trusted to sign for the trust domain; it is not trusted to be free of faults. A certificate that
verifiers would refuse, or that says more than was asked for, would otherwise be found out by every workload at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity_server.domain.upstream import UpstreamCa
from spiffe_core.crypto.certificates import CertificateFacts, key_id_of, public_key_of, read_certificate
from spiffe_core.crypto.keys import PublicKey, check_public_key, spki_der
from spiffe_core.errors import InvalidCertificate, VerificationFailed
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_path

MIN_LIFE_SECONDS = 30
"""With less than this a new authority could not even be made known before it ends."""
MAX_KEY_ID_BYTES = 32
MAX_TOTAL_BYTES = 128 * 1024
"""The chain is sent with every leaf, the roots with every bundle."""

_LEAF_PURPOSES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_FIELD = "x509_ca_chain"


@dataclass(frozen=True, slots=True)
class MintedCa:
    """A CA certificate that was checked. `not_after` is the earliest end of its chain, root included."""

    chain: tuple[bytes, ...]
    """Ours first, then those above it, no root."""
    roots: tuple[bytes, ...]
    authority_id: str
    anchor_id: str
    """The id of the root in `roots` that the chain leads to."""
    not_after: int


def check_minted(given: UpstreamCa, public_key: PublicKey, trust_domain: TrustDomain, now: int) -> MintedCa:
    """Check a CA certificate made for `public_key` at `now`.

    Raises:
        InvalidCertificate: naming the rule that it breaks.
    """
    # To sign with the certificate we must know that
    #   1. all of it can be read, and is of a size that may be sent with every leaf
    #   2. its key is ours, and it has a subject key identifier that can be an authority ID
    #   3. its one URI SAN is the trust domain's own ID
    #   4. it and all above it are CAs that may sign certificates, for servers and clients
    #   5. the chain, all of it and in this order, leads to one of the roots: signatures, dates, strong keys, names
    #   6. the path lengths above allow it to be a CA
    #   7. it lives long enough to be used, and no longer than who signed it
    if sum(map(len, (*given.chain, *given.roots))) > MAX_TOTAL_BYTES:  # (1)
        raise _refusal(f"chain and roots have more than {MAX_TOTAL_BYTES} bytes")
    chain = [read_certificate(der, field=_FIELD) for der in given.chain]
    roots = [read_certificate(der, field="upstream_x509_roots") for der in given.roots]
    ours = chain[0]
    _check_ours(ours, public_key, trust_domain)  # (2) (3)
    path = _path(chain, roots, now)
    for one in path:  # (4)
        _check_authority(one)
    if [one.der for one in path[:-1]] != list(given.chain):  # (5)
        raise _refusal("the chain must lead from the certificate to a root, in order and without other certificates")
    if not room_below(path[1:]):  # (6)
        raise _refusal("a path length above the certificate does not allow it to be a CA")
    ends = [int(one.not_after.timestamp()) for one in path]
    if ends[0] - now < MIN_LIFE_SECONDS:  # (7)
        raise _refusal(
            f"the certificate ends in less than {MIN_LIFE_SECONDS} s; the upstream's own may be about to end"
        )
    if ends[0] > ends[1]:
        raise _refusal("the certificate ends after the one that signed it")
    return MintedCa(given.chain, given.roots, key_id_of(ours), key_id_of(path[-1]), min(ends))


def _check_ours(ours: CertificateFacts, public_key: PublicKey, trust_domain: TrustDomain) -> None:
    if spki_der(check_public_key(public_key_of(ours, field=_FIELD), field=_FIELD)) != spki_der(public_key):
        raise _refusal("the certificate is for another key than the one that was sent")
    if ours.subject_key_id is None or not 1 <= len(ours.subject_key_id) <= MAX_KEY_ID_BYTES:
        raise _refusal(f"the certificate needs a subject key identifier of 1 to {MAX_KEY_ID_BYTES} bytes")
    names = ours.alternative_names
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if uris != [str(trust_domain.id)]:
        raise _refusal(f"the certificate's one URI SAN must be {trust_domain.id}")
    if not ours.subject.rdns:
        raise _refusal("the certificate has no subject, so nothing it signs could name its issuer")


def room_below(path: Sequence[CertificateFacts]) -> bool:
    """Whether the path lengths of a chain (lowest CA first) allow one more CA below (RFC 5280 section 4.2.1.9)."""
    return all(
        limit is None or sum(not below.self_issued for below in path[:height]) < limit
        for height, limit in enumerate(map(_path_length, path))
    )


def _path(
    chain: Sequence[CertificateFacts], roots: Sequence[CertificateFacts], now: int
) -> tuple[CertificateFacts, ...]:
    try:
        return verify_path(chain[0], chain[1:], roots, now=datetime.fromtimestamp(now, UTC))
    except VerificationFailed as error:
        raise _refusal(f"the certificate does not lead to one of the roots: {error.public}") from None


def _check_authority(facts: CertificateFacts) -> None:
    usage = facts.key_usage
    if not facts.is_ca or usage is None or not usage.key_cert_sign:
        raise _refusal("every certificate must be a CA (basicConstraints CA:TRUE) with keyUsage keyCertSign")
    purposes = facts.extended_key_usage
    if purposes is not None and not (
        purposes >= _LEAF_PURPOSES or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in purposes
    ):
        raise _refusal("an extendedKeyUsage in the chain does not allow serverAuth and clientAuth")


def _path_length(facts: CertificateFacts) -> int | None:
    return facts.basic_constraints.path_length if facts.basic_constraints is not None else None


def _refusal(text: str) -> InvalidCertificate:
    return InvalidCertificate(f"{_FIELD}: {text}", field=_FIELD)
