"""The `vault` upstream: the PKI secrets engine of Vault or OpenBao signs this server's CA (spire_features section 2.5).

`POST /v1/<mount>/root/sign-intermediate` with `use_csr_values`: subject and URI SAN are those of our request, which the
core compares with what comes back. The token's policy needs `update` on that path and nothing else of the engine.
Vault publishes no JWT keys, and says nothing of roots but with a signature: what is shown is the root of the newest.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from identity_server.domain.foreign_chain import earliest_end_above, end_of, ordered
from identity_server.domain.upstream import UpstreamCa, UpstreamView
from identity_server.settings_upstream_network import UpstreamVaultSection
from identity_server.upstream.https_client import CALL_SECONDS
from identity_server.upstream.vault_api import VaultApi
from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, InvalidRequest, Unavailable, Unimplemented
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from workload_api.client import Backoff

IDLE_SECONDS = 60.0
"""How often a token is looked at whose time is far away, or that is not there yet."""
MIN_TTL_SECONDS = 60
MAX_CERTIFICATES = 32
BACKOFF = Backoff(first=1.0, longest=30.0)

log = logging.getLogger(__name__)


class VaultUpstream:
    """An upstream authority behind Vault's HTTP API. Belongs to the event loop."""

    name = "vault"

    def __init__(
        self,
        section: UpstreamVaultSection,
        *,
        clock: Clock,
        jitter: Callable[[], float] | None = None,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._section, self._clock = section, clock
        self._jitter = jitter or secrets.SystemRandom().random
        self._api = VaultApi(section, clock, seconds=call_seconds)
        self._view: Watch[UpstreamView] = Watch(UpstreamView())
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def view(self) -> Watch[UpstreamView]:
        """The root of what was signed last."""
        return self._view

    async def start(self) -> None:
        """Check the files that the settings name, and begin to keep the token alive.

        Raises:
            ConfigError: one of them cannot be used.
        """
        await self._api.check()
        spawn(self._keep_alive(), "upstream vault token", self._tasks)

    async def mint_x509_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        """Have Vault sign a CA certificate.

        Vault signs intermediates that outlive their issuer: then one is asked for that ends with it.

        Raises:
            Unavailable: Vault cannot be reached or refuses, or its answer may not be used.
        """
        minted = await self._signed(csr, {"ttl": f"{ttl}s"} if ttl else {})
        limit = earliest_end_above(minted)
        if end_of(minted) > limit:
            now = int(self._clock.now().timestamp())
            if limit - now < MIN_TTL_SECONDS:
                raise Unavailable(
                    f"upstream vault: the issuer of {self._section.pki_mount} ends in less than {MIN_TTL_SECONDS} s; "
                    "give the mount a new issuer"
                )
            log.info("upstream vault: the certificate would outlive its issuer; asking for a shorter one")
            end = datetime.fromtimestamp(limit, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            minted = await self._signed(csr, {"not_after": end})
        self._show(minted)
        return minted

    async def publish_jwt_authority(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Vault takes no keys.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented("upstream vault: JWT keys are not published upstream", key_id=authority.key_id)

    async def publish_wit_authority(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        """Vault takes no keys.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented("upstream vault: WIT keys are not published upstream", key_id=authority.key_id)

    async def close(self) -> None:
        """Stop renewing the token. It is left to end by itself: others may use it."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _signed(self, csr: bytes, life: Mapping[str, str]) -> UpstreamCa:
        request = x509.load_der_x509_csr(csr).public_bytes(Encoding.PEM).decode()
        path = f"{self._section.pki_mount}/root/sign-intermediate"
        data = await self._api.write(
            path,
            {"csr": request, "format": "pem", "use_csr_values": True, "exclude_cn_from_sans": True, **life},
        )
        try:
            return _read(data)
        except InvalidRequest as error:
            raise Unavailable(
                f"upstream vault: the answer of {self._section.address} may not be used: {error.public}"
            ) from None

    def _show(self, minted: UpstreamCa) -> None:
        """The root of the newest signature: one before it that is to go can then be tainted and revoked by command."""
        shown = UpstreamView(x509_authorities=tuple(map(X509Authority, minted.roots)))
        if shown != self._view.value:
            self._view.publish(shown)
            log.info("upstream vault: root", extra={"facts": {"x509": [one.key_id for one in shown.x509_authorities]}})

    async def _keep_alive(self) -> None:
        failures, told = 0, ""
        while True:
            self._api.fresh.clear()
            try:
                pause = max(await self._api.keep_alive(), BACKOFF.first)
                failures, told = 0, ""
            except IdentityError as error:
                if error.public != told:  # said once, not at every attempt
                    told = error.public
                    log.warning("the token of the upstream is not kept alive: %s", told)
                pause = BACKOFF.delay(failures, self._jitter())
                failures += 1
            except Exception:
                log.exception("upstream vault: looking after the token failed")
                pause = BACKOFF.longest
            try:
                async with asyncio.timeout(min(pause, IDLE_SECONDS)):
                    await self._api.fresh.wait()
            except TimeoutError:
                continue


def _read(data: Mapping[str, Any]) -> UpstreamCa:
    """The certificates in an answer of sign-intermediate; `ca_chain` is absent below some roots."""
    chain = data.get("ca_chain")
    texts = [data.get("certificate"), data.get("issuing_ca"), *(chain if isinstance(chain, list) else [])]
    if len(texts) > MAX_CERTIFICATES or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            f"it must hold `certificate`, `issuing_ca` and at most {MAX_CERTIFICATES} texts in `ca_chain`"
        )
    ders = []
    for text in texts:
        try:
            ders.append(x509.load_pem_x509_certificate(str(text).encode()).public_bytes(Encoding.DER))
        except ValueError:
            raise InvalidRequest("one of its certificates is not PEM") from None
    return ordered(ders[0], ders[1:])
