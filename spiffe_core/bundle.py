"""Trust bundles: the public keys by which one trust domain's SVIDs are verified.

A bundle is a value. A change gives a new bundle with a larger sequence number; a change that changes nothing gives the
same object. Bundles of different trust domains are never merged (SPIFFE Federation section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from immutables import Map

from spiffe_core.crypto.certificates import CertificateFacts, key_id_of, read_certificate
from spiffe_core.crypto.keys import PublicKey, from_spki
from spiffe_core.crypto.revocation import RevocationList
from spiffe_core.errors import InvalidBundle
from spiffe_core.spiffe_id import TrustDomain

MAX_SEQUENCE = 2**64 - 1
MAX_REFRESH_HINT = 2**31 - 1
MAX_AUTHORITIES = 1000
MAX_KEY_ID_BYTES = 1024
MAX_INT64 = 2**63 - 1

DEFAULT_POLL = timedelta(minutes=5)
MIN_POLL = timedelta(minutes=1)
MAX_POLL = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class X509Authority:
    """One X.509 CA certificate. A tainted authority still verifies, but nothing may be signed or renewed with it."""

    der: bytes = field(repr=False)
    tainted: bool = False
    facts: CertificateFacts = field(init=False, compare=False, repr=False)
    key_id: str = field(init=False, compare=False)
    """The subject key identifier in lower-case hex: SPIRE's authority ID."""

    def __post_init__(self) -> None:
        facts = read_certificate(self.der, field="x509_authorities")
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "key_id", key_id_of(facts))

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return self.facts.certificate

    @property
    def not_after(self) -> datetime:
        """The last moment of validity, UTC."""
        return self.facts.not_after


@dataclass(frozen=True, slots=True)
class _TokenAuthority:
    """A public key that verifies tokens: SubjectPublicKeyInfo DER under a key ID. `expires_at` 0 means unknown."""

    key_id: str
    public_key: bytes = field(repr=False)
    expires_at: int = 0
    tainted: bool = False
    key: PublicKey = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.key_id or len(self.key_id.encode(errors="replace")) > MAX_KEY_ID_BYTES:
            raise InvalidBundle(f"key_id: must have 1 to {MAX_KEY_ID_BYTES} bytes", field="key_id")
        if not 0 <= self.expires_at <= MAX_INT64:
            raise InvalidBundle("expires_at: must be unix seconds, or 0 for unknown", field="expires_at")
        object.__setattr__(self, "key", from_spki(self.public_key))


@dataclass(frozen=True, slots=True)
class JwtAuthority(_TokenAuthority):
    """A key that verifies JWT-SVIDs."""


@dataclass(frozen=True, slots=True)
class WitAuthority(_TokenAuthority):
    """A key that verifies WIT-SVIDs."""


