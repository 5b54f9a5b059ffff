"""How far agents are, and how one server writes down for the others how far its own are (architecture A9).

A server's row has two documents. The *members* are the paths of its agents, one a line, in order: they change when an
agent comes or goes. The *brief* says where the server is and names, by their places among the members, those of its
agents that are elsewhere, and those that poll: it is short when little is under way. Both are compressed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from spiffe_core.errors import CorruptState

MAX_DOCUMENT: Final = 64 * 1024 * 1024
"""So many bytes a document of another server may have, unpacked."""
LEVEL: Final = 1
FORGET_SECONDS: Final = 3_600
"""A server that has not written for so long is forgotten, with its agents."""


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """How far one agent is. `polled_at` is in unix seconds, 0 for one on a push stream."""

    agent_path: str
    revision: int
    connected: bool
    polled_at: int = 0
    streams_behind: int = 0
    server_id: str = ""
    """The server it was seen at; "" for this one."""
    unknown_since: int = 0
    """When that server was heard of last (unix seconds), if it does not answer; 0 if it does."""


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """What a server has written down. The members are b"" where a reader has those of this digest already."""

    server_id: str
    beat: int
    """Another number each time the server writes."""
    asked: int
    """Another number each time it wants all others to write; 0 if it never did."""
    written_at: int
    members_digest: bytes
    members: bytes = field(repr=False)
    brief: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerProgress:
    """Where another server is, and its agents."""

    revision: int
    agents: tuple[AgentProgress, ...]


def documents(agents: Iterable[AgentProgress], revision: int) -> tuple[bytes, bytes]:
    """The members and the brief of a server that is at `revision`."""
    ordered = sorted(agents, key=_path)
    members = "\n".join(one.agent_path for one in ordered).encode()
    behind = [
        (place, one.revision, one.streams_behind)
        for place, one in enumerate(ordered)
        if one.connected and (one.revision != revision or one.streams_behind)
    ]
    polls = [(place, one.revision, one.polled_at) for place, one in enumerate(ordered) if not one.connected]
    brief = json.dumps({"revision": revision, "behind": behind, "polls": polls}, separators=(",", ":")).encode()
    return zlib.compress(members, LEVEL), zlib.compress(brief, LEVEL)


def digest_of(members: bytes) -> bytes:
    """The key by which a reader knows members that it has read."""
    return hashlib.sha256(members).digest()


def paths_of(members: bytes) -> tuple[str, ...]:
    """The agents of a server, in order.

    Raises:
        CorruptState: no server of ours wrote this.
    """
    text = _unpacked(members)
    return tuple(text.split("\n")) if text else ()


def read(server_id: str, paths: tuple[str, ...], brief: bytes) -> ServerProgress:
    """How far these agents of another server are.

    Raises:
        CorruptState: no server of ours wrote this.
    """
    try:
        document: Any = json.loads(_unpacked(brief))
        revision = _number(document["revision"])
        behind = {paths[_number(place)]: (_number(at), _number(more)) for place, at, more in document["behind"]}
        polls = {paths[_number(place)]: (_number(at), _number(wall)) for place, at, wall in document["polls"]}
    except (ValueError, LookupError, TypeError) as error:
        raise CorruptState(_NOT_OURS, server_id=server_id) from error
    agents: list[AgentProgress] = []
    for path in paths:
        polled = polls.get(path)
        if polled is not None:
            at, wall = polled
            agents.append(AgentProgress(path, at, connected=False, polled_at=wall, server_id=server_id))
        else:
            at, streams = behind.get(path, (revision, 0))
            agents.append(AgentProgress(path, at, connected=True, streams_behind=streams, server_id=server_id))
    return ServerProgress(revision, tuple(agents))


def merged(agents: Iterable[AgentProgress]) -> dict[str, AgentProgress]:
    """One for each agent: the best of those who know it.

    A stream counts more than polls, and both more than what a server knew that does not answer; of two alike, the one
    that is farther. So one that moved to another server is what it is there.
    """
    found: dict[str, AgentProgress] = {}
    for one in agents:
        add(found, one)
    return found


def add(found: dict[str, AgentProgress], one: AgentProgress) -> None:
    """Put one more into what `merged` makes."""
    known = found.get(one.agent_path)
    if known is None or _rank(one) > _rank(known):
        found[one.agent_path] = one


def _rank(one: AgentProgress) -> tuple[bool, bool, int, int]:
    return not one.unknown_since, one.connected, one.revision, one.unknown_since


def _path(one: AgentProgress) -> str:
    return one.agent_path


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a number")
    return value


def _unpacked(data: bytes) -> str:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, MAX_DOCUMENT).decode()
    except (zlib.error, ValueError) as error:
        raise CorruptState(_NOT_OURS) from error
    if not unpacking.eof:  # too long, or cut off
        raise CorruptState(_NOT_OURS)
    return text


_NOT_OURS: Final = (
    "database: a row of table server_progress was not written by this program; delete it, its server writes it again"
)
