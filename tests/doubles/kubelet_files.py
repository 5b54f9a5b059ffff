"""The certificates and the token that a kubelet and those who ask it have, as files."""

from datetime import timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from spiffe_core.clock import SystemClock


def certificate(folder, name, *, signer=None, ca=False, names=()):
    """A certificate and its key as files, signed by `signer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = (subject, key) if signer is None else signer
    now = SystemClock().now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = builder.sign(issuer_key, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return subject, key


def kubelet_files(folder):
    """ca, kubelet (for localhost), elsewhere (for another node), agent, a stranger's CA, and token."""
    ca = certificate(folder, "ca", ca=True)
    certificate(
        folder, "kubelet", signer=ca, names=[x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    certificate(folder, "elsewhere", signer=ca, names=[x509.DNSName("other-node")])
    certificate(folder, "agent", signer=ca)
    certificate(folder, "stranger", ca=True)
    (folder / "token").write_text("agent-token\n")
    return folder
