"""What an OpenID Connect verifier is told: who issues our JWT-SVIDs, and with which keys they are verified.

Two documents: the provider configuration (OpenID Connect Discovery 1.0 section 3) and the JWK Set (RFC 7517), with the
members that SPIRE's discovery provider gives them. Both depend on nothing but the names in the settings and the keys in
the bundle: the same keys give the same bytes on every server, whatever order they came in.

An issuer is a URL that stands in tokens letter for letter. Nothing of a request gets into a document: the Host header
only chooses among documents that the settings already determine.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.jose import algorithm_of
from spiffe_core.crypto.jwk import key_to_jwk
from spiffe_core.errors import InvalidRequest

WELL_KNOWN = "/.well-known/openid-configuration"
KEYS = "/keys"

MAX_DOMAINS = 64
MAX_HOST = 253
MAX_URL = 1024
MAX_PREFIX = 256
ALGORITHMS = ("RS256", "ES256", "ES384")
"""What an issuer of ours can sign with, whichever key type is chosen today; Discovery demands RS256 in the list."""

_PORTS = {"https": 443, "http": 80}
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HIGHEST_PORT = 65535
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_DOTS = frozenset({".", ".."})


@dataclass(frozen=True, slots=True)
class Authority:
    """Host and port of a URL or of a Host header; `port` None where none is written.

    An IPv6 address has no brackets.
    """

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str, *, field: str = "domains") -> Authority:
        """Read `host`, `host:port`, `1.2.3.4` or `[::1]:port`; capital letters are small ones.

        Raises:
            InvalidRequest: it is none of them. Names in other scripts are written in Punycode.
        """
        host, port = _split(text.lower(), field)
        if not host.isascii():
            raise InvalidRequest(f'{field}: must be written in Punycode ("xn--...")', field=field)
        if ":" in host or host.replace(".", "").isdigit():
            try:
                host = str(ipaddress.ip_address(host))
            except ValueError:
                raise InvalidRequest(f"{field}: is not an IP address", field=field) from None
        elif len(host) > MAX_HOST or not all(map(_LABEL.fullmatch, host.split("."))):
            raise InvalidRequest(f'{field}: must be a host name such as "oidc.example.org"', field=field)
        return cls(host, port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """Whether the host is an address; `parse` lets no other host have digits alone."""
        return ":" in self.host or self.host.replace(".", "").isdigit()

    def as_of(self, scheme: str) -> Authority:
        """Without the port that the scheme implies."""
        return Authority(self.host) if self.port == _PORTS[scheme] else self


@dataclass(frozen=True, slots=True)
class IssuerUrl:
    """An issuer: `text` as it stands in tokens, and where a verifier looks because of it."""

    text: str
    scheme: str
    authority: Authority
    path: str
    """Empty, or like "/a/b": no slash at its end."""

    @classmethod
    def parse(cls, text: str, *, field: str = "jwt_issuer", insecure: bool = False) -> IssuerUrl:
        """Read an issuer: https (with `insecure` http too), without query, fragment or user (Discovery section 3).

        Raises:
            InvalidRequest: with what is wrong.
        """
        parts = _url(text, field=field, insecure=insecure)
        path = parts.path.removesuffix("/")
        check_path(path, field=field)
        return cls(text, parts.scheme, Authority.parse(parts.netloc, field=field).as_of(parts.scheme), path)

    @property
    def discovery_url(self) -> str:
        """Where verifiers ask (Discovery section 4): a slash at the issuer's end is not doubled."""
        return f"{self.text.removesuffix('/')}{WELL_KNOWN}"

    @property
    def keys_url(self) -> str:
        """Where the keys are if nobody says otherwise."""
        return f"{self.text.removesuffix('/')}{KEYS}"


