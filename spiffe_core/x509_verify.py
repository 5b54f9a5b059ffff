"""Path validation of X509-SVIDs: RFC 5280 section 6 as far as SPIFFE uses it, with every bound stated.

Only the bundle of the SPIFFE ID's own trust domain counts, whatever else is loaded (X509-SVID section 5, SPIFFE-ID
section 3). SVIDs are short-lived, and a revoked authority leaves the bundle: revocation lists are looked at only where
the caller passes some.

Choices where the standard leaves one: a leaf needs a critical keyUsage with digitalSignature; an extendedKeyUsage, in
the leaf or a CA, must allow the purpose; anchors must be valid themselves; an empty subject with a non-critical SAN is
accepted with a note, and so is a CA that names another trust domain unless `same_domain_cas` is set; the keyUsage of a
CA need not be critical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.algorithms import signature_allowed
from spiffe_core.crypto.certificates import (
    MAX_CERTIFICATE_BYTES,
    CertificateFacts,
    public_key_of,
    read_certificate,
)
from spiffe_core.crypto.keys import AuthorityPublicKey, check_authority_key, check_verification_key, spki_der
from spiffe_core.crypto.name_constraints import violation
from spiffe_core.crypto.revocation import RevocationList
from spiffe_core.errors import InvalidCertificate, Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_svid import MAX_CHAIN, check_leaf_facts

MAX_NAMES = 600
"""Subject alternative names in one certificate."""
MAX_SIGNATURE_CHECKS = 64
"""Signatures checked for one chain, however the presented certificates are named."""

MAX_UNLIKELY_ISSUERS = 8
"""Authorities of the right name that are tried although the certificate names another key."""

Purpose: TypeAlias = Literal["client", "server"]

_PURPOSES: dict[Purpose | None, frozenset[ObjectIdentifier]] = {
    "client": frozenset({ExtendedKeyUsageOID.CLIENT_AUTH}),
    "server": frozenset({ExtendedKeyUsageOID.SERVER_AUTH}),
    None: frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
}
_ANY = frozenset({ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


@dataclass(frozen=True, slots=True)
class VerifiedX509Svid:
    """A chain that was believed. `not_after` is the earliest end on the path; `notes` are for the log."""

    spiffe_id: SpiffeId
    leaf_der: bytes = field(repr=False)
    anchor_der: bytes = field(repr=False)
    not_after: datetime
    notes: tuple[str, ...] = ()

    def require(self, expected: SpiffeId) -> None:
        """Authorise exactly one peer: the chain is good, the question is whether it is the right one.

        Raises:
            VerificationFailed: UNEXPECTED_ID.
        """
        if self.spiffe_id != expected:
            raise VerificationFailed(f"the peer is {self.spiffe_id}, expected {expected}", Reason.UNEXPECTED_ID)


def verify_x509_svid(
    chain: Sequence[bytes],
    bundles: Callable[[TrustDomain], TrustBundle | None],
    *,
    now: datetime,
    purpose: Purpose | None = None,
    same_domain_cas: bool = False,
    revocations: Sequence[RevocationList] = (),
) -> VerifiedX509Svid:
    """Decide whether `chain` (DER, leaf first) proves a SPIFFE ID at `now`.

    `purpose` is the role the peer plays in TLS; None asks that it may play either.

    Raises:
        VerificationFailed: with the reason.
    """
    # To believe a chain (X509-SVID section 5, RFC 5280 section 6) we must know that
    #   1. there is a leaf, and the chain has a size that is worth reading
    #   2. every certificate is strict DER and has a countable number of names
    #   3. the first is a leaf by SPIFFE's rules, with one SPIFFE ID
    #   4. the leaf is valid now, has no critical extension we do not know, and may play its role
    #   5. there is a bundle for the ID's own trust domain, with at least one authority
    #   6. a path of CA certificates leads from the leaf to an authority of that bundle; of each CA we must know that
    #      a. its key and the signature algorithm are strong enough, and the signature below it is good
    #      b. it is a CA that may sign certificates, with no critical extension we do not know
    #      c. it is valid now, anchors included
    #      d. its extendedKeyUsage, if any, allows the role
    #      e. its path length allows the CAs below it
    #      f. it lists the certificate below it in none of `revocations`
    #   7. no CA on the path excludes, or fails to permit, a name below it
    # The caller still decides whether it wants to talk to this ID.
    if not chain:  # (1)
        raise VerificationFailed("no certificate was presented", Reason.EMPTY_CHAIN)
    if len(chain) > MAX_CHAIN or any(len(der) > MAX_CERTIFICATE_BYTES for der in chain):
        raise VerificationFailed(
            f"at most {MAX_CHAIN} certificates of {MAX_CERTIFICATE_BYTES} bytes are read", Reason.TOO_LARGE
        )
    presented = [_read(der) for der in chain]  # (2)
    leaf = presented[0]
    spiffe_id = check_leaf_facts(leaf)  # (3)
    _check_extensions(leaf)  # (4)
    _check_dates(leaf, now)
    _check_purpose(leaf, _PURPOSES[purpose])
    _check_key(leaf)
    bundle = bundles(spiffe_id.trust_domain)  # (5)
    if bundle is None or bundle.trust_domain != spiffe_id.trust_domain:
        raise VerificationFailed(
            f"no trust bundle for {spiffe_id.trust_domain} is loaded: the other side belongs to a different trust "
            "domain that is not federated with",
            Reason.NO_BUNDLE,
        )
    if not bundle.x509_authorities:
        raise VerificationFailed(
            f"the trust bundle of {spiffe_id.trust_domain} has no X.509 authority", Reason.EMPTY_BUNDLE
        )
    anchors = [authority.facts for authority in bundle.x509_authorities]
    search = _PathSearch(anchors, presented[1:], now, _PURPOSES[purpose], revocations)
    path = search.run(leaf)  # (6) and (7)
    notes = _notes(path, spiffe_id.trust_domain)
    if same_domain_cas and (foreign := [note for note in notes if note.startswith("CA")]):
        raise VerificationFailed(foreign[0], Reason.BAD_CA)
    return VerifiedX509Svid(
        spiffe_id, leaf.der, path[-1].der, min(certificate.not_after for certificate in path), notes
    )


def verify_path(
    leaf: CertificateFacts,
    intermediates: Sequence[CertificateFacts],
    anchors: Sequence[CertificateFacts],
    *,
    now: datetime,
) -> tuple[CertificateFacts, ...]:
    """The path from a certificate of any PKI to one of `anchors`, leaf first: steps 4, 6 and 7 without SPIFFE's rules.

    Any purpose is accepted, and so is a CA without keyUsage, which CAs made outside often lack.

    Raises:
        VerificationFailed: with the reason.
    """
    _check_extensions(leaf)
    _check_dates(leaf, now)
    _check_key(leaf)
    return _PathSearch(anchors, intermediates, now, None).run(leaf)


class _PathSearch:
    """A depth-first search from the leaf to an anchor, with a budget of signature checks.

    `purposes` None is for certificates outside SPIFFE: extendedKeyUsage is not looked at and keyUsage may be absent.
    """

    def __init__(
        self,
        anchors: Sequence[CertificateFacts],
        intermediates: Sequence[CertificateFacts],
        now: datetime,
        purposes: frozenset[ObjectIdentifier] | None,
        revocations: Sequence[RevocationList] = (),
    ) -> None:
        self._anchors = anchors
        self._trusted = frozenset(anchor.der for anchor in anchors)
        self._intermediates = [one for one in intermediates if one.der not in self._trusted]
        self._now = now
        self._purposes = purposes
        self._revocations = revocations
        self._checks = 0
        self._failure = VerificationFailed(
            "no authority of the trust domain's bundle has signed the chain", Reason.UNKNOWN_AUTHORITY
        )

    def run(self, leaf: CertificateFacts) -> tuple[CertificateFacts, ...]:
        """The path, leaf first and anchor last; raises the most telling failure if there is none."""
        path = self._extend((leaf,))
        if path is None:
            raise self._failure
        return path

    def _extend(self, path: tuple[CertificateFacts, ...]) -> tuple[CertificateFacts, ...] | None:
        for issuer in self._candidates(path):
            longer = (*path, issuer)
            try:
                self._check_issuer(path, issuer)
                if issuer.der in self._trusted:
                    _check_constraints(longer)
                    return longer
            except VerificationFailed as failure:
                if failure.reason is Reason.TOO_LARGE:
                    raise
                self._remember(failure)
                continue
            if (complete := self._extend(longer)) is not None:
                return complete
        return None

    def _candidates(self, path: tuple[CertificateFacts, ...]) -> Iterator[CertificateFacts]:
        """Possible issuers by name, anchors first, those whose key identifier fits before those it contradicts.

        Of the latter only a few are tried: in a bundle of many authorities of one name all but one are of that sort.
        """
        child = path[-1]
        used = {certificate.der for certificate in path[1:]}
        further = (one for one in self._intermediates if one.der not in used) if len(path) < MAX_CHAIN else ()
        unlikely: list[CertificateFacts] = []
        for issuer in (*self._anchors, *further):
            if not _contradicts(child, issuer):
                if issuer.subject == child.issuer:
                    yield issuer
            elif len(unlikely) < MAX_UNLIKELY_ISSUERS and issuer.subject == child.issuer:
                unlikely.append(issuer)
        yield from unlikely

    def _check_issuer(self, path: tuple[CertificateFacts, ...], issuer: CertificateFacts) -> None:
        key = _check_key(issuer, signs=True)  # (6a)
        child = path[-1]
        if not signature_allowed(child.certificate, key):
            raise VerificationFailed(
                f"the signature algorithm {child.certificate.signature_algorithm_oid.dotted_string} is not allowed",
                Reason.WEAK_ALGORITHM,
            )
        self._checks += 1
        if self._checks > MAX_SIGNATURE_CHECKS:
            raise VerificationFailed("the chain offers too many paths to try", Reason.TOO_LARGE)
        try:
            child.certificate.verify_directly_issued_by(issuer.certificate)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            if _contradicts(child, issuer):
                raise VerificationFailed("another key of the same name", Reason.UNKNOWN_AUTHORITY) from None
            raise VerificationFailed("a signature in the chain is wrong", Reason.BAD_SIGNATURE) from None
        usage = issuer.key_usage  # (6b)
        may_sign = self._purposes is None if usage is None else usage.key_cert_sign
        if not issuer.is_ca or not may_sign:
            raise VerificationFailed("a certificate in the chain is not a CA that may sign", Reason.BAD_CA)
        _check_extensions(issuer)
        _check_dates(issuer, self._now)  # (6c)
        if self._purposes is not None:
            _check_purpose(issuer, self._purposes | _ANY)  # (6d)
        limit = issuer.basic_constraints.path_length if issuer.basic_constraints is not None else None  # (6e)
        if limit is not None and sum(not below.self_issued for below in path[1:]) > limit:
            raise VerificationFailed("a CA's path length constraint is exceeded", Reason.PATH_TOO_LONG)
        if any(one.revokes(child, issuer, key) for one in self._revocations):  # (6f)
            raise VerificationFailed("a certificate stands in its issuer's revocation list", Reason.REVOKED)

    def _remember(self, failure: VerificationFailed) -> None:
        """Keep what tells most: a fault behind a good signature before a bad signature before an unknown name."""
        if _weight(failure) > _weight(self._failure):
            self._failure = failure


def _weight(failure: VerificationFailed) -> int:
    return {Reason.UNKNOWN_AUTHORITY: 0, Reason.BAD_SIGNATURE: 1}.get(failure.reason, 2)


def _contradicts(child: CertificateFacts, issuer: CertificateFacts) -> bool:
    """Whether the child names another issuing key than this one; a self-issued one names its own by default."""
    wanted, has = child.authority_key_id, issuer.subject_key_id
    if wanted is None and child.self_issued:
        wanted = child.subject_key_id
    return wanted is not None and has is not None and wanted != has


def _read(der: bytes) -> CertificateFacts:
    try:
        facts = read_certificate(der)
    except InvalidCertificate as refusal:
        raise VerificationFailed(refusal.public, Reason.MALFORMED) from None
    if facts.alternative_names is not None and len(facts.alternative_names) > MAX_NAMES:
        raise VerificationFailed(f"a certificate has more than {MAX_NAMES} alternative names", Reason.TOO_LARGE)
    return facts


def _check_extensions(facts: CertificateFacts) -> None:
    if facts.unknown_critical:
        raise VerificationFailed(
            f"the critical extension {facts.unknown_critical[0]} is not understood", Reason.UNKNOWN_CRITICAL
        )


def _check_dates(facts: CertificateFacts, now: datetime) -> None:
    if now < facts.not_before:
        raise VerificationFailed(f"a certificate is valid only from {facts.not_before}", Reason.NOT_YET_VALID)
    if now > facts.not_after:
        raise VerificationFailed(f"a certificate expired at {facts.not_after}", Reason.EXPIRED)


def _check_purpose(facts: CertificateFacts, purposes: frozenset[ObjectIdentifier]) -> None:
    if facts.extended_key_usage is not None and not facts.extended_key_usage & purposes:
        raise VerificationFailed("the extendedKeyUsage does not allow this use", Reason.EXTENDED_KEY_USAGE)


def _check_key(facts: CertificateFacts, *, signs: bool = False) -> AuthorityPublicKey:
    """The key of a certificate, held to the policy for leaves or for those that sign certificates."""
    policy = check_authority_key if signs else check_verification_key
    try:
        key = policy(public_key_of(facts), field="certificate")
    except InvalidCertificate as refusal:
        raise VerificationFailed(refusal.public, Reason.WEAK_ALGORITHM) from None
    if isinstance(key, ec.EllipticCurvePublicKey) and spki_der(key) not in facts.certificate.tbs_certificate_bytes:
        raise VerificationFailed(  # RFC 5480 section 2.1.1; CVE-2020-0601 is what the long form can lead to
            "certificate: an EC key must name its curve and be uncompressed", Reason.WEAK_ALGORITHM
        )
    return key


def _check_constraints(path: tuple[CertificateFacts, ...]) -> None:  # (7)
    for height in range(1, len(path)):
        constraints = path[height].name_constraints
        if constraints is None:
            continue
        for depth, below in enumerate(path[:height]):
            if depth and below.self_issued:
                continue  # RFC 5280 section 6.1.3 (b): self-issued certificates in the middle are exempt
            if broken := violation(constraints, below):
                raise VerificationFailed(f"name constraints: {broken}", Reason.NAME_CONSTRAINT)


def _notes(path: tuple[CertificateFacts, ...], trust_domain: TrustDomain) -> tuple[str, ...]:
    notes = []
    if not path[0].subject.rdns and not path[0].alternative_names_critical:
        notes.append("leaf: the subject is empty and the SAN not critical (X509-SVID 3.1)")
    for authority in path[1:]:
        names = authority.alternative_names
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else ():
            host = uri.removeprefix("spiffe://").partition("/")[0]
            if uri.startswith("spiffe://") and host != trust_domain.name:
                notes.append(f"CA: carries a SPIFFE ID of another trust domain than {trust_domain} (X509-SVID 3.2)")
    return tuple(notes)
