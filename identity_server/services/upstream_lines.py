"""The lines of a server below an upstream authority, which signs its CA certificate and publishes its token keys.

The upstream may be slow or away. It is asked with a time limit, never while anything that signs would have to wait, and
after a failure not again at once: the pause doubles up to five minutes. Until then the authority in force goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from identity_server.domain.minted_ca import MintedCa, check_minted
from identity_server.domain.upstream import UpstreamCa
from identity_server.ports import UpstreamAuthority
from identity_server.services.authority_lines import Birth, CaSettings, Entropy, TokenLine, X509Line
from identity_server.services.issuer import Issuer, draw_serial
from identity_server.services.token_issuer import JwtIssuer, WitIssuer
from spiffe_core.bundle import JwtAuthority, WitAuthority
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import AuthorityKey, KeyKind, MlDsaPrivateKey, PrivateKey
from spiffe_core.errors import IdentityError, InvalidCertificate, PreconditionFailed, Unavailable, Unimplemented
from spiffe_core.runtime.offload import Offload
from spiffe_core.spiffe_id import TrustDomain

MINT_SECONDS = 20.0
"""How long an upstream may take to sign."""
PUBLISH_SECONDS = 5.0
"""How long it may take to publish a JWT key (spire_features section 13.1)."""
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 300.0

Keys = TypeVar("Keys")

log = logging.getLogger(__name__)


class Pauses:
    """When an upstream may be asked again: at once after a success, ever later after failures."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pause = 0.0
        self._again_at = 0.0
        self._why = ""

    def require_due(self) -> None:
        """Raises Unavailable, with the last failure, while it is too early."""
        left = self._again_at - self._clock.monotonic()
        if self._pause and left > 0:
            raise Unavailable(f"{self._why}; trying again in {left:.0f} s")

    def failed(self, error: IdentityError) -> None:
        """Wait longer than last time."""
        self._pause = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause), MAX_PAUSE_SECONDS)
        self._again_at = self._clock.monotonic() + self._pause
        self._why = error.public

    def succeeded(self) -> None:
        """Wait no more."""
        self._pause = 0.0


class UpstreamX509Line(X509Line):
    """Certificate authorities below an upstream."""

    def __init__(
        self, issuer: Issuer, settings: CaSettings, entropy: Entropy, *, upstream: UpstreamAuthority, clock: Clock
    ) -> None:
        super().__init__(issuer, settings, entropy)
        self._upstream = upstream
        self._pauses = Pauses(clock)

    def require_due(self) -> None:
        """Not while the upstream is left alone after a failure."""
        self._pauses.require_due()

    async def bear(self, key: AuthorityKey, now: int, work: Offload, outlive: int = 0) -> Birth:
        """Have a certificate signed, and check all of it before anything is done with it."""
        if isinstance(key, MlDsaPrivateKey):
            raise PreconditionFailed(
                "ca.key_type: an upstream authority signs EC and RSA keys only; choose one of those"
            )
        try:
            minted = await self._minted(key, now, work)
            if minted.not_after <= outlive:
                raise Unavailable(
                    f"upstream {self._upstream.name}: a new CA certificate would end no later than the one in force, "
                    "at the end of the upstream's own; renew that"
                )
        except IdentityError as error:
            self._pauses.failed(error)
            raise
        self._pauses.succeeded()
        return Birth(
            minted.authority_id, minted.chain[0], minted.not_after, minted.chain, minted.roots, minted.anchor_id
        )

    async def _minted(self, key: PrivateKey, now: int, work: Offload) -> MintedCa:
        name = self._upstream.name
        csr = await work(ca_request, key, self._trust_domain, self._subject, draw_serial(self._entropy))
        try:
            async with asyncio.timeout(MINT_SECONDS):
                given = await self._upstream.mint_x509_ca(csr, int(self._lifetime.total_seconds()))
        except TimeoutError:
            raise Unavailable(f"upstream {name}: signed no CA certificate within {MINT_SECONDS:.0f} s") from None
        except Unavailable:
            raise
        except IdentityError as error:
            raise Unavailable(f"upstream {name}: did not sign our CA: {error.public}", **error.facts) from error
        try:
            return await work(self._checked, given, key, now)
        except InvalidCertificate as error:
            raise Unavailable(f"upstream {name}: what it signed is refused: {error.public}", **error.facts) from error

    def _checked(self, given: UpstreamCa, key: PrivateKey, now: int) -> MintedCa:
        return check_minted(given, key.public_key(), self._trust_domain, now)


class UpstreamTokenLine(TokenLine):
    """Keys for tokens that the upstream publishes to the whole trust domain, if it can."""

    def __init__(
        self,
        issuer: JwtIssuer | WitIssuer,
        *,
        key_kind: KeyKind,
        lifetime: timedelta,
        entropy: Entropy,
        upstream: UpstreamAuthority,
        clock: Clock,
    ) -> None:
        super().__init__(issuer, key_kind=key_kind, lifetime=lifetime, entropy=entropy)
        self._upstream = upstream
        self._pauses = Pauses(clock)

    def require_due(self) -> None:
        """Not while the upstream is left alone after a failure."""
        self._pauses.require_due()

    async def bear(self, key: AuthorityKey, now: int, work: Offload, outlive: int = 0) -> Birth:
        """Draw a key id, and have the key published before anything is signed with it."""
        birth = await super().bear(key, now, work, outlive)
        named = (birth.authority_id, birth.material, birth.not_after)
        try:
            if self.kind == "jwt":
                await publish_upstream(self._upstream, JwtAuthority(*named))
            else:
                await publish_wit_upstream(self._upstream, WitAuthority(*named))
        except Unimplemented:
            word = self.kind.upper()
            log.info("upstream %s publishes no %s keys; ours stand in this server's bundle", self._upstream.name, word)
        except IdentityError as error:
            self._pauses.failed(error)
            raise
        self._pauses.succeeded()
        return birth


async def publish_upstream(upstream: UpstreamAuthority, key: JwtAuthority) -> tuple[JwtAuthority, ...]:
    """Hand a JWT key up; all keys the upstream has then.

    Raises:
        Unimplemented: the upstream publishes none.
        Unavailable: it cannot now.
    """
    return await _published(upstream.name, "JWT", upstream.publish_jwt_authority(key))


async def publish_wit_upstream(upstream: UpstreamAuthority, key: WitAuthority) -> tuple[WitAuthority, ...]:
    """Hand a WIT key up; all keys the upstream has then. Raises as `publish_upstream`."""
    return await _published(upstream.name, "WIT", upstream.publish_wit_authority(key))


async def _published(upstream: str, word: str, publishing: Awaitable[Keys]) -> Keys:
    try:
        async with asyncio.timeout(PUBLISH_SECONDS):
            return await publishing
    except TimeoutError:
        raise Unavailable(f"upstream {upstream}: did not publish a {word} key within {PUBLISH_SECONDS:.0f} s") from None
    except (Unimplemented, Unavailable):
        raise
    except IdentityError as error:
        raise Unavailable(f"upstream {upstream}: did not publish a {word} key: {error.public}") from error


def ca_request(key: PrivateKey, trust_domain: TrustDomain, subject: x509.Name, number: int) -> bytes:
    """A PKCS#10 request for a CA certificate: our subject, numbered so that no two are named alike, and one URI SAN."""
    unnumbered = [part for part in subject if part.oid != NameOID.SERIAL_NUMBER]
    name = x509.Name([*unnumbered, x509.NameAttribute(NameOID.SERIAL_NUMBER, str(number))])
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))])
    builder = x509.CertificateSigningRequestBuilder(subject_name=name).add_extension(san, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
