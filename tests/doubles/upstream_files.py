"""A certificate authority of another PKI, in files, as an operator keeps it for the `disk` upstream."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spiffe_core.crypto.keys import PrivateKey
from tests.authority import SpiffeTestCA


def pem(*certificates: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates)


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class UpstreamFiles:
    """cert.pem, key.pem and roots.pem in one directory; each is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cert, self.key, self.roots = folder / "cert.pem", folder / "key.pem", folder / "roots.pem"

    def settings(self, *, bundle: bool = False) -> dict[str, object]:
        disk = {"cert_file": str(self.cert), "key_file": str(self.key)}
        if bundle:
            disk["bundle_file"] = str(self.roots)
        return {"kind": "disk", "disk": disk}

    def root(self, ca: SpiffeTestCA) -> None:
        """A self-signed authority."""
        self._write(self.key, key_pem(ca.key))
        self._write(self.cert, pem(ca.der))

    def below(self, ca: SpiffeTestCA, *roots: SpiffeTestCA) -> None:
        """An authority below the first of `roots`, all of which are trusted."""
        self._write(self.key, key_pem(ca.key))
        self._write(self.roots, pem(*(one.der for one in roots)))
        self._write(self.cert, pem(*ca.chain))

    def _write(self, path: Path, data: bytes) -> None:
        aside = path.with_suffix(".new")
        aside.write_bytes(data)
        aside.chmod(0o600)
        aside.replace(path)