_Token = TypeVar("_Token", JwtAuthority, WitAuthority)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """One trust domain's authorities. `refresh_hint` is in seconds, 0 for none; `sequence` only grows."""

    trust_domain: TrustDomain
    x509_authorities: tuple[X509Authority, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    wit_authorities: tuple[WitAuthority, ...] = ()
    sequence: int = 0
    refresh_hint: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sequence <= MAX_SEQUENCE:
            raise InvalidBundle(f"sequence: must lie between 0 and {MAX_SEQUENCE}", field="sequence")
        if not 0 <= self.refresh_hint <= MAX_REFRESH_HINT:
            raise InvalidBundle(f"refresh_hint: must lie between 0 and {MAX_REFRESH_HINT}", field="refresh_hint")
        for name, authorities, identity in (
            ("x509_authorities", self.x509_authorities, [a.der for a in self.x509_authorities]),
            ("jwt_authorities", self.jwt_authorities, [a.key_id for a in self.jwt_authorities]),
            ("wit_authorities", self.wit_authorities, [a.key_id for a in self.wit_authorities]),
        ):
            if len(authorities) > MAX_AUTHORITIES:
                raise InvalidBundle(f"{name}: at most {MAX_AUTHORITIES} are allowed", field=name)
            if len(set(identity)) != len(identity):
                raise InvalidBundle(f"{name}: an authority is listed twice", field=name)

    @property
    def x509_roots(self) -> tuple[bytes, ...]:
        """The CA certificates in DER."""
        return tuple(authority.der for authority in self.x509_authorities)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is trusted: every SVID of the domain is then refused (TDB 4.1.3)."""
        return not (self.x509_authorities or self.jwt_authorities or self.wit_authorities)

    def with_x509_authority(self, der: bytes) -> TrustBundle:
        """Add a CA certificate."""
        if any(authority.der == der for authority in self.x509_authorities):
            return self
        return self._changed(x509_authorities=(*self.x509_authorities, X509Authority(der)))

    def without_x509_authority(self, key_id: str) -> TrustBundle:
        """Remove every CA certificate of the key `key_id`."""
        kept = tuple(authority for authority in self.x509_authorities if authority.key_id != key_id)
        return self if kept == self.x509_authorities else self._changed(x509_authorities=kept)

    def with_x509_tainted(self, key_id: str) -> TrustBundle:
        """Mark every CA certificate of the key `key_id` as compromised."""
        marked = tuple(
            replace(authority, tainted=True) if authority.key_id == key_id and not authority.tainted else authority
            for authority in self.x509_authorities
        )
        return self if marked == self.x509_authorities else self._changed(x509_authorities=marked)

    def with_jwt_authority(self, authority: JwtAuthority) -> TrustBundle:
        """Add a JWT key, or replace the one with its key ID."""
        keys = _with(self.jwt_authorities, authority)
        return self if keys == self.jwt_authorities else self._changed(jwt_authorities=keys)

    def without_jwt_authority(self, key_id: str) -> TrustBundle:
        """Remove a JWT key."""
        keys = _without(self.jwt_authorities, key_id)
        return self if keys == self.jwt_authorities else self._changed(jwt_authorities=keys)

    def with_jwt_tainted(self, key_id: str) -> TrustBundle:
        """Mark a JWT key as compromised."""
        keys = _tainted(self.jwt_authorities, key_id)
        return self if keys == self.jwt_authorities else self._changed(jwt_authorities=keys)

    def with_wit_authority(self, authority: WitAuthority) -> TrustBundle:
        """Add a WIT key, or replace the one with its key ID."""
        keys = _with(self.wit_authorities, authority)
        return self if keys == self.wit_authorities else self._changed(wit_authorities=keys)

    def without_wit_authority(self, key_id: str) -> TrustBundle:
        """Remove a WIT key."""
        keys = _without(self.wit_authorities, key_id)
        return self if keys == self.wit_authorities else self._changed(wit_authorities=keys)

    def with_wit_tainted(self, key_id: str) -> TrustBundle:
        """Mark a WIT key as compromised."""
        keys = _tainted(self.wit_authorities, key_id)
        return self if keys == self.wit_authorities else self._changed(wit_authorities=keys)

    def with_refresh_hint(self, seconds: int) -> TrustBundle:
        """Set the refresh hint; that counts as a change of content (conformance D17)."""
        return self if seconds == self.refresh_hint else self._changed(refresh_hint=seconds)

    def _changed(
        self,
        *,
        x509_authorities: tuple[X509Authority, ...] | None = None,
        jwt_authorities: tuple[JwtAuthority, ...] | None = None,
        wit_authorities: tuple[WitAuthority, ...] | None = None,
        refresh_hint: int | None = None,
    ) -> TrustBundle:
        return TrustBundle(
            trust_domain=self.trust_domain,
            x509_authorities=self.x509_authorities if x509_authorities is None else x509_authorities,
            jwt_authorities=self.jwt_authorities if jwt_authorities is None else jwt_authorities,
            wit_authorities=self.wit_authorities if wit_authorities is None else wit_authorities,
            sequence=self.sequence + 1,
            refresh_hint=self.refresh_hint if refresh_hint is None else refresh_hint,
        )


def _with(keys: tuple[_Token, ...], added: _Token) -> tuple[_Token, ...]:
    replaced = tuple(added if key.key_id == added.key_id else key for key in keys)
    return replaced if added in replaced else replaced + (added,)  # noqa: RUF005  # mypy loses the type of a spread


def _without(keys: tuple[_Token, ...], key_id: str) -> tuple[_Token, ...]:
    return tuple(key for key in keys if key.key_id != key_id)


def _tainted(keys: tuple[_Token, ...], key_id: str) -> tuple[_Token, ...]:
    return tuple(replace(key, tainted=True) if key.key_id == key_id and not key.tainted else key for key in keys)


@dataclass(frozen=True, slots=True)
class BundleSet:
    """The own bundle and those of federated trust domains, each under its own name and never merged.

    `revocations` are lists of certificates that are not to be believed all the same; empty where nobody checks them.
    """

    own: TrustBundle
    federated: Mapping[TrustDomain, TrustBundle] = field(default_factory=Map)
    revocations: tuple[RevocationList, ...] = ()

    def __post_init__(self) -> None:
        for name, bundle in self.federated.items():
            if bundle.trust_domain != name:
                raise InvalidBundle(f"federated: the bundle of {bundle.trust_domain} is filed under {name}")
            if name == self.own.trust_domain:
                raise InvalidBundle(f"federated: {name} is the own trust domain; its bundle comes from nobody else")
        if not isinstance(self.federated, Map):
            object.__setattr__(self, "federated", Map(self.federated))

    def get(self, trust_domain: TrustDomain) -> TrustBundle | None:
        """The bundle of exactly that trust domain."""
        return self.own if trust_domain == self.own.trust_domain else self.federated.get(trust_domain)

    def all(self) -> tuple[TrustBundle, ...]:
        """The own bundle first, then the others by name."""
        return (self.own, *(self.federated[name] for name in sorted(self.federated)))

    def with_bundle(self, bundle: TrustBundle) -> BundleSet:
        """Put in or replace the bundle of one trust domain."""
        if self.get(bundle.trust_domain) == bundle:
            return self
        if bundle.trust_domain == self.own.trust_domain:
            return replace(self, own=bundle)
        return replace(self, federated={**self.federated, bundle.trust_domain: bundle})

    def without(self, trust_domain: TrustDomain) -> BundleSet:
        """Stop trusting a federated trust domain; the own one stays."""
        if trust_domain not in self.federated:
            return self
        return replace(self, federated={name: kept for name, kept in self.federated.items() if name != trust_domain})


@dataclass(frozen=True, slots=True)
class Succession:
    """Which of two bundles is in force, and what an operator should hear about it ("" for nothing)."""

    bundle: TrustBundle
    warning: str = ""


def succeed(stored: TrustBundle, fetched: TrustBundle) -> Succession:
    """Decide between the bundle in force and one just fetched of the same trust domain (Federation section 4.2).

    The sequence number never decreases: a lower one is a rollback and the stored bundle stays. A publisher without
    sequence numbers is believed in the order of fetching.
    """
    if stored.trust_domain != fetched.trust_domain:
        raise InvalidBundle(f"a bundle of {fetched.trust_domain} cannot succeed one of {stored.trust_domain}")
    if fetched.sequence == 0:
        return Succession(replace(fetched, sequence=stored.sequence))
    if fetched.sequence < stored.sequence:
        return Succession(
            stored, f"sequence {fetched.sequence} is older than {stored.sequence}; the stored bundle stays in force"
        )
    if fetched.sequence == stored.sequence and fetched != stored:
        return Succession(fetched, f"content changed under the same sequence {fetched.sequence}")
    return Succession(fetched)


def poll_interval(refresh_hint: int, floor: timedelta = MIN_POLL) -> timedelta:
    """How often to poll: the hint between one minute and one day, five minutes without one (Federation 4.1)."""
    return min(max(timedelta(seconds=refresh_hint), floor), MAX_POLL) if refresh_hint > 0 else max(DEFAULT_POLL, floor)