@dataclass(frozen=True, slots=True)
class Provider:
    """The names of one discovery provider.

    `domains` are the Host values that are answered; one without a port stands for the scheme's own port. With an
    `issuer` every domain tells that one, without one each domain is the issuer of its own URL.
    """

    domains: tuple[Authority, ...]
    issuer: IssuerUrl | None = None
    jwks_uri: str = ""
    path_prefix: str | None = None
    """Below which path is answered; None for the path of `issuer`, which is right unless a proxy strips it."""
    key_use: bool = True
    scheme: str = "https"

    def __post_init__(self) -> None:
        if not 0 < len(self.domains) <= MAX_DOMAINS:
            raise InvalidRequest(f"domains: must have 1 to {MAX_DOMAINS} elements", field="domains")
        if self.scheme not in _PORTS:
            raise InvalidRequest("scheme: must be https or http", field="scheme")
        if self.jwks_uri:
            _url(self.jwks_uri, field="jwks_uri", insecure=self.scheme == "http")
        if self.path_prefix is not None:
            prefix = self.path_prefix.removesuffix("/")
            check_path(prefix, field="server_path_prefix")
            object.__setattr__(self, "path_prefix", prefix)

    @property
    def prefix(self) -> str:
        """What stands before both paths: empty, or like "/a/b"."""
        if self.path_prefix is not None:
            return self.path_prefix
        return self.issuer.path if self.issuer is not None else ""

    def issuers(self) -> dict[str, IssuerUrl]:
        """The issuer that each domain tells, by `str(domain)`."""
        if self.issuer is not None:
            return {str(domain): self.issuer for domain in self.domains}
        return {
            str(domain): IssuerUrl.parse(
                f"{self.scheme}://{domain.as_of(self.scheme)}{self.prefix}", field="domains", insecure=True
            )
            for domain in self.domains
        }

    def domain_of(self, host: str) -> str | None:
        """Which of the domains a Host header names, None for none of them.

        A port says under which issuer the caller knows us, so it must be the scheme's or stand in the list. With one
        fixed issuer it says nothing, and any port will do.
        """
        try:
            asked = Authority.parse(host, field="host")
        except InvalidRequest:
            return None
        if asked in self.domains:
            return str(asked)
        bare = Authority(asked.host)
        if bare in self.domains and (self.issuer is not None or asked.as_of(self.scheme) == bare):
            return str(bare)
        return None


@dataclass(frozen=True, slots=True)
class Documents:
    """All that a provider publishes, as finished bytes: the configuration by domain, and the keys."""

    configuration: Mapping[str, bytes]
    keys: bytes
    key_ids: tuple[str, ...]


def render(provider: Provider, authorities: Sequence[JwtAuthority]) -> Documents:
    """The documents of a provider that has these keys."""
    ordered = sorted(authorities, key=lambda one: one.key_id)
    algorithms = {algorithm_of(one.key) for one in ordered}
    offered = (*ALGORITHMS, *sorted(algorithms.difference(ALGORITHMS)))
    configuration = {
        domain: configuration_document(issuer.text, provider.jwks_uri or issuer.keys_url, offered)
        for domain, issuer in provider.issuers().items()
    }
    keys = key_set(ordered, use=provider.key_use)
    return Documents(MappingProxyType(configuration), keys, tuple(one.key_id for one in ordered))


def configuration_document(issuer: str, jwks_uri: str, algorithms: Sequence[str] = ALGORITHMS) -> bytes:
    """The provider configuration; SPIRE's members in SPIRE's order. There is nobody to authorize: that URL is empty."""
    return _document(
        {
            "issuer": issuer,
            "jwks_uri": jwks_uri,
            "authorization_endpoint": "",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": list(algorithms),
        }
    )


def key_set(authorities: Sequence[JwtAuthority], *, use: bool) -> bytes:
    """The JWK Set in the order of key IDs: `alg` on every key, and `use` "sig" if asked (some verifiers insist)."""
    member = {"use": "sig"} if use else {}
    return _document(
        {
            "keys": [
                {**member, "kid": one.key_id, "alg": algorithm_of(one.key), **key_to_jwk(one.key)}
                for one in sorted(authorities, key=lambda one: one.key_id)
            ]
        }
    )


def check_path(path: str, *, field: str) -> None:
    """A path prefix: "" or "/a/b" of plain characters, because proxies and buckets differ on all others.

    Raises:
        InvalidRequest: it is something else.
    """
    if len(path) > MAX_PREFIX or not _PATH.fullmatch(path) or _DOTS & set(path.split("/")):
        raise InvalidRequest(
            f'{field}: its path must be like "/a/b", of letters, digits and "-._~", at most {MAX_PREFIX} characters',
            field=field,
        )


def _url(text: str, *, field: str, insecure: bool) -> SplitResult:
    """An absolute URL without user, query and fragment."""
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidRequest(f"{field}: must be a URL of at most {MAX_URL} ASCII characters", field=field)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InvalidRequest(f"{field}: is not a URL", field=field) from None
    if not text.startswith(f"{parts.scheme}://") or parts.scheme not in ({"https", "http"} if insecure else {"https"}):
        raise InvalidRequest(f'{field}: must begin with "https://"; verifiers accept nothing else', field=field)
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise InvalidRequest(f"{field}: must have no user, query or fragment", field=field)
    Authority.parse(parts.netloc, field=field)
    return parts


def _split(text: str, field: str) -> tuple[str, int | None]:
    """Host and port; brackets around an IPv6 address are taken off."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise InvalidRequest(f'{field}: an IPv6 address is written "[::1]" or "[::1]:443"', field=field)
    else:
        host, colon, rest = text.partition(":")
        rest = colon + rest
    if not rest:
        return host, None
    if not _PORT.fullmatch(rest[1:]) or int(rest[1:]) > _HIGHEST_PORT:
        raise InvalidRequest(f"{field}: the port must be a number from 1 to 65535", field=field)
    return host, int(rest[1:])


def _document(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
