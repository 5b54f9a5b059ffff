"""The three kinds of authority, and all that differs between them: how one is born, and which issuer it signs for.

`services.authorities` leads each line through the same life (prepare, publish, activate, retire) without knowing what
is signed in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias

from cryptography import x509

from identity_server.domain.authority import Authority, AuthorityKind
from identity_server.domain.issuance import parent_of, prepare, sign
from identity_server.domain.profiles import CA_SUBJECT, Profile, plan_ca
from identity_server.ports import Store
from identity_server.services.issuer import Issuer, Signer, draw_serial
from identity_server.services.token_issuer import JwtIssuer, TokenSigner, WitIssuer
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PublicKey, spki_der
from spiffe_core.errors import CorruptState
from spiffe_core.spiffe_id import TrustDomain

Entropy: TypeAlias = Callable[[int], bytes]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
KEY_ID_LENGTH = 32


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """What the keys for one kind of token are like. They live as long as `ca_ttl` (spire_features section 13.2)."""

    default_ttl: timedelta
    key_kind: KeyKind = KeyKind.EC_P256
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class CaSettings:
    """What the authorities are like. `reset_keys` gives up authorities whose keys are lost (`--reset-keys`).

    There are no JWT or WIT authorities where their settings are None.
    """

    trust_domain: TrustDomain
    server_id: str
    ca_ttl: timedelta = timedelta(hours=24)
    key_kind: KeyKind = KeyKind.EC_P256
    subject: x509.Name = CA_SUBJECT
    x509_ttl: timedelta = timedelta(hours=1)
    agent_ttl: timedelta = timedelta(hours=1)
    jwt: TokenSettings | None = None
    wit: TokenSettings | None = None
    reset_keys: bool = False


@dataclass(frozen=True, slots=True)
class Birth:
    """What a new key becomes: its id, what is published of it, and when it ends."""

    authority_id: str
    material: bytes
    not_after: int


class Line(Protocol):
    """One kind of authority on this server."""

    kind: AuthorityKind
    key_kind: KeyKind

    def bear(self, public: PublicKey, key: PrivateKey, now: int) -> Birth:
        """Make an authority of a fresh key. On the key manager's thread: signing may take its time."""
        ...

    @property
    def seated(self) -> Authority | None:
        """The authority that signs."""
        ...

    def seat(self, authority: Authority, key: PrivateKey) -> None:
        """Let it sign from now on.

        Raises:
            CorruptState: the key is not its key.
        """
        ...

    def vacate(self) -> None:
        """Let nobody sign."""
        ...


class X509Line:
    """Certificate authorities: self-signed, named by their subject key identifier."""

    kind: AuthorityKind = "x509"

    def __init__(
        self,
        issuer: Issuer,
        *,
        trust_domain: TrustDomain,
        key_kind: KeyKind,
        lifetime: timedelta,
        subject: x509.Name,
        entropy: Entropy,
    ) -> None:
        self._issuer, self._trust_domain = issuer, trust_domain
        self._lifetime, self._subject, self._entropy = lifetime, subject, entropy
        self.key_kind = key_kind

    def bear(self, public: PublicKey, key: PrivateKey, now: int) -> Birth:
        """Self-sign a certificate."""
        plan = plan_ca(
            self._trust_domain,
            public,
            lifetime=int(self._lifetime.total_seconds()),
            now=now,
            serial=draw_serial(self._entropy),
            subject=self._subject,
        )
        return Birth(plan.key_id.hex(), sign(prepare(plan), key), plan.not_after)

    @property
    def seated(self) -> Authority | None:
        """The authority that signs."""
        return self._issuer.signer.authority if self._issuer.signer is not None else None

    def seat(self, authority: Authority, key: PrivateKey) -> None:
        """Let it sign from now on."""
        self._issuer.signer = Signer.of(authority, key)

    def vacate(self) -> None:
        """Let nobody sign."""
        self._issuer.signer = None


