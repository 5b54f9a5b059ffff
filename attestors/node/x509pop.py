"""x509pop: a node proves that it holds the key of a certificate from an outside PKI (spire_wire section 7, 18.2).

The agent sends its certificate and intermediates, the server a nonce; the agent adds a nonce of its own and signs the
SHA-256 of both with the certificate's key. The messages stand in `x509pop_messages`.

Selectors and the agent's path are read from the certificates on the verified path and from nothing else the node sent
(S25): each presented certificate is parsed once, from the bytes whose signature is checked. Counts, sizes and key kinds
are looked at before any signature is (S28). The certificate may be used again, so an agent heals without a human.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, cast
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import NameOID

from attestors.agent_path import AgentPathTemplate
from attestors.api import Attested, Challenge, Dialogue
from attestors.json_objects import read_object
from attestors.node.x509pop_messages import b64, bytes_in, json_bytes, kind_of, member, minimal
from attestors.peer_address import require_named
from attestors.registry import NODE_VERIFIERS
from spiffe_core.crypto.certificates import CertificateFacts, public_key_of, read_certificate
from spiffe_core.crypto.keys import PublicKey, check_verification_key, spki_der
from spiffe_core.errors import (
    ConfigError,
    Forbidden,
    IdentityError,
    InvalidRequest,
    InvalidSelector,
    PreconditionFailed,
    Unavailable,
)
from spiffe_core.runtime.pem_material import OTHERS, file_stamp, read_pem_certificates, read_pem_key
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_path

NAME = "x509pop"
NONCE_BYTES = 32
MAX_PRESENTED_BYTES = 16 * 1024
"""One certificate as a node may send it."""
MAX_ANSWER_BYTES = 16 * 1024
MAX_SANS = 100
DEFAULT_TEMPLATE = "/{{ .PluginName }}/{{ .Fingerprint }}"
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_MAX_INTERMEDIATES = 4
_CURVES = frozenset({"secp256r1", "secp384r1"})
_SCALAR_BYTES = 66
_SAN_FIELD = "URISanSelectors."
_FIELDS = frozenset({"Fingerprint", "SerialNumberHex", "Subject.CommonName", "TrustDomain"})
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
_PSS_LONGEST = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
_DIGEST = Prehashed(hashes.SHA256())
_PAYLOAD, _ANSWER, _CHALLENGE = "params.data.payload", "challenge_response", "challenge"


@dataclass(frozen=True, slots=True)
class VerifierSettings:
    """[attestors.x509pop] of the server. One of `ca_bundle_path` and `ca_bundle_paths` is required."""

    mode: str = "external_pki"
    ca_bundle_path: str = ""
    ca_bundle_paths: tuple[str, ...] = ()
    agent_path_template: str = DEFAULT_TEMPLATE
    max_intermediates: int = _MAX_INTERMEDIATES
    max_rsa_key_size: int = _MAX_RSA_BITS
    verify_client_ip: bool = False

    def __post_init__(self) -> None:
        if self.mode != "external_pki":
            raise _wrong("mode", 'must be "external_pki", the one mode there is here')
        listed = cast("object", self.ca_bundle_paths)
        if not isinstance(listed, list | tuple) or not all(isinstance(path, str) and path for path in listed):
            raise _wrong("ca_bundle_paths", "must be an array of paths")
        if bool(self.ca_bundle_path) is bool(listed):
            raise _wrong("ca_bundle_path", "name the PEM file with the node CAs here, or several in ca_bundle_paths")
        if not 0 <= self.max_intermediates <= _MAX_INTERMEDIATES:
            raise _wrong("max_intermediates", f"must lie between 0 and {_MAX_INTERMEDIATES}")
        if not _MIN_RSA_BITS <= self.max_rsa_key_size <= _MAX_RSA_BITS:
            raise _wrong("max_rsa_key_size", f"must lie between {_MIN_RSA_BITS} and {_MAX_RSA_BITS}")
        if not isinstance(cast("object", self.verify_client_ip), bool):
            raise _wrong("verify_client_ip", "must be true or false")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The CA bundles."""
        return tuple(map(Path, self.ca_bundle_paths or (self.ca_bundle_path,)))


