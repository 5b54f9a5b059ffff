"""A web certificate from an ACME authority: ordered, kept, and renewed ahead of its end.

Nothing waits for it: the server starts without a certificate and orders one, and the old one is presented until a new
one is there. A failure is logged in the authority's words and tried again after a pause that grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from identity_server.domain.web_certificate import pause_after, renewal_due
from identity_server.web.acme_answers import AcmeAnswers
from identity_server.web.acme_store import AcmeStore, WebCertificate, certificate_of, new_key
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.wire.tls import TlsIdentity

if TYPE_CHECKING:
    from identity_server.web.acme_session import AcmeSession, ChallengeKind

log = logging.getLogger(__name__)

ORDER_SECONDS = 180.0
LONGEST_SLEEP_SECONDS = 3_600.0
"""So often the time is looked at, whatever it was when it was planned: clocks jump."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """Who is asked, for which name, and how the name is proved: `kinds` take turns while they fail."""

    directory_url: str
    domain: str
    email: str
    tos_accepted: bool
    kinds: Sequence[ChallengeKind]
    ca_file: Path | None = None


class AcmeCertificate:
    """Belongs to the event loop. `jitter` draws from [-1, 1]."""

    def __init__(
        self, settings: AcmeSettings, store: AcmeStore, answers: AcmeAnswers, clock: Clock, jitter: Callable[[], float]
    ) -> None:
        self._settings, self._store, self._answers = settings, store, answers
        self._clock, self._jitter = clock, jitter
        self._offload = Offload("acme", 1)
        self._held: WebCertificate | None = store.load(clock.now())
        self._drawn = jitter()
        self._failures = 0
        self.trouble = ""
        """Why there is no newer certificate; "" while all is well."""

    def identity(self) -> TlsIdentity:
        """The certificate in force; the same object until the next.

        Raises:
            Unavailable: there is none yet, or it has expired.
        """
        if self._held is None or self._held.not_after <= self._clock.now():
            raise Unavailable(
                f"there is no web certificate for {self._settings.domain} yet: {self.trouble or 'ordered'}"
            )
        return self._held.identity

    def seconds_until_due(self) -> float:
        """How long until a certificate is to be ordered."""
        if self._held is None:
            return 0.0
        due = renewal_due(self._held.not_before, self._held.not_after, self._drawn)
        return max(0.0, (due - self._clock.now()).total_seconds())

    async def keep(self) -> None:
        """Order whenever it is due. Lives until cancelled."""
        while True:
            pause = self.seconds_until_due() or await self.attempt()
            await self._clock.sleep(min(pause, LONGEST_SLEEP_SECONDS))

    async def attempt(self) -> float:
        """Order once; how many seconds to wait before the next."""
        kind = self._settings.kinds[self._failures % len(self._settings.kinds)]
        try:
            await self.order(kind)
        except IdentityError as error:
            self._failures += 1
            self.trouble = error.public
            pause = pause_after(self._failures, self._jitter())
            log.warning(
                "no web certificate for %s (%s), trying again in %.0f s: %s",
                self._settings.domain,
                kind,
                pause,
                error.public,
            )
            return pause
        self._failures, self.trouble = 0, ""
        return 0.0

    async def order(self, kind: ChallengeKind) -> None:
        """Get a certificate and take it over.

        Raises:
            Unavailable, PreconditionFailed, CorruptState: why there is none; the one in force stays.
        """
        settings, key = self._settings, new_key()
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                chain = await self._ordered(kind, key)
        except TimeoutError:
            raise Unavailable(f"{settings.directory_url} did not finish within {ORDER_SECONDS:g} s") from None
        finally:
            self._answers.clear()
        made = certificate_of(key, chain, settings.domain, self._clock.now())
        await self._offload(self._store.save, key, chain)
        self._held, self._drawn = made, self._jitter()
        log.info("a web certificate for %s was issued, valid until %s", settings.domain, made.not_after.isoformat())

    async def _ordered(self, kind: ChallengeKind, key: ec.EllipticCurvePrivateKey) -> bytes:
        run = self._offload
        session = await run(self._session)
        try:
            order = await run(session.order, _request(key, self._settings.domain))
            for authorization in order.authorizations:
                challenge = await run(session.challenge, authorization, kind)
                if challenge is None:
                    continue
                if kind == "http-01":
                    self._answers.answer_http(challenge.token, challenge.key_authorization)
                else:
                    self._answers.answer_tls(self._settings.domain, challenge.key_authorization, self._clock.now())
                await run(session.answer, challenge)
                while not await run(session.believed, authorization):  # noqa: ASYNC110  # the authority tells nobody
                    await asyncio.sleep(_POLL_SECONDS)
            await run(session.finalize, order)
            while (chain := await run(session.certificate, order)) is None:  # noqa: ASYNC110  # same
                await asyncio.sleep(_POLL_SECONDS)
            return chain
        finally:
            await run(session.close)

    def _session(self) -> AcmeSession:
        """On the thread, where the library's import and the first requests keep nobody waiting."""
        from identity_server.web.acme_session import AcmeSession

        settings = self._settings
        return AcmeSession(
            settings.directory_url,
            self._store.account_key(),
            email=settings.email,
            tos_accepted=settings.tos_accepted,
            ca_file=settings.ca_file,
        )


def _request(key: ec.EllipticCurvePrivateKey, domain: str) -> bytes:
    names: list[Any] = [x509.DNSName(domain)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)
