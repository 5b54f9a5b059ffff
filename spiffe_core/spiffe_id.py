"""Trust domain names and SPIFFE IDs (SPIFFE-ID section 2).

Parsed once, with a full match; holding a value means that it was checked. Nothing is normalised: upper case in the
scheme or the trust domain is refused with an error that names the lower-case form, percent-encoding is never decoded,
and dot segments are never removed. A trust domain name is not a host name: `10.0.0.1` and `a_b` are names like others.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from spiffe_core.errors import InvalidId

MAX_TRUST_DOMAIN_BYTES = 255
MAX_SPIFFE_ID_BYTES = 2048

_SCHEME = "spiffe://"
_NAME = re.compile(r"[a-z0-9._-]+")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_PATH = re.compile(rf"(?:/{_SEGMENT})*")
_BAD_IN_NAME = re.compile(r"[^a-z0-9._-]")
_BAD_IN_SEGMENT = re.compile(r"[^A-Za-z0-9._-]")
_SHOWN = 80


def shown(text: str) -> str:
    """`text` in quotes for an error message: ASCII, control characters escaped, at most 80 characters of it."""
    return ascii(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!a}..."


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain name, such as `example.org`."""

    name: str

    def __post_init__(self) -> None:
        if len(self.name) > MAX_TRUST_DOMAIN_BYTES or not _NAME.fullmatch(self.name):
            raise _bad_name(self.name, "trust_domain")

    @classmethod
    def parse(cls, text: str, *, field: str = "trust_domain") -> TrustDomain:
        """Read `example.org` or `spiffe://example.org`.

        Raises:
            InvalidId: with `field`, and a message that names the rule.
        """
        name = text.removeprefix(_SCHEME)
        if len(name) > MAX_TRUST_DOMAIN_BYTES or not _NAME.fullmatch(name):
            if text[: len(_SCHEME)].lower() == _SCHEME and not text.startswith(_SCHEME):
                raise _bad_scheme(text, field)
            raise _bad_name(name, field)
        return cls(name)

    @property
    def id(self) -> SpiffeId:
        """The SPIFFE ID of the trust domain itself, which only signing authorities carry."""
        return SpiffeId(self, "")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID: a trust domain and a path that is empty or begins with a slash."""

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        length = len(_SCHEME) + len(self.trust_domain.name) + len(self.path)
        if length > MAX_SPIFFE_ID_BYTES:
            raise _too_long("spiffe_id")
        if not _PATH.fullmatch(self.path):
            raise _bad_path(self.path, "spiffe_id")

    @classmethod
    def parse(cls, text: str, *, field: str = "spiffe_id") -> SpiffeId:
        """Read `spiffe://trust-domain/path`.

        Raises:
            InvalidId: with `field`, and a message that names the rule.
        """
        if len(text) > MAX_SPIFFE_ID_BYTES:
            raise _too_long(field)
        if not text.startswith(_SCHEME):
            raise _bad_scheme(text, field)
        slash = text.find("/", len(_SCHEME))
        name, path = (text[len(_SCHEME) :], "") if slash < 0 else (text[len(_SCHEME) : slash], text[slash:])
        if len(name) > MAX_TRUST_DOMAIN_BYTES or not _NAME.fullmatch(name):
            raise _bad_name(name, field)
        if not _PATH.fullmatch(path):
            raise _bad_path(path, field)
        return _made(cls, _trust_domain(name), path)

    @classmethod
    def of(cls, trust_domain: TrustDomain, path: str, *, field: str = "spiffe_id") -> SpiffeId:
        """The ID of a trust domain that was read already and a path; as `parse`, it names `field` in a refusal."""
        if len(_SCHEME) + len(trust_domain.name) + len(path) > MAX_SPIFFE_ID_BYTES:
            raise _too_long(field)
        if not _PATH.fullmatch(path):
            raise _bad_path(path, field)
        return _made(cls, trust_domain, path)

    @property
    def is_reserved(self) -> bool:
        """Whether the path is `/spire` or below it: the server's and the agents' own names."""
        return self.path == "/spire" or self.path.startswith("/spire/")

    def member_of(self, trust_domain: TrustDomain) -> bool:
        """Whether this ID belongs to `trust_domain`: the whole name is compared, never a prefix or suffix."""
        return self.trust_domain.name == trust_domain.name

    def is_under(self, prefix_path: str) -> bool:
        """Whether the path is `prefix_path` or below it, on segment boundaries: `/production` is not under `/prod`."""
        if not _PATH.fullmatch(prefix_path):
            raise _bad_path(prefix_path, "prefix_path")
        return self.path == prefix_path or self.path.startswith(f"{prefix_path}/") or not prefix_path

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain.name}{self.path}"


def _made(cls: type[SpiffeId], trust_domain: TrustDomain, path: str) -> SpiffeId:
    """The value of a path that was checked a moment ago."""
    made = object.__new__(cls)
    object.__setattr__(made, "trust_domain", trust_domain)
    object.__setattr__(made, "path", path)
    return made


@functools.lru_cache(maxsize=1024)
def _trust_domain(name: str) -> TrustDomain:
    """Trust domains are few."""
    return TrustDomain(name)


def _too_long(field: str) -> InvalidId:
    return InvalidId(f"{field}: a SPIFFE ID has at most {MAX_SPIFFE_ID_BYTES} bytes; shorten it", field=field)


def _upper_case(fixed: str, part: str, field: str) -> InvalidId:
    return InvalidId(
        f"{field}: upper case is not allowed in the {part}; write {shown(fixed)} (SPIFFE-ID 2.1)", field=field
    )


def _bad_scheme(text: str, field: str) -> InvalidId:
    if not text:
        return InvalidId(f"{field}: is empty; write spiffe://<trust domain>/<path>", field=field)
    if text[: len(_SCHEME)].lower() == _SCHEME:
        name, slash, path = text[len(_SCHEME) :].partition("/")
        return _upper_case(f"{_SCHEME}{name.lower()}{slash}{path}", "scheme", field)
    return InvalidId(f"{field}: must begin with spiffe:// (SPIFFE-ID 2), got {shown(text)}", field=field)


def _bad_name(name: str, field: str) -> InvalidId:
    """The most helpful refusal of a trust domain name."""
    if not name:
        return InvalidId(f"{field}: the trust domain name is missing (SPIFFE-ID 2.1)", field=field)
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        return InvalidId(
            f"{field}: a trust domain name has at most {MAX_TRUST_DOMAIN_BYTES} bytes; shorten it", field=field
        )
    if name.isascii() and _NAME.fullmatch(name.lower()):
        return _upper_case(name.lower(), "trust domain", field)
    if "://" in name:
        return InvalidId(f"{field}: write the bare trust domain name, not the URI {shown(name)}", field=field)
    found = _BAD_IN_NAME.search(name)
    bad = found.group() if found else name
    known = {
        "@": "user information is not allowed in the authority",
        ":": "a port is not allowed in the authority",
        "%": "percent-encoding is not allowed and is never decoded",
        "?": "a query is not allowed",
        "#": "a fragment is not allowed",
        "[": "an IPv6 literal is not a trust domain name",
        "/": "a path is not allowed in a trust domain name",
    }
    # The first special character decides, so that `u:p@host` is user information and not a port.
    rule = known["@"] if "@" in name else known.get(bad, "only a-z, 0-9, '.', '-' and '_' are allowed")
    return InvalidId(f"{field}: {rule} in the trust domain {shown(name)} (SPIFFE-ID 2.1)", field=field)


def _bad_path(path: str, field: str) -> InvalidId:
    """The most helpful refusal of a path."""
    if path.endswith("/"):
        rule = "a trailing slash is not allowed"
    elif not path.startswith("/"):
        rule = "a path begins with a slash"
    elif "?" in path:
        rule = "a query is not allowed"
    elif "#" in path:
        rule = "a fragment is not allowed"
    elif "%" in path:
        rule = "percent-encoding is not allowed and is never decoded"
    else:
        segments = path.split("/")[1:]
        if "" in segments:
            rule = "an empty segment is not allowed"
        elif any(segment in {".", ".."} for segment in segments):
            rule = "the segments '.' and '..' are not allowed"
        else:
            rule = "only A-Z, a-z, 0-9, '.', '-' and '_' are allowed in a segment"
    return InvalidId(f"{field}: {rule} in the path {shown(path)} (SPIFFE-ID 2.2)", field=field)