class TokenLine:
    """Keys that sign tokens: published as they are, named by a random key id (spire_features section 13.3)."""

    def __init__(
        self, issuer: JwtIssuer | WitIssuer, *, key_kind: KeyKind, lifetime: timedelta, entropy: Entropy
    ) -> None:
        self._issuer, self._lifetime, self._entropy = issuer, lifetime, entropy
        self.kind: AuthorityKind = issuer.kind
        self.key_kind = key_kind

    def bear(self, public: PublicKey, key: PrivateKey, now: int) -> Birth:  # noqa: ARG002  # the key signs nothing yet
        """Draw a key id."""
        return Birth(draw_key_id(self._entropy), spki_der(public), now + int(self._lifetime.total_seconds()))

    @property
    def seated(self) -> Authority | None:
        """The authority that signs."""
        return self._issuer.signer.authority if self._issuer.signer is not None else None

    def seat(self, authority: Authority, key: PrivateKey) -> None:
        """Let it sign from now on."""
        self._issuer.signer = TokenSigner.of(authority, key)

    def vacate(self) -> None:
        """Let nobody sign."""
        self._issuer.signer = None


@dataclass(frozen=True, slots=True)
class Issuers:
    """What signs, by kind. None where the kind is switched off."""

    x509: Issuer
    jwt: JwtIssuer | None
    wit: WitIssuer | None


def lines_of(
    settings: CaSettings, *, store: Store, clock: Clock, entropy: Entropy
) -> tuple[Issuers, dict[AuthorityKind, Line]]:
    """The issuers of the kinds that are switched on, and the lines that seat authorities in them."""
    whole = int(settings.x509_ttl.total_seconds())
    ttls = {
        Profile.WORKLOAD: whole,
        Profile.SERVER: whole,
        Profile.AGENT: int(settings.agent_ttl.total_seconds()),
    }
    issuer = Issuer(store=store, clock=clock, entropy=entropy, default_ttls=ttls)
    lines: list[Line] = [
        X509Line(
            issuer,
            trust_domain=settings.trust_domain,
            key_kind=settings.key_kind,
            lifetime=settings.ca_ttl,
            subject=settings.subject,
            entropy=entropy,
        )
    ]
    jwt: JwtIssuer | None = None
    wit: WitIssuer | None = None
    if settings.jwt is not None:
        ttl = int(settings.jwt.default_ttl.total_seconds())
        jwt = JwtIssuer(store=store, clock=clock, default_ttl=ttl, entropy=entropy, issuer=settings.jwt.issuer)
        lines.append(TokenLine(jwt, key_kind=settings.jwt.key_kind, lifetime=settings.ca_ttl, entropy=entropy))
    if settings.wit is not None:
        wit = WitIssuer(store=store, clock=clock, default_ttl=int(settings.wit.default_ttl.total_seconds()))
        lines.append(TokenLine(wit, key_kind=settings.wit.key_kind, lifetime=settings.ca_ttl, entropy=entropy))
    return Issuers(issuer, jwt, wit), {line.kind: line for line in lines}


def belongs(authority: Authority, key: PrivateKey | None) -> bool:
    """Whether `key` is the authority's private half."""
    if key is None:
        return False
    try:
        return spki_der(key.public_key()) == spki_of(authority)
    except CorruptState:
        return False


def spki_of(authority: Authority) -> bytes:
    """The SubjectPublicKeyInfo of an authority of any kind.

    Raises:
        CorruptState: its certificate cannot be read.
    """
    return parent_of(authority.certificate).spki if authority.kind == "x509" else authority.certificate


def draw_key_id(entropy: Entropy) -> str:
    """32 random letters and digits, each equally likely: 190 bits, so unique in the trust domain (WIT-04, WIT-36)."""
    fair = 256 - 256 % len(_ALPHABET)
    drawn: list[str] = []
    while len(drawn) < KEY_ID_LENGTH:
        drawn += [_ALPHABET[byte % len(_ALPHABET)] for byte in entropy(KEY_ID_LENGTH) if byte < fair]
    return "".join(drawn[:KEY_ID_LENGTH])
