"""The `disk` upstream: a CA certificate and its key in PEM files sign this server's CA (spire_features section 2.5).

The files are read at the start, before each signature and whenever they change. A set that does not fit together (half
of it was written so far, or it is wrong) is refused with one log line, and the one read before stays in force. So a new
root is put in place by writing files; nothing is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from identity_server.domain.issuance import prepare, sign
from identity_server.domain.minted_ca import room_below
from identity_server.domain.minting import check_ca_request
from identity_server.domain.profiles import Parent, plan_ca
from identity_server.domain.upstream import MAX_CHAIN, MAX_ROOTS, UpstreamCa, UpstreamView
from identity_server.settings_upstream import UpstreamDiskSection
from spiffe_core.bundle import JwtAuthority, WitAuthority, X509Authority
from spiffe_core.clock import Clock
from spiffe_core.crypto.certificates import CertificateFacts, key_id_of, public_key_of, read_certificate
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.crypto.keys import PrivateKey, check_public_key, spki_der
from spiffe_core.errors import (
    ConfigError,
    IdentityError,
    InvalidCertificate,
    Unavailable,
    Unimplemented,
    VerificationFailed,
)
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.pem_material import file_stamp, read_pem_certificates, read_pem_key
from spiffe_core.runtime.supervise import spawn
from spiffe_core.runtime.watch import Watch
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_path

POLL_SECONDS = 5.0
"""How often the files are looked at; a signature looks at them in any case."""
DEFAULT_TTL = 3_600
_SERIAL_BYTES = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Material:
    """What the files held: a signer, the certificates above it and the roots, checked to belong together."""

    chain: tuple[bytes, ...]
    """The signer first, no root; empty if the signer is a root itself."""
    roots: tuple[bytes, ...]
    parent: Parent
    key: PrivateKey = field(repr=False)


class DiskUpstream:
    """An upstream authority in files. Belongs to the event loop; files and keys are used on a thread of its own."""

    name = "disk"

    def __init__(
        self,
        section: UpstreamDiskSection,
        *,
        trust_domain: TrustDomain,
        clock: Clock,
        entropy: Callable[[int], bytes] = os.urandom,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._section, self._trust_domain, self._clock = section, trust_domain, clock
        self._entropy, self._poll_seconds = entropy, poll_seconds
        self._offload = Offload("upstream-disk", 1)
        self._material: Material | None = None
        self._stamps: tuple[object, ...] = ()
        self._refused = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._view: Watch[UpstreamView] = Watch(UpstreamView())

    @property
    def view(self) -> Watch[UpstreamView]:
        """The roots in the files."""
        return self._view

    async def start(self) -> None:
        """Read the files and begin to look at them.

        Raises:
            ConfigError: they cannot be used.
        """
        stamps = await self._offload(self._look)
        self._material = await self._offload(load, self._section, self._trust_domain, self._clock.now())
        self._stamps = stamps
        self._publish()
        spawn(self._follow(), "upstream disk", self._tasks)

    async def mint_x509_ca(self, csr: bytes, ttl: int) -> UpstreamCa:
        """Sign a CA certificate for the key and the subject of the request.

        Raises:
            InvalidCsr: the request is not for the trust domain's own ID, or its key is weak.
            Unavailable: the signer in the files has expired.
        """
        await self.reload()
        material = self._material
        if material is None:
            raise Unavailable("upstream disk: no CA certificate was read yet")
        now = int(self._clock.now().timestamp())
        serial = int.from_bytes(self._entropy(_SERIAL_BYTES)) or 1
        return await self._offload(_signed, material, csr, ttl or DEFAULT_TTL, now, serial, self._trust_domain)

    async def publish_jwt_authority(self, authority: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Files take no keys.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented("upstream disk: JWT keys are not published upstream", key_id=authority.key_id)

    async def publish_wit_authority(self, authority: WitAuthority) -> tuple[WitAuthority, ...]:
        """Files take no keys.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented("upstream disk: WIT keys are not published upstream", key_id=authority.key_id)

    async def reload(self) -> bool:
        """Read the files again if they changed; True if what they hold is in force now."""
        stamps = await self._offload(self._look)
        if stamps == self._stamps:
            return False
        try:
            material = await self._offload(load, self._section, self._trust_domain, self._clock.now())
        except ConfigError as error:
            if error.public != self._refused:
                self._refused = error.public
                log.warning(
                    "upstream disk: the changed files cannot be used, those read before stay in force: %s", error.public
                )
            return False
        self._stamps, self._refused = stamps, ""
        changed = self._material is None or (material.chain, material.roots, material.parent.spki) != (
            self._material.chain,
            self._material.roots,
            self._material.parent.spki,
        )
        self._material = material
        if changed:
            self._publish()
            log.info(
                "upstream disk: a changed CA certificate signs from now on",
                extra={"facts": {"subject_key_id": material.parent.key_id.hex(), "roots": len(material.roots)}},
            )
        return changed

    async def close(self) -> None:
        """Stop looking at the files."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await self._clock.sleep(self._poll_seconds)
            try:
                await self.reload()
            except IdentityError as error:
                log.warning("upstream disk: %s", error.public)

    def _look(self) -> tuple[object, ...]:
        paths: list[Path | None] = [self._section.cert_file, self._section.key_file, self._section.bundle_file]
        return tuple(file_stamp(path) for path in paths if path is not None)

    def _publish(self) -> None:
        assert self._material is not None
        self._view.publish(UpstreamView(x509_authorities=tuple(map(X509Authority, self._material.roots))))


def load(section: UpstreamDiskSection, trust_domain: TrustDomain, now: datetime) -> Material:
    """Read the files and see that they belong together.

    Raises:
        ConfigError: naming the key of the settings and the rule.
    """
    # To sign with the files we must know that
    #   1. the key may be read by its owner alone, and is the first certificate's
    #   2. that certificate is a CA that may sign certificates and CAs below it, with a strong key, valid now
    #   3. without a bundle it is a root, alone; with one, the certificates that follow lead to a root of the bundle
    where = "upstream.disk.cert_file"
    certificates = read_pem_certificates(section.cert_file, field=where)
    key = read_pem_key(section.key_file, field="upstream.disk.key_file")
    signer = read_certificate(certificates[0], field=where)
    try:
        public = check_public_key(public_key_of(signer, field=where), field=where)
    except InvalidCertificate as error:
        raise ConfigError(error.public, field=where) from None
    if spki_der(key.public_key()) != spki_der(public):  # (1)
        raise ConfigError(
            f"upstream.disk.key_file: {section.key_file} does not hold the key of the certificate in "
            f"{section.cert_file}",
            field="upstream.disk.key_file",
        )
    _check_signer(signer, where, now)  # (2)
    if section.bundle_file is None:  # (3)
        if len(certificates) > 1 or not signer.self_issued:
            raise ConfigError(
                f"{where}: {section.cert_file} must hold one self-signed certificate; where it is not a root, set "
                "upstream.disk.bundle_file to the roots that are trusted",
                field=where,
            )
        roots = certificates
    else:
        roots = tuple(dict.fromkeys(read_pem_certificates(section.bundle_file, field="upstream.disk.bundle_file")))
    chain = tuple(der for der in certificates if der not in roots)
    if len(chain) >= MAX_CHAIN:
        raise ConfigError(f"{where}: holds more than {MAX_CHAIN - 1} certificates below a root", field=where)
    ends = _ends(signer, certificates[1:], roots, where, now)
    parent = Parent(
        trust_domain=trust_domain,
        name=signer.subject,
        name_der=signer.subject.public_bytes(),
        key_id=bytes.fromhex(key_id_of(signer)),
        not_after=ends,
        public_key=public,
        spki=spki_der(public),
    )
    return Material(chain if signer.der not in roots else (), roots, parent, key)


def _check_signer(signer: CertificateFacts, where: str, now: datetime) -> None:
    usage = signer.key_usage
    if not signer.is_ca or usage is None or not usage.key_cert_sign:
        raise ConfigError(
            f"{where}: the certificate must be a CA (basicConstraints CA:TRUE) with keyUsage keyCertSign", field=where
        )
    if not signer.not_before <= now < signer.not_after:
        raise ConfigError(
            f"{where}: the certificate is valid from {signer.not_before} to {signer.not_after}, not now", field=where
        )


def _ends(
    signer: CertificateFacts, between: tuple[bytes, ...], roots: tuple[bytes, ...], where: str, now: datetime
) -> int:
    """When the first certificate of the signer's chain ends."""
    anchors = [read_certificate(der, field=where) for der in roots]
    if len(anchors) > MAX_ROOTS or not all(anchor.is_ca for anchor in anchors):
        raise ConfigError(
            f"upstream.disk.bundle_file: must hold at most {MAX_ROOTS} certificates, all of CAs",
            field="upstream.disk.bundle_file",
        )
    try:
        path = verify_path(signer, [read_certificate(der, field=where) for der in between], anchors, now=now)
    except VerificationFailed as error:
        raise ConfigError(
            f"{where}: the certificate does not lead to a trusted root: {error.public}", field=where
        ) from None
    if not room_below(path[:-1] if path[-1].der == signer.der else path):
        raise ConfigError(f"{where}: a path length in the chain allows no CA below the certificate", field=where)
    return int(min(one.not_after for one in path).timestamp())


def _signed(material: Material, csr: bytes, ttl: int, now: int, serial: int, trust_domain: TrustDomain) -> UpstreamCa:
    request = parse_csr(csr)
    check_ca_request(request, trust_domain)
    plan = plan_ca(
        trust_domain,
        request.public_key,
        lifetime=ttl,
        now=now,
        serial=serial,
        subject=request.subject,
        parent=material.parent,
    )
    return UpstreamCa((sign(prepare(plan), material.key), *material.chain), material.roots)