@dataclass(frozen=True, slots=True)
class VerifierPorts:
    """What the server's half needs besides its settings."""

    trust_domain: TrustDomain
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes] = os.urandom


class X509PopVerifier:
    """The server's half. CA bundles are read again when they change; a dialogue holds no state of another."""

    name: ClassVar[str] = NAME
    Settings = VerifierSettings

    def __init__(self, settings: VerifierSettings, ports: VerifierPorts) -> None:
        self._settings = settings
        self._ports = ports
        others = frozenset(NODE_VERIFIERS.names()) - {NAME}
        self._template = AgentPathTemplate.parse(
            settings.agent_path_template,
            plugin=NAME,
            known=lambda name: name in _FIELDS or name.startswith(_SAN_FIELD),
            others=others,
            field="attestors.x509pop.agent_path_template",
        )
        self._anchors = self._read_anchors()

    def verify(self, payload: bytes, key_digest: bytes) -> Dialogue:
        """As `verify_from`, by a node of which nobody knows where it is."""
        return self.verify_from(payload, key_digest, "")

    def verify_from(self, payload: bytes, key_digest: bytes, address: str) -> Dialogue:  # noqa: ARG002  # the evidence is not one-use
        """Read the certificates, walk the path to a CA of ours, then have the leaf's key prove itself.

        With `verify_client_ip`, the leaf has to name `address`, where the node connected from.

        Raises:
            InvalidRequest: what was sent cannot be read or is more than is read.
            Forbidden: it does not prove a node.
            Unavailable: the CA bundle cannot be read just now.
        """
        limit = self._settings.max_intermediates + 1
        size = limit * MAX_PRESENTED_BYTES * 4 // 3 + 1024
        document = _object(payload, size, _PAYLOAD)
        chain = _certificates(document.get("certificates"), limit)
        leaf_key = self._checked_keys(chain)[0]
        _check_usage(chain[0])
        path = self._path(chain)
        if self._settings.verify_client_ip:
            require_named(chain[0], address)
        nonce = self._ports.entropy(NONCE_BYTES)
        kind = kind_of(leaf_key)
        answer = yield Challenge(json_bytes({kind: {"nonce": b64(nonce)}}))
        _check_answer(_object(answer, MAX_ANSWER_BYTES, _ANSWER), kind, leaf_key, nonce)
        return self._verdict(path)

    def _checked_keys(self, chain: tuple[CertificateFacts, ...]) -> list[PublicKey]:
        """The key of each presented certificate, if it is of a kind whose signatures are cheap to check (S28)."""
        keys: list[PublicKey] = []
        for facts in chain:
            key = public_key_of(facts, field=_PAYLOAD)
            if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
                raise InvalidRequest(f"{_PAYLOAD}: the curve {key.curve.name} is not allowed", field=_PAYLOAD)
            largest = self._settings.max_rsa_key_size
            if isinstance(key, rsa.RSAPublicKey) and key.key_size > largest:
                raise InvalidRequest(
                    f"{_PAYLOAD}: RSA keys have at most {largest} bits, this one {key.key_size}", field=_PAYLOAD
                )
            keys.append(check_verification_key(key, field=_PAYLOAD))
        return keys

    def _path(self, chain: tuple[CertificateFacts, ...]) -> tuple[CertificateFacts, ...]:
        try:
            return verify_path(chain[0], chain[1:], self._trusted(), now=self._ports.now())
        except Unavailable:
            raise
        except IdentityError as error:
            raise Forbidden(f"certificate verification failed: {error.public}", **error.facts) from None

    def _trusted(self) -> tuple[CertificateFacts, ...]:
        stamps, anchors = self._anchors
        if stamps != tuple(map(file_stamp, self._settings.paths)):
            try:
                stamps, anchors = self._anchors = self._read_anchors()
            except ConfigError as error:
                raise Unavailable("the CA bundle for x509pop cannot be read, try again", why=error.public) from None
        return anchors

    def _read_anchors(self) -> tuple[tuple[tuple[int, ...], ...], tuple[CertificateFacts, ...]]:
        field = "attestors.x509pop.ca_bundle_path"
        paths = self._settings.paths
        stamps = tuple(map(file_stamp, paths))
        found = {der: read_certificate(der) for path in paths for der in read_pem_certificates(path, field=field)}
        if not all(facts.is_ca for facts in found.values()):
            raise ConfigError(f"{field}: holds a certificate that is not a CA", field=field)
        return stamps, tuple(found.values())

    def _verdict(self, path: tuple[CertificateFacts, ...]) -> Attested:
        leaf = path[0]
        name = _common_name(leaf)
        serial = _serial_hex(leaf.certificate.serial_number)
        sans = _san_selectors(leaf, self._ports.trust_domain)
        values = [f"subject:cn:{name}"] if name else []
        values += [f"ca:fingerprint:{_fingerprint(facts.der)}" for facts in path[1:]]
        values.append(f"serialnumber:{serial}")
        values += [f"san:{key}:{value}" for key, value in sans]
        fields = {
            "Fingerprint": _fingerprint(leaf.der),
            "SerialNumberHex": serial,
            "Subject.CommonName": name,
            "TrustDomain": self._ports.trust_domain.name,
        }
        for key in {key for key, _ in sans}:
            of_key = [value for known, value in sans if known == key]
            fields[f"{_SAN_FIELD}{key}"] = of_key[0] if len(of_key) == 1 else ""  # two values name no node
        try:
            selectors = frozenset(Selector(NAME, value) for value in values)
        except InvalidSelector as error:
            raise Forbidden(f"failed to attest: {error.public}") from None
        return Attested(self._template.render(lambda field: fields.get(field, "")), selectors, may_reattest=True)


