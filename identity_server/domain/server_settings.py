"""What servers that share a database must have in common: the settings that show in what they issue (reliability R39).

An agent may call any of them, so where they differ the same entry's SVIDs would differ from call to call. Each server
writes its settings down as one canonical document; whoever finds another one says so. While default lifetimes differ
the shortest of them holds everywhere: nobody gets more than the strictest of the configurations gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = str | int | bool | None
"""What a setting can be; None: its subject is switched off, or the rule is the one of the product."""

X509_TTL = "svid.default_x509_ttl"
AGENT_TTL = "svid.agent_ttl"
JWT_TTL = "jwt.default_ttl"
WIT_TTL = "wit.default_ttl"

PRESENT_SECONDS = 900
"""A server that has not written for so long is taken for stopped: its settings no longer count."""
FORGET_SECONDS = 7 * 86_400
"""After so long its record goes, once nothing else needs it (`domain.absence`)."""
MAX_RECORDS = 256
"""So many servers are compared, those that wrote last."""
MAX_SHOWN = 128
"""So many characters of a value are told, and of many values and servers so many:"""
MAX_SHOWN_VALUES = 4
MAX_SHOWN_SERVERS = 3


@dataclass(frozen=True, slots=True)
class IssuingSettings:
    """Settings by their keys in the configuration, in the order of the keys; lifetimes in seconds. No secrets."""

    values: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> IssuingSettings:
        """The settings of a mapping."""
        return cls(tuple(sorted(values.items())))

    @classmethod
    def parse(cls, document: bytes) -> IssuingSettings:
        """Read a document again. One of another version may have other keys, and values that are not so plain.

        Raises:
            ValueError: it is not a JSON object.
        """
        found = json.loads(document)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  # what was stored is wrong, not what was passed
        return cls.of({key: _plain(value) for key, value in found.items()})

    @property
    def document(self) -> bytes:
        """Canonical JSON: keys sorted, no white space, so that equal settings are equal bytes."""
        return json.dumps(dict(self.values), sort_keys=True, separators=(",", ":")).encode()

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the document."""
        return hashlib.sha256(self.document).digest()

    def seconds(self, key: str) -> int:
        """A lifetime, 0 if there is none."""
        found = dict(self.values).get(key)
        return found if isinstance(found, int) and found > 0 else 0


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server's settings, and when it was there last, in unix seconds by its own clock."""

    server_id: str
    settings: IssuingSettings
    written_at: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not the same everywhere: what each server has, by server id."""

    key: str
    values: tuple[tuple[str, Value], ...]

    def __str__(self) -> str:
        servers: dict[str, list[str]] = {}
        for server_id, value in self.values:
            servers.setdefault(_shown(value), []).append(server_id)
        shown = [f"{value} on server {_listed(ids)}" for value, ids in list(servers.items())[:MAX_SHOWN_VALUES]]
        more = len(servers) - len(shown)
        return f"{self.key} is {', '.join(shown)}{f' and {more} other values' if more else ''}"


@dataclass(frozen=True, slots=True)
class DefaultTtls:
    """The lifetimes of what is issued without one of its own, in seconds; 0 where the kind is switched off."""

    x509: int
    agent: int
    jwt: int = 0
    wit: int = 0


def present(records: Iterable[ServerRecord], own: ServerRecord, now: int) -> tuple[ServerRecord, ...]:
    """The servers whose settings count: this one, as it is now, and those that were there a short while ago."""
    others = [one for one in records if one.server_id != own.server_id and one.written_at > now - PRESENT_SECONDS]
    return (own, *sorted(others, key=lambda one: one.server_id))


def differences(records: Iterable[ServerRecord]) -> tuple[Difference, ...]:
    """The settings on which these servers do not agree, by key.

    A key that a server does not know is passed over for it: it runs another version, which an upgrade makes usual.
    """
    servers = [(one.server_id, one.settings) for one in sorted(records, key=lambda one: one.server_id)]
    if len({settings.fingerprint for _, settings in servers}) < 2:  # noqa: PLR2004  # it takes two to differ
        return ()
    by_key: dict[str, list[tuple[str, Value]]] = {}
    for server_id, settings in servers:
        for key, value in settings.values:
            by_key.setdefault(key, []).append((server_id, value))
    return tuple(
        Difference(key, tuple(found))
        for key, found in sorted(by_key.items())
        if len({(type(value), value) for _, value in found}) > 1
    )


def default_ttls(own: IssuingSettings, everybody: Iterable[ServerRecord]) -> DefaultTtls:
    """For each kind of SVID the shortest default of all these servers; what is off here stays off."""
    settings = [one.settings for one in everybody]

    def shortest(key: str) -> int:
        mine = own.seconds(key)
        return min((found for one in settings if (found := one.seconds(key))), default=mine) if mine else 0

    return DefaultTtls(shortest(X509_TTL), shortest(AGENT_TTL), shortest(JWT_TTL), shortest(WIT_TTL))


def _plain(value: object) -> Value:
    if value is None or isinstance(value, str | int):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _shown(value: Value) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _listed(ids: list[str]) -> str:
    more = len(ids) - MAX_SHOWN_SERVERS
    return " and ".join(ids) if more <= 0 else f"{' and '.join(ids[:MAX_SHOWN_SERVERS])} and {more} others"
