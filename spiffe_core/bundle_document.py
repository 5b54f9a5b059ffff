"""Trust bundles as documents: SPIFFE's JWK Set, maps of them, and PEM.

A document does not say which trust domain it belongs to; the caller must (SPIFFE Trust Domain and Bundle section 3).
Reading has two outcomes: an entry that cannot be used is *skipped* with a warning and the rest is kept; a document
that is not what it claims to be is *refused* whole, and whoever asked keeps what it had. A document whose every entry
is skipped is an empty bundle: nothing of that domain is trusted any more.

Choices where the standard leaves one: a byte order mark, a member name given twice anywhere, NaN and numbers of absurd
length refuse the document; line breaks in x5c skip the entry; two token keys under one kid are both skipped; one bad
bundle refuses a whole map.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding

from spiffe_core.bundle import (
    MAX_AUTHORITIES,
    MAX_REFRESH_HINT,
    MAX_SEQUENCE,
    JwtAuthority,
    TrustBundle,
    WitAuthority,
    X509Authority,
)
from spiffe_core.crypto.certificates import MAX_CERTIFICATE_BYTES, public_key_of
from spiffe_core.crypto.jwk import (
    PRIVATE_MEMBERS,
    authority_key_from_jwk,
    authority_key_to_jwk,
    key_from_jwk,
    key_to_jwk,
)
from spiffe_core.crypto.keys import check_authority_key, spki_der
from spiffe_core.errors import InvalidBundle, InvalidCertificate
from spiffe_core.spiffe_id import TrustDomain, shown

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_MAP_BYTES = 32 * 1024 * 1024
MAX_TRUST_DOMAINS = 20_000
MAX_WARNINGS = 20

_Token = TypeVar("_Token", JwtAuthority, WitAuthority)
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle that was read, and what was odd about its document (at most 20 sentences)."""

    bundle: TrustBundle
    warnings: tuple[str, ...] = ()


def dump_bundle(bundle: TrustBundle) -> bytes:
    """The SPIFFE bundle document (section 4): X.509 entries without kid, token keys with it, public members only.

    Raises:
        InvalidBundle: a key ID stands for two token keys.
    """
    return _json(_document(bundle, with_hint=True))


def load_bundle(data: bytes, trust_domain: TrustDomain) -> LoadedBundle:
    """Read a SPIFFE bundle document as the bundle of `trust_domain`.

    Raises:
        InvalidBundle: the document is refused whole.
    """
    return _Loader(trust_domain).document(_parsed(data, MAX_DOCUMENT_BYTES))


def dump_bundle_map(bundles: Sequence[TrustBundle]) -> bytes:
    """A map of bundles by trust domain name (section 5), without refresh hints.

    Raises:
        InvalidBundle: two bundles of one trust domain.
    """
    by_name = {bundle.trust_domain.name: _document(bundle, with_hint=False) for bundle in bundles}
    if len(by_name) != len(bundles):
        raise InvalidBundle("trust_domains: two bundles of one trust domain", field="trust_domains")
    return _json({"trust_domains": by_name})


def load_bundle_map(data: bytes, *, own: TrustDomain | None = None) -> dict[TrustDomain, LoadedBundle]:
    """Read a map of bundles. An entry for `own` is left out: the own bundle is never taken from somebody else.

    Raises:
        InvalidBundle: the map is refused as a unit (one bad name or bundle is enough).
    """
    document = _parsed(data, MAX_MAP_BYTES)
    entries = document.get("trust_domains")
    if not isinstance(entries, dict):
        raise InvalidBundle("trust_domains: is missing or not an object", field="trust_domains")
    if len(entries) > MAX_TRUST_DOMAINS:
        raise InvalidBundle(f"trust_domains: at most {MAX_TRUST_DOMAINS} are read", field="trust_domains")
    loaded = {}
    for name, entry in entries.items():
        trust_domain = TrustDomain(name)
        if not isinstance(entry, dict):
            raise InvalidBundle(f"trust_domains.{name}: is not an object", field="trust_domains")
        one = _Loader(trust_domain).document(entry)
        if trust_domain != own:
            loaded[trust_domain] = replace(one, bundle=replace(one.bundle, refresh_hint=0))
    return loaded


