"""What stands in the files of a set: pure, the state in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from node_agent.file_sets.jks import AUTHORITY_ALIAS, NOT_ASCII, key_store
from node_agent.file_sets.settings import FileSet
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import dump_bundle_map
from spiffe_core.crypto.keys import from_pkcs8
from spiffe_core.crypto.pem import certificates_pem, private_key_pem
from spiffe_core.errors import ConfigError
from spiffe_core.x509_svid import X509Svid
from workload_api.x509_context import X509Context


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one file. A private one holds a key or a token."""

    data: bytes
    private: bool = False


def chosen(context: X509Context, wanted: FileSet) -> X509Svid:
    """The identity a set is written for: by SPIFFE ID, by hint, or the default one.

    Raises:
        ConfigError: this process has no such identity.
    """
    if not wanted.spiffe_id and not wanted.hint:
        return context.default
    for svid in context.svids:
        if (wanted.spiffe_id and str(svid.spiffe_id) == wanted.spiffe_id) or (wanted.hint and svid.hint == wanted.hint):
            return svid
    named = wanted.spiffe_id or f"hint {wanted.hint}"
    has = ", ".join(str(svid.spiffe_id) for svid in context.svids)
    raise ConfigError(f"{wanted.directory}: no identity of this process is {named}; it has {has}", field="spiffe_id")


def x509_files(
    context: X509Context, wanted: FileSet, password: bytes = b"", jks_password: bytes = b""
) -> dict[str, Content]:
    """Name to content of every file that is made of the X.509 state.

    Raises:
        ConfigError: this process has no such identity, or a password will not do.
    """
    svid = chosen(context, wanted)
    own = context.bundles.own
    bundles = list(context.bundles.all()) if wanted.federated else [own]
    roots = [der for bundle in bundles for der in bundle.x509_roots]
    chain, key = certificates_pem(svid.chain), private_key_pem(svid.key)
    files = {
        wanted.certificate: Content(chain),
        wanted.key: Content(key, private=True),
        wanted.bundle: Content(certificates_pem(roots)),
        wanted.combined: Content(chain + key, private=True),
    }
    if wanted.pkcs12_password_file is not None:
        _readable(password)
    if wanted.pkcs12:
        files[wanted.pkcs12] = Content(_pkcs12(svid, roots, password), private=True)
    if wanted.pkcs12_truststore:
        files[wanted.pkcs12_truststore] = Content(_truststore(roots, password))
    if wanted.jks:
        store = key_store(svid.chain, svid.key, roots, _text(jks_password), created=svid.not_before)
        files[wanted.jks] = Content(store, private=True)
    if wanted.bundle_map:
        files[wanted.bundle_map] = Content(grpc_bundle_map(bundles))
    return {name: content for name, content in files.items() if name}


def grpc_bundle_map(bundles: Iterable[TrustBundle]) -> bytes:
    """A bundle map that every gRPC reads: X.509 keys only, no `kid` (integrations section 8)."""
    return dump_bundle_map([replace(one, jwt_authorities=(), wit_authorities=()) for one in bundles])


def token_files(tokens: Mapping[str, str]) -> dict[str, Content]:
    """Name to content of JWT-SVIDs."""
    return {name: Content(token.encode("ascii"), private=True) for name, token in tokens.items()}


def _readable(pkcs12_password: bytes) -> None:
    try:
        pkcs12_password.decode()
    except UnicodeDecodeError:
        raise ConfigError("pkcs12_password_file: must hold UTF-8 text", field="pkcs12_password_file") from None


def _text(jks_password: bytes) -> str:
    try:
        return jks_password.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(NOT_ASCII, field="jks_password_file") from None


def _pkcs12(svid: X509Svid, roots: Iterable[bytes], password: bytes) -> bytes:
    leaf, *above = (x509.load_der_x509_certificate(der) for der in svid.chain)
    authorities = [*above, *(x509.load_der_x509_certificate(der) for der in roots)]
    encryption = BestAvailableEncryption(password)
    name = str(svid.spiffe_id).encode()
    return pkcs12.serialize_key_and_certificates(name, from_pkcs8(svid.key), leaf, authorities, encryption)


def _truststore(roots: Iterable[bytes], password: bytes) -> bytes:
    """Certificates that Java takes for authorities: each bears Oracle's mark for that."""
    named = [
        pkcs12.PKCS12Certificate(x509.load_der_x509_certificate(der), AUTHORITY_ALIAS.format(number).encode())
        for number, der in enumerate(dict.fromkeys(roots))
    ]
    return pkcs12.serialize_java_truststore(named, BestAvailableEncryption(password))
