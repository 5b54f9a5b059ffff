"""An outside PKI for nodes: a root, an intermediate, node certificates, and the PEM files an operator makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from spiffe_core.clock import SystemClock
from spiffe_core.crypto.keys import KeyKind, PrivateKey, generate
from tests.authority import SpiffeTestCA, certify


@dataclass
class Node:
    """One node's certificate, key, and the intermediates above it (DER)."""

    key: PrivateKey
    leaf: bytes
    intermediates: tuple[bytes, ...] = ()

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.leaf)

    def files(self, folder: Path, name: str = "node") -> dict[str, str]:
        """The agent's `[attestors.x509pop]` table, with its files in `folder`."""
        paths = {part: folder / f"{name}-{part}.pem" for part in ("key", "certificate", "intermediates")}
        write_key(paths["key"], self.key)
        write_certificates(paths["certificate"], self.leaf)
        table = {"private_key_path": str(paths["key"]), "certificate_path": str(paths["certificate"])}
        if self.intermediates:
            write_certificates(paths["intermediates"], *self.intermediates)
            table["intermediates_path"] = str(paths["intermediates"])
        return table


class NodePki:
    """A root CA that is no SPIFFE authority, and what stands below it."""

    def __init__(self, *, now: datetime | None = None, name: str = "Node Root", **spoil: object) -> None:
        self.now = now or SystemClock().now().replace(microsecond=0)
        subject = (("CN", name),)
        self.root = SpiffeTestCA("pki.test", now=self.now, uris=(), subject=subject, **spoil)

    def intermediate(self, parent: SpiffeTestCA | None = None, name: str = "Node CA", **spoil: object) -> SpiffeTestCA:
        return (parent or self.root).intermediate("pki.test", uris=(), subject=(("CN", name),), **spoil)

    def node(
        self, cn: str = "node1", *, ca: SpiffeTestCA | None = None, key: PrivateKey | None = None, **spoil: object
    ) -> Node:
        ca = ca or self.root
        key = key or generate(KeyKind.EC_P256)
        spoil = {"subject": (("CN", cn),), "eku": None, "now": self.now, **spoil}
        leaf = certify(key, signer=ca.key, issuer=ca.certificate, **spoil)  # type: ignore[arg-type]
        return Node(key, leaf, ca.chain)

    def bundle(self, folder: Path, *others: bytes) -> Path:
        return write_certificates(folder / "node-ca.pem", self.root.der, *others)


def write_certificates(path: Path, *ders: bytes) -> Path:
    path.write_bytes(b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders))
    return path


def write_key(path: Path, key: PrivateKey, mode: int = 0o600) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)
    return path
