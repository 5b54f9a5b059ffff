"""`identity-server x509`: X.509-SVIDs for what is not a workload, such as an operator's browser or a first test."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.pem_files import PRIVATE, PUBLIC, certificates_pem, output_directory, pem, write_files
from spiffe_core.terminal.printing import output_flag, print_json
from spiffe_core.terminal.values import WHOLE_SECONDS
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2

SVID: Final = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
BUNDLE: Final = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
_NAMES: Final = {"svid.pem": "X509-SVID", "key.pem": "Private key", "bundle.pem": "Root CAs"}


@click.group("x509", cls=Group)
def group() -> None:
    """X.509-SVIDs without a workload."""


@command(
    "mint",
    example="identity-server x509 mint --spiffe-id spiffe://example.org/admin --ttl 1h --write ./admin",
)
@flag("--spiffe-id", "spiffeID", required=True, help="The identity.")
@flag("--ttl", type=WHOLE_SECONDS, default=0, help="Its life; the server's default when it is left out.")
@flag("--dns", multiple=True, help="A DNS name in the certificate. May be repeated.")
@flag("--write", metavar="DIR", help="Write svid.pem, key.pem (0600) and bundle.pem into this existing directory.")
@server_flags
@output_flag
def mint(*, socket_path: str | None, instance: str | None, output: str, ttl: int, **given: Any) -> None:
    """Make a key and have an X.509-SVID signed for it.

    The key is made here and never leaves; no registration entry is consulted.
    """
    spiffe_id = SpiffeId.parse(given["spiffe_id"], field="--spiffe-id")
    directory = output_directory(given["write"]) if given["write"] else None
    key, csr = _key_and_request(spiffe_id, given["dns"])
    with server_channel(socket_path, instance) as channel:
        minted = Service(channel, SVID)("MintX509SVID", svid_pb2.MintX509SVIDRequest(csr=csr, ttl=ttl))
        bundle = Service(channel, BUNDLE)("GetBundle", bundle_pb2.GetBundleRequest())
    if not minted.svid.cert_chain:
        raise Failure("the server answered without a certificate", "look at the server's log")
    texts = {
        "svid.pem": certificates_pem(list(minted.svid.cert_chain)),
        "key.pem": pem("PRIVATE KEY", key),
        "bundle.pem": certificates_pem([authority.asn1 for authority in bundle.x509_authorities]),
    }
    if directory is not None:
        modes = {name: (text, PRIVATE if name == "key.pem" else PUBLIC) for name, text in texts.items()}
        paths = write_files(directory, modes)
        if output == "json":
            print_json({"written": [str(path) for path in paths]})
            return
        for name, path in zip(texts, paths, strict=True):
            click.echo(f"{_NAMES[name]} written to {path}")
    elif output == "json":
        print_json(
            {
                "x509_svid": [_base64(der) for der in minted.svid.cert_chain],
                "private_key": _base64(key),
                "root_cas": [_base64(authority.asn1) for authority in bundle.x509_authorities],
            }
        )
    else:
        for name, text in texts.items():
            click.echo(f"{_NAMES[name]}:\n{text}")


def _base64(der: bytes) -> str:
    """DER as JSON carries it in SPIRE's output."""
    return base64.b64encode(der).decode()


def _key_and_request(spiffe_id: SpiffeId, dns_names: Sequence[str]) -> tuple[bytes, bytes]:
    """A fresh P-256 key as PKCS#8 DER, and a request for `spiffe_id` signed with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    try:
        names += [x509.DNSName(name) for name in dns_names]
    except ValueError as error:
        raise Failure(f"--dns: {error}", "write names in ASCII, such as web.example.org or *.example.org") from None
    request = x509.CertificateSigningRequestBuilder(
        x509.Name([]), [x509.Extension(x509.SubjectAlternativeName.oid, False, x509.SubjectAlternativeName(names))]
    ).sign(key, hashes.SHA256())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), request.public_bytes(Encoding.DER)


group.add_command(mint)
