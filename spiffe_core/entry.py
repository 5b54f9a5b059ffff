"""Registration entries: which selectors are entitled to which SPIFFE ID, and below which parent.

The rules are SPIRE's (`pkg/server/api/entry.go`) with a bound on every count. A value out of range is refused, never
silently changed; `federates_with` is a set in the order given.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter

from spiffe_core.dns_name import check_dns_name
from spiffe_core.errors import InvalidEntry, InvalidRequest
from spiffe_core.selectors import Selector, canonical, digest_in_order
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

MAX_ID_BYTES = 255
MAX_HINT_BYTES = 1024
MAX_SELECTORS = 100
MAX_DNS_NAMES = 500
MAX_FEDERATES_WITH = 500
MAX_TTL = 2**31 - 1
MAX_INT64 = 2**63 - 1

_RANGES = (
    ("x509_svid_ttl", MAX_TTL),
    ("jwt_svid_ttl", MAX_TTL),
    ("expires_at", MAX_INT64),
    ("revision_number", MAX_INT64),
    ("created_at", MAX_INT64),
)
_ID = re.compile(r"[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class RegistrationEntry:
    """One registration entry. Times are unix seconds, TTLs seconds; 0 means "the default" or "never"."""

    id: str
    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: frozenset[Selector]
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    admin: bool = False
    downstream: bool = False
    expires_at: int = 0
    dns_names: tuple[str, ...] = ()
    revision_number: int = 0
    store_svid: bool = False
    hint: str = ""
    created_at: int = 0
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False
    _digests: tuple[bytes, bytes] | None = field(default=None, init=False, repr=False, compare=False)
    _ordered: tuple[Selector, ...] | None = field(default=None, init=False, repr=False, compare=False)
    _wire: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise InvalidEntry(
                f"id: must be 1 to {MAX_ID_BYTES} characters of A-Z, a-z, 0-9, '-', '_' and '.'; "
                "leave it empty in a request to have one made",
                field="id",
            )
        _check_selectors(self)
        for name, limit in _RANGES:
            value = getattr(self, name)
            if value:
                _check_range(name, value, limit)
        if self.hint:
            _check_hint(self.hint)
        if self.federates_with:
            object.__setattr__(self, "federates_with", tuple(dict.fromkeys(self.federates_with)))
            _check_count("federates_with", len(self.federates_with), MAX_FEDERATES_WITH)
        if self.dns_names:
            _check_dns_names(self.dns_names)

    @property
    def similarity(self) -> bytes:
        """SHA-256 over SPIFFE ID, parent and selectors: two entries with one digest are "similar" (AlreadyExists)."""
        return self._digested()[0]

    @property
    def selectors_digest(self) -> bytes:
        """The digest of the set of selectors."""
        return self._digested()[1]

    @property
    def ordered_selectors(self) -> tuple[Selector, ...]:
        """The selectors in canonical order, sorted once: digests, the database and the wire have them so."""
        if self._ordered is None:
            object.__setattr__(self, "_ordered", canonical(self.selectors))
        assert self._ordered is not None
        return self._ordered

    def encoded(self, encode: Callable[[RegistrationEntry], bytes]) -> bytes:
        """The entry as a message, encoded once for the view in memory and its creator's answer; by one function."""
        if self._wire is None:
            object.__setattr__(self, "_wire", encode(self))
        assert self._wire is not None
        return self._wire

    def _digested(self) -> tuple[bytes, bytes]:
        """Both digests, made once: what stores an entry asks for them again and again."""
        if self._digests is None:
            names = [str(one).encode() for one in (self.spiffe_id, self.parent_id)]
            selectors = digest_in_order(self.ordered_selectors)
            sized = b"".join([part for name in names for part in (len(name).to_bytes(4, "big"), name)])
            object.__setattr__(self, "_digests", (hashlib.sha256(sized + selectors).digest(), selectors))
        assert self._digests is not None
        return self._digests

    def stamped(self, *, revision_number: int, created_at: int) -> RegistrationEntry:
        """The same entry with what only a server decides; nothing that was checked is checked again."""
        _check_range("revision_number", revision_number, MAX_INT64)
        _check_range("created_at", created_at, MAX_INT64)
        made = object.__new__(RegistrationEntry)
        for put, value in zip(_PUT, _FIELDS(self), strict=True):
            put(made, value)
        object.__setattr__(made, "revision_number", revision_number)
        object.__setattr__(made, "created_at", created_at)
        object.__setattr__(made, "_wire", None)
        return made


_NAMES = tuple(one.name for one in fields(RegistrationEntry))
_FIELDS = attrgetter(*_NAMES)
_PUT = tuple(vars(RegistrationEntry)[name].__set__ for name in _NAMES)
"""What writes each slot: entries are copied by the hundred thousand."""


def check_membership(entry: RegistrationEntry, trust_domain: TrustDomain) -> None:
    """Check what only a server of `trust_domain` can say of an entry.

    Raises:
        InvalidEntry: naming `spiffe_id` or `parent_id`.
    """
    for name, spiffe_id in (("spiffe_id", entry.spiffe_id), ("parent_id", entry.parent_id)):
        if not spiffe_id.member_of(trust_domain):
            raise InvalidEntry(
                f"{name}: {spiffe_id} is not a member of this server's trust domain {trust_domain}", field=name
            )
        if not spiffe_id.path:
            raise InvalidEntry(f"{name}: needs a path after the trust domain, such as {spiffe_id}/web", field=name)
    if entry.spiffe_id.is_reserved:
        raise InvalidEntry("spiffe_id: paths under /spire are reserved; choose another", field="spiffe_id")


def similarity(entry: RegistrationEntry) -> bytes:
    """The entry's `similarity`, as a function."""
    return entry.similarity


def _check_range(field: str, value: int, limit: int) -> None:
    if not 0 <= value <= limit:
        raise InvalidEntry(f"{field}: must lie between 0 and {limit}, got {value}", field=field)


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidEntry(f"{field}: at most {limit} are allowed, got {count}", field=field)


def _check_selectors(entry: RegistrationEntry) -> None:
    if not entry.selectors:
        raise InvalidEntry("selectors: at least one is needed", field="selectors")
    _check_count("selectors", len(entry.selectors), MAX_SELECTORS)
    if not entry.store_svid:
        return
    if len({selector.type for selector in entry.selectors}) > 1:
        raise InvalidEntry("selectors: all must have one type when store_svid is set", field="selectors")
    if entry.disable_x509_svid_prefetch:
        raise InvalidEntry(
            "disable_x509_svid_prefetch: cannot be combined with store_svid", field="disable_x509_svid_prefetch"
        )


def _check_hint(hint: str) -> None:
    # A character is at least one byte: a huge hint is refused without being encoded.
    if len(hint) > MAX_HINT_BYTES:
        raise InvalidEntry(f"hint: has more than {MAX_HINT_BYTES} bytes", field="hint")
    try:
        size = len(hint.encode())
    except UnicodeEncodeError:
        raise InvalidEntry("hint: is not valid UTF-8", field="hint") from None
    if size > MAX_HINT_BYTES:
        raise InvalidEntry(f"hint: has more than {MAX_HINT_BYTES} bytes", field="hint")


def _check_dns_names(names: tuple[str, ...]) -> None:
    _check_count("dns_names", len(names), MAX_DNS_NAMES)
    if len({name.lower() for name in names}) != len(names):
        raise InvalidEntry("dns_names: a name is given twice", field="dns_names")
    for name in names:
        try:
            check_dns_name(name)
        except InvalidRequest as refusal:
            raise InvalidEntry(refusal.public, field="dns_names") from None
