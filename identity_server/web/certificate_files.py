"""A web certificate that an operator keeps in PEM files: looked at again and again, and taken over when it changed.

Files that cannot be read, or do not fit together (half of them was written so far), are refused with one log line; the
certificate read before stays in force.
"""

from __future__ import annotations

import logging
from pathlib import Path

from spiffe_core.clock import Clock
from spiffe_core.crypto.certificates import CertificateFacts, public_key_of, read_certificate
from spiffe_core.crypto.keys import check_verification_key, spki_der, to_pkcs8
from spiffe_core.errors import ConfigError, InvalidCertificate
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.pem_material import OTHERS, file_stamp, read_pem_certificates, read_pem_key
from spiffe_core.wire.tls import TlsIdentity

log = logging.getLogger(__name__)


class CertificateFiles:
    """Belongs to the event loop. `field` is its table of the configuration."""

    def __init__(self, certificate: Path, key: Path, *, seconds: float, clock: Clock, field: str) -> None:
        self._certificate, self._key, self._field = certificate, key, field
        self._seconds, self._clock = seconds, clock
        self._offload = Offload("certificate", 1)
        self._stamp = self._look()
        self._identity = self._load()
        self._refused = ""

    @property
    def trouble(self) -> str:
        """Why newer files are not used, or that the certificate in force has expired."""
        if self._expires_at <= self._clock.now():
            return f"the web certificate in {self._certificate} has expired"
        return self._refused

    def identity(self) -> TlsIdentity:
        """The certificate in force; the same object until it changes."""
        return self._identity

    async def keep(self) -> None:
        """Look at the files every so often. Lives until cancelled."""
        while True:
            await self._clock.sleep(self._seconds)
            await self.reload()

    async def reload(self) -> bool:
        """Take the files over if they changed; True if that was done."""
        stamp = await self._offload(self._look)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._identity = await self._offload(self._load)
            self._refused = ""
        except ConfigError as error:
            self._refused = error.public
            log.warning("the certificate in force stays, the new files are not used: %s", error.public)
            return False
        log.info("the web certificate in %s was taken over", self._certificate)
        return True

    def _look(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        return file_stamp(self._certificate), file_stamp(self._key)

    def _load(self) -> TlsIdentity:
        chain = read_pem_certificates(self._certificate, field=f"{self._field}.cert_file_path")
        key = read_pem_key(self._key, field=f"{self._field}.key_file_path", refused_mode=OTHERS)
        leaf: CertificateFacts = read_certificate(chain[0], field=f"{self._field}.cert_file_path")
        try:
            public = check_verification_key(public_key_of(leaf), field=f"{self._field}.cert_file_path")
        except InvalidCertificate as error:
            raise ConfigError(f"{error.public} ({self._certificate})", field=f"{self._field}.cert_file_path") from None
        if spki_der(public) != spki_der(key.public_key()):
            raise ConfigError(
                f"{self._field}.key_file_path: {self._key} is not the key of the first certificate in "
                f"{self._certificate}; put the server's own certificate first",
                field=f"{self._field}.key_file_path",
            )
        self._expires_at = leaf.not_after
        if leaf.not_after <= self._clock.now():
            log.warning("the web certificate in %s has expired; nobody will believe it", self._certificate)
        return TlsIdentity(chain, to_pkcs8(key))