@dataclass(frozen=True, slots=True)
class ProverSettings:
    """[attestors.x509pop] of the agent: PEM files, read again for each attestation."""

    private_key_path: str = ""
    certificate_path: str = ""
    intermediates_path: str = ""

    def __post_init__(self) -> None:
        for name in ("private_key_path", "certificate_path"):
            if not getattr(self, name):
                raise _wrong(name, "is required")


class X509PopProver:
    """The agent's half."""

    name: ClassVar[str] = NAME
    Settings = ProverSettings
    advice: ClassVar[str] = (
        "look at the certificate and key that [attestors.x509pop] names and at the CA bundle of the server; "
        "replaced files are noticed without a restart"
    )

    def __init__(self, settings: ProverSettings, ports: None = None) -> None:
        self._settings = settings
        self._ports = ports

    def fingerprint(self) -> str:
        """Differs when a file was replaced; "" while one is missing."""
        settings = self._settings
        paths = [settings.private_key_path, settings.certificate_path, settings.intermediates_path]
        stamps = [file_stamp(Path(path)) for path in paths if path]
        return "" if not all(map(any, stamps)) else hashlib.sha256(repr(stamps).encode()).hexdigest()

    def prove(self) -> Generator[bytes, bytes, None]:
        """Yield the certificates, then the proof that the key is theirs.

        Raises:
            ConfigError: a file cannot be read, or they do not belong together.
            PreconditionFailed: the server asks for something else.
        """
        settings = self._settings
        chain = list(read_pem_certificates(Path(settings.certificate_path), field=f"attestors.{NAME}.certificate_path"))
        if settings.intermediates_path:
            more = read_pem_certificates(
                Path(settings.intermediates_path), field=f"attestors.{NAME}.intermediates_path"
            )
            chain += more
        key = read_pem_key(
            Path(settings.private_key_path), field=f"attestors.{NAME}.private_key_path", refused_mode=OTHERS
        )
        leaf_key = check_verification_key(public_key_of(read_certificate(chain[0])), field="certificate_path")
        if spki_der(leaf_key) != spki_der(key.public_key()):
            raise _wrong("private_key_path", "is not the key of the first certificate in certificate_path")
        challenge = yield json_bytes({"certificates": [b64(der) for der in chain]})
        kind = kind_of(leaf_key)
        asked = member(_object(challenge, MAX_ANSWER_BYTES, _CHALLENGE), kind, _CHALLENGE)
        theirs = bytes_in(asked.get("nonce"), f"{_CHALLENGE}.nonce", NONCE_BYTES)
        if len(theirs) != NONCE_BYTES:
            raise PreconditionFailed(f"the server's x509pop nonce has {len(theirs)} bytes, not {NONCE_BYTES}")
        ours = os.urandom(NONCE_BYTES)
        digest = hashlib.sha256(theirs + ours).digest()
        answer: dict[str, object] = {"nonce": b64(ours)}
        if isinstance(key, rsa.RSAPrivateKey):
            answer["signature"] = b64(key.sign(digest, _PSS_LONGEST, _DIGEST))
        else:
            r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_DIGEST)))
            answer |= {"r": b64(minimal(r)), "s": b64(minimal(s))}
        yield json_bytes({kind: answer})
        raise PreconditionFailed("the server challenged a second time; is it an x509pop server?")