def dump_token_keys(authorities: Sequence[JwtAuthority] | Sequence[WitAuthority], *, use: str = "") -> bytes:
    """A JWK Set of token keys (RFC 7517), as the Workload API serves it: `kid` and key members, and `use` if given.

    The keys of one use only, so that nobody takes a WIT or X.509 key for one that verifies JWTs (WAPI-37, WAPI-39).
    """
    member = {"use": use} if use else {}
    return _json({"keys": [{**member, "kid": one.key_id, **key_to_jwk(one.key)} for one in authorities]})


def load_token_keys(data: bytes, trust_domain: TrustDomain, use: str) -> LoadedBundle:
    """Read a JWK Set as the Workload API serves it: keys say no `use`, and are then of this one (conformance D7).

    Raises:
        InvalidBundle: the set is refused whole.
    """
    return _Loader(trust_domain, use).document(_parsed(data, MAX_DOCUMENT_BYTES))


def dump_bundle_pem(bundle: TrustBundle) -> bytes:
    """The X.509 authorities as PEM blocks."""
    return b"".join(authority.certificate.public_bytes(Encoding.PEM) for authority in bundle.x509_authorities)


def load_bundle_pem(data: bytes, trust_domain: TrustDomain) -> LoadedBundle:
    """Read CA certificates in PEM as the bundle of `trust_domain`. Text between the blocks is ignored.

    Raises:
        InvalidBundle: there is no block, or one is not a CA certificate.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidBundle(f"bundle: has more than {MAX_DOCUMENT_BYTES} bytes")
    blocks = _PEM_BLOCK.findall(data)
    if not blocks or len(blocks) != data.count(b"-----BEGIN "):
        raise InvalidBundle("bundle: must hold CERTIFICATE blocks in PEM and no others")
    authorities: dict[bytes, X509Authority] = {}
    for number, block in enumerate(blocks, 1):
        try:
            authority = _ca(base64.b64decode(b"".join(block.split()), validate=True))
        except binascii.Error:
            raise InvalidBundle(f"bundle: PEM block {number} is not base64") from None
        except (InvalidBundle, InvalidCertificate) as refusal:
            raise InvalidBundle(f"bundle: PEM block {number}: {refusal.public}") from None
        authorities[authority.der] = authority
    return LoadedBundle(TrustBundle(trust_domain, tuple(authorities.values())))


def _document(bundle: TrustBundle, *, with_hint: bool) -> dict[str, object]:
    keys: list[dict[str, object]] = []
    for authority in bundle.x509_authorities:
        key = check_authority_key(public_key_of(authority.facts), field="x509_authorities")
        x5c = [base64.b64encode(authority.der).decode("ascii")]
        keys.append({"use": "x509-svid", **authority_key_to_jwk(key), "x5c": x5c})
    keys.extend({"use": "jwt-svid", "kid": jwt.key_id, **key_to_jwk(jwt.key)} for jwt in bundle.jwt_authorities)
    keys.extend({"use": "wit-svid", "kid": wit.key_id, **key_to_jwk(wit.key)} for wit in bundle.wit_authorities)
    if {jwt.key_id for jwt in bundle.jwt_authorities} & {wit.key_id for wit in bundle.wit_authorities}:
        raise InvalidBundle("keys: a kid must be unique over JWT and WIT keys (WIT-SVID 6.1)", field="keys")
    document: dict[str, object] = {"keys": keys, "spiffe_sequence": bundle.sequence}
    if with_hint and bundle.refresh_hint:
        document["spiffe_refresh_hint"] = bundle.refresh_hint
    return document


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _parsed(data: bytes, limit: int) -> dict[str, object]:
    if len(data) > limit:
        raise InvalidBundle(f"document: has more than {limit} bytes")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError):
        # The JSON text is the other side's: neither it nor a parser's quotation of it belongs in a message.
        raise InvalidBundle("document: is not one JSON text in UTF-8 without a byte order mark") from None
    if not isinstance(document, dict):
        raise InvalidBundle("document: is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidBundle("document: a member name is given twice")
    return members


def _no_constant(_: str) -> NoReturn:
    raise InvalidBundle("document: NaN and Infinity are not JSON")


def _ca(der: bytes) -> X509Authority:
    """A certificate that can be an authority: cA=TRUE, keyCertSign, a key that may verify."""
    authority = X509Authority(der)
    usage = authority.facts.key_usage
    if not authority.facts.is_ca or usage is None or not usage.key_cert_sign:
        raise InvalidBundle("the certificate is not a CA that may sign certificates", field="x5c")
    check_authority_key(public_key_of(authority.facts), field="x5c")
    return authority


class _Loader:
    """Reads one document and collects what is odd."""

    def __init__(self, trust_domain: TrustDomain, default_use: str = "") -> None:
        self._trust_domain = trust_domain
        self._default_use = default_use
        self._warnings: list[str] = []
        self._x509: dict[bytes, X509Authority] = {}
        self._jwt: dict[str, JwtAuthority | None] = {}
        self._wit: dict[str, WitAuthority | None] = {}

    def document(self, document: Mapping[str, object]) -> LoadedBundle:
        keys = document.get("keys")
        if not isinstance(keys, list):
            raise InvalidBundle("keys: is missing or not an array", field="keys")
        if len(keys) > MAX_AUTHORITIES:
            raise InvalidBundle(f"keys: at most {MAX_AUTHORITIES} are read", field="keys")
        for number, jwk in enumerate(keys):
            try:
                self._key(jwk)
            except (InvalidBundle, InvalidCertificate) as refusal:
                self._warn(f"keys[{number}] skipped: {refusal.public}")
        bundle = TrustBundle(
            self._trust_domain,
            tuple(self._x509.values()),
            tuple(key for key in self._jwt.values() if key is not None),
            tuple(key for key in self._wit.values() if key is not None),
            self._number(document, "spiffe_sequence", MAX_SEQUENCE),
            self._number(document, "spiffe_refresh_hint", MAX_REFRESH_HINT, clamp=True),
        )
        if bundle.is_empty:
            self._warn(f"no usable key: no SVID of {self._trust_domain} will be trusted")
        return LoadedBundle(bundle, tuple(self._warnings))

    def _key(self, jwk: object) -> None:
        if not isinstance(jwk, dict):
            raise InvalidBundle("is not an object")
        if PRIVATE_MEMBERS & jwk.keys():
            raise InvalidBundle("ALARM: holds private or symmetric key members; tell the publisher")
        match jwk.get("use", self._default_use):
            case "x509-svid":
                self._x509_key(jwk)
            case "jwt-svid":
                kid, spki = _token_key(jwk)
                self._keep(self._jwt, JwtAuthority(kid, spki))
            case "wit-svid":
                kid, spki = _token_key(jwk)
                self._keep(self._wit, WitAuthority(kid, spki))
            case _:
                raise InvalidBundle("use: is missing or unknown")

    def _x509_key(self, jwk: Mapping[str, object]) -> None:
        key = authority_key_from_jwk(jwk)
        certificates = jwk.get("x5c")
        if not isinstance(certificates, list) or not certificates:
            raise InvalidBundle("x5c: is missing or empty")
        authority = _ca(_certificate(certificates[0]))
        if spki_der(key) != spki_der(check_authority_key(public_key_of(authority.facts), field="x5c")):
            raise InvalidBundle("x5c: the certificate holds another key than the JWK")
        if len(certificates) > 1:
            self._warn("x5c: holds more than one certificate; only the first is used")
        if "kid" in jwk:
            self._warn("kid: does not belong in an x509-svid entry; it is ignored")
        self._x509[authority.der] = authority

    def _keep(self, table: dict[str, _Token | None], added: _Token) -> None:
        known = table.get(added.key_id, added)
        if known != added:  # another key, or None: this kid was already given up
            table[added.key_id] = None
            raise InvalidBundle(f"kid: {shown(added.key_id)} stands for two keys; none of them is used")
        table[added.key_id] = added

    def _number(self, document: Mapping[str, object], member: str, limit: int, *, clamp: bool = False) -> int:
        """A non-negative integer member; what is not one counts as absent, because a guess would be worse."""
        value = document.get(member, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value > limit and not clamp):
            self._warn(f"{member}: is not an integer from 0 to {limit}; it is ignored")
            return 0
        if value > limit:
            self._warn(f"{member}: is larger than {limit}; that is used instead")
        return min(value, limit)

    def _warn(self, text: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(text)


def _certificate(text: object) -> bytes:
    """x5c is standard base64 with padding and nothing else (RFC 7517 section 4.7)."""
    if not isinstance(text, str) or len(text) > MAX_CERTIFICATE_BYTES * 2:
        raise InvalidBundle("x5c: is not a base64 string")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidBundle("x5c: is not standard base64 without line breaks") from None


def _token_key(jwk: Mapping[str, object]) -> tuple[str, bytes]:
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not kid:
        raise InvalidBundle("kid: is missing, empty or not a string")
    return kid, spki_der(key_from_jwk(jwk))
