"""The UpstreamAuthority port in memory: a root that can be replaced, spoiled answers, outages, and JWT keys if wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography import x509

from identity_server.domain.upstream import UpstreamCa, UpstreamView
from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.clock import Clock
from spiffe_core.errors import Unimplemented
from spiffe_core.runtime.watch import Watch
from tests.authority import CA_USAGE, SpiffeTestCA, certify


class CsrKey:
    """Passes for a key pair where only the public half is looked at."""

    def __init__(self, csr: x509.CertificateSigningRequest) -> None:
        self._csr = csr

    def public_key(self) -> Any:
        return self._csr.public_key()


@dataclass
class ScriptedUpstream:
    """Signs below `issuer`. `trouble` is raised instead, `over` overrides parts of the certificate, `spoil` the answer."""

    clock: Clock
    issuer: SpiffeTestCA
    name: str = "scripted"
    trouble: Exception | None = None
    over: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[UpstreamCa], UpstreamCa] = lambda given: given
    publishes: bool = False
    hangs: bool = False
    minted: int = 0
    keys: dict[str, JwtAuthority] = field(default_factory=dict)
    wit_keys: dict[str, WitAuthority] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.view: Watch[UpstreamView] = Watch(UpstreamView())

    @property
    def root(self) -> bytes:
        return self.issuer.der

    def show(
        self, *roots: SpiffeTestCA, tainted: tuple[SpiffeTestCA, ...] = (), bad_keys: tuple[str, ...] = ()
    ) -> None:
        """Publish a view: these roots, some tainted, and the keys for tokens that it holds, some tainted."""
        x509_authorities = tuple(X509Authority(one.der, tainted=one in tainted) for one in roots)
        jwt = tuple(
            JwtAuthority(one.key_id, one.public_key, one.expires_at, tainted=one.key_id in bad_keys)
            for one in self.keys.values()
        )
        wit = tuple(
            WitAuthority(one.key_id, one.public_key, one.expires_at, tainted=one.key_id in bad_keys)
            for one in self.wit_keys.values()
        )
        self.view.publish(UpstreamView(x509_authorities, jwt, wit))

    async def start(self) -> None:
        self.show(self.issuer)

    async def mint_x509_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        if self.hangs:
            await asyncio.Event().wait()
        if self.trouble is not None:
            raise self.trouble
        self.minted += 1
        self.requests.append(csr)
        request = x509.load_der_x509_csr(csr)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        now = self.clock.now()
        profile: dict[str, Any] = {
            "uris": tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
            "ca": True,
            "usage": CA_USAGE,
            "eku": None,
            "not_after": min(now + timedelta(seconds=ttl), self.issuer.certificate.not_valid_after_utc),
            "issuer": self.issuer.certificate,
            "subject": (("C", "US"), ("O", "SPIFFE"), ("serialNumber", str(self.minted))),
            **self.over,
        }
        key = profile.pop("key", CsrKey(request))
        signer = profile.pop("signer", self.issuer.key)
        der = certify(key, signer=signer, now=now, **profile)
        above = self.issuer.chain
        return self.spoil(UpstreamCa((der, *above), (self._anchor,)))

    @property
    def _anchor(self) -> bytes:
        return self.issuer.der if not self.issuer.chain else self.anchor

    anchor: bytes = b""

    async def publish_jwt_authority(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        if self.trouble is not None:
            raise self.trouble
        if not self.publishes:
            raise Unimplemented("this upstream publishes no JWT keys")
        self.keys[authority.key_id] = authority
        return tuple(self.keys.values())

    async def publish_wit_authority(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        if self.trouble is not None:
            raise self.trouble
        if not self.publishes:
            raise Unimplemented("this upstream publishes no WIT keys")
        self.wit_keys[authority.key_id] = authority
        return tuple(self.wit_keys.values())

    async def close(self) -> None:
        """Nothing to stop."""