def _wrong(key: str, rule: str) -> ConfigError:
    return ConfigError(f"attestors.{NAME}.{key}: {rule}", field=f"attestors.{NAME}.{key}")


def _object(data: bytes, limit: int, field: str) -> dict[str, object]:
    return read_object(data, limit, field=field, what=NAME)


def _certificates(value: object, limit: int) -> tuple[CertificateFacts, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{_PAYLOAD}: no certificate to attest", field=_PAYLOAD)
    if len(value) > limit:
        raise InvalidRequest(f"{_PAYLOAD}: at most {limit - 1} intermediates are read", field=_PAYLOAD)
    return tuple(
        read_certificate(bytes_in(text, f"{_PAYLOAD}.certificates", MAX_PRESENTED_BYTES), field=_PAYLOAD)
        for text in value
    )


def _check_usage(leaf: CertificateFacts) -> None:
    if leaf.key_usage is None or not leaf.key_usage.digital_signature:
        raise Forbidden("certificate not intended for digital signature use")
    if leaf.is_ca:
        raise Forbidden("certificate verification failed: a CA is not a node")


def _check_answer(answer: Mapping[str, object], kind: str, key: PublicKey, nonce: bytes) -> None:
    part = member(answer, kind, _ANSWER)
    theirs = bytes_in(part.get("nonce"), f"{_ANSWER}.nonce", NONCE_BYTES)
    if len(theirs) != NONCE_BYTES:
        raise InvalidRequest(f"{_ANSWER}.nonce: must have {NONCE_BYTES} bytes", field=_ANSWER)
    digest = hashlib.sha256(nonce + theirs).digest()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            signature = bytes_in(part.get("signature"), f"{_ANSWER}.signature", _MAX_RSA_BITS // 8)
            key.verify(signature, digest, _PSS, _DIGEST)
        else:
            r, s = (int.from_bytes(bytes_in(part.get(name), f"{_ANSWER}.{name}", _SCALAR_BYTES)) for name in ("r", "s"))
            key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_DIGEST))
    except InvalidSignature:
        raise Forbidden("challenge response verification failed: the signature is not the certificate's") from None


def _san_selectors(leaf: CertificateFacts, trust_domain: TrustDomain) -> tuple[tuple[str, str], ...]:
    """(key, value) of each URI SAN `x509pop://<trust domain>/<key>/<value>`."""
    names = leaf.alternative_names
    found = []
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else ():
        try:
            parts = urlsplit(uri)
            key, _, value = unquote(parts.path, errors="strict").removeprefix("/").partition("/")
        except ValueError:
            continue
        if parts.scheme == NAME and parts.netloc == trust_domain.name and key and value and ":" not in key:
            found.append((key, value))
    if len(found) > MAX_SANS:
        raise Forbidden(f"failed to attest: more than {MAX_SANS} x509pop names in the certificate")
    return tuple(sorted(set(found)))


def _common_name(leaf: CertificateFacts) -> str:
    """The last common name, as Go reads it; "" when there is none."""
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = names[-1].value if names else ""
    return value if isinstance(value, str) else ""


def _fingerprint(der: bytes) -> str:
    return hashlib.sha1(der, usedforsecurity=False).hexdigest()  # SPIRE's name of a certificate, not a proof


def _serial_hex(serial: int) -> str:
    return minimal(serial).hex()
