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
from identity_server.domain.profiles import CA_SUBJECT, plan_ca
from identity_server.services.issuer import Issuer, Signer, draw_serial
from identity_server.services.token_issuer import JwtIssuer, TokenSigner, WitIssuer
from spiffe_core.crypto.keys import AuthorityKey, AuthorityPublicKey, KeyKind, MlDsaPrivateKey, spki_der
from spiffe_core.errors import CorruptState
from spiffe_core.runtime.offload import Offload
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
    """What a new key becomes: its id, what is published of it, and when it ends.

    The last three are what an upstream authority adds; `roots` are published in the stead of `material` then.
    """

    authority_id: str
    material: bytes
    not_after: int
    chain: tuple[bytes, ...] = ()
    roots: tuple[bytes, ...] = ()
    anchor_id: str = ""


class Line(Protocol):
    """One kind of authority on this server."""

    kind: AuthorityKind
    key_kind: KeyKind

    def require_due(self) -> None:
        """Before a key is made for a rotation that can wait.

        Raises:
            Unavailable: the last attempt failed a moment ago; it is too early for another.
        """
        ...

    async def bear(self, key: AuthorityKey, now: int, work: Offload, outlive: int = 0) -> Birth:
        """Make an authority of a fresh key. What takes its time runs on `work`, the key manager's thread.

        Raises:
            Unavailable: an upstream authority is needed and does not help now, or would end no later than `outlive`.
        """
        ...

    @property
    def seated(self) -> Authority | None:
        """The authority that signs."""
        ...

    def seat(self, authority: Authority, key: AuthorityKey) -> None:
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

    def __init__(self, issuer: Issuer, settings: CaSettings, entropy: Entropy) -> None:
        self._issuer, self._trust_domain = issuer, settings.trust_domain
        self._lifetime, self._subject, self._entropy = settings.ca_ttl, settings.subject, entropy
        self.key_kind = settings.key_kind

    def require_due(self) -> None:
        """Nobody else is needed."""

    async def bear(self, key: AuthorityKey, now: int, work: Offload, outlive: int = 0) -> Birth:  # noqa: ARG002  # it does
        """Self-sign a certificate."""
        return await work(self._self_signed, key, now)

    def _self_signed(self, key: AuthorityKey, now: int) -> Birth:
        public = key.public_key()
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

    def seat(self, authority: Authority, key: AuthorityKey) -> None:
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

    def require_due(self) -> None:
        """Nobody else is needed."""

    async def bear(self, key: AuthorityKey, now: int, work: Offload, outlive: int = 0) -> Birth:  # noqa: ARG002  # the key signs nothing yet, and every life is as long as the next
        """Draw a key id."""
        return self._named(key.public_key(), now)

    def _named(self, public: AuthorityPublicKey, now: int) -> Birth:
        return Birth(draw_key_id(self._entropy), spki_der(public), now + int(self._lifetime.total_seconds()))

    @property
    def seated(self) -> Authority | None:
        """The authority that signs."""
        return self._issuer.signer.authority if self._issuer.signer is not None else None

    def seat(self, authority: Authority, key: AuthorityKey) -> None:
        """Let it sign from now on."""
        if isinstance(key, MlDsaPrivateKey):
            raise CorruptState(f"the key in slot {authority.key_slot} is ML-DSA, which signs no tokens")
        self._issuer.signer = TokenSigner.of(authority, key)

    def vacate(self) -> None:
        """Let nobody sign."""
        self._issuer.signer = None


def belongs(authority: Authority, key: AuthorityKey | None) -> bool:
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
