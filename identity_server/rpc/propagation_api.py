"""muniment.server.propagation.v1.Propagation: changes go to agents when they are made (architecture A9).

One Follow stream, as the server sees it:

1. The agent says where it is. If this server knows that position, it goes on from there; if the agent holds nothing, it
   gets everything; otherwise it is asked for the stamps of what it holds, and gets what differs.
2. From then on it gets deltas, each when it can take one, and a bare position now and then. It acknowledges.
3. The stream ends with Unavailable when its certificate has ended or does not count any more, or the server goes down.

Entries leave as the finished bytes the state keeps, and a bundle is encoded once for all agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from identity_server.domain.agents import check_agent_id
from identity_server.domain.history import MAX_POSITION_TEXT
from identity_server.domain.propagation import Delta
from identity_server.rpc.caller import Context, presented_by
from identity_server.services.followers import HEARTBEAT_SECONDS, Follower, Followers
from identity_server.services.in_force import InForce
from identity_server.services.progress import Progress
from spiffe_core.bundle import TrustBundle
from spiffe_core.errors import InvalidRequest, Unavailable
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb
from spiffe_core.wire.peer import Peer
from spiffe_core.wire.services import full_method

LASTING: Final = frozenset({full_method(pb.DESCRIPTOR.services_by_name["Propagation"].methods_by_name["Follow"])})
"""The streams that may outlive the age of a connection."""
PAGE_ENTRIES: Final = 500
PAGE_BYTES: Final = 1024 * 1024
MAX_STAMPS: Final = 500_000
STAMPS_SECONDS: Final = 30.0
"""So long an agent may take to say what it holds."""
PAGE_AGENTS: Final = 1_000
MAX_COUNTED: Final = 500
MAX_KEPT_BUNDLES: Final = 1_000
_LENGTH_DELIMITED: Final = 2
_VARINT_BITS: Final = 7


def _tag(field: str) -> bytes:
    return bytes([pb.FollowResponse.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED])


_ENTRIES: Final = _tag("entries")
_OWN_BUNDLE: Final = _tag("bundle")
_FEDERATED_BUNDLES: Final = _tag("federated_bundles")


class PropagationApi:
    """The push service."""

    def __init__(
        self,
        followers: Followers,
        progress: Progress,
        peer_of: Callable[[Context], Peer],
        *,
        in_force: InForce,
        trust_domain: TrustDomain,
    ) -> None:
        self._followers = followers
        self._progress = progress
        self._in_force = in_force
        self._trust_domain = trust_domain
        self._peer_of = peer_of
        self._bundles: dict[int, tuple[TrustBundle, bytes]] = {}

    async def Follow(self, requests: AsyncIterator[pb.FollowRequest], context: Context) -> AsyncIterator[bytes]:
        """Everything an agent is authorised for, and what changes of it."""
        messages = aiter(requests)
        first = await anext(messages, None)
        if first is None:
            return
        if first.WhichOneof("step") != "hello" or len(first.hello.position) > MAX_POSITION_TEXT:
            raise InvalidRequest("the first message must be a hello with a position of ours, or none", field="hello")
        with self._followers.follow(presented_by(self._peer_of(context)), first.hello.position) as follower:
            if follower.sent is None:
                held: dict[str, tuple[int, int]] = {}
                if first.hello.position:
                    yield pb.FollowResponse(compare=True).SerializeToString()
                    held = await _stamps(messages)
                delta = self._followers.first(follower, held)
            else:
                delta = self._followers.next(follower, heartbeat=True)
            for page in self._pages(follower, delta):
                yield page
            tasks: set[asyncio.Task[Any]] = set()
            listening = spawn(self._listen(follower, messages), "acknowledgements", tasks)
            listening.add_done_callback(lambda _: follower.news.set())
            try:
                while not listening.done():
                    for page in await self._more(follower):
                        yield page
                listening.result()
            finally:
                listening.cancel()

    async def AwaitAgents(
        self, request: pb.AwaitAgentsRequest, _context: Context
    ) -> AsyncIterator[pb.AwaitAgentsResponse]:
        """How far the agents are, until all of them have a revision or the time is over."""
        if request.revision < 0 or request.revision > self._progress.revision:
            raise InvalidRequest("revision: this server does not know it (yet)", field="revision")
        path = self._agent(request.agent_id)
        async for standing in self._progress.wait(request.revision, request.timeout_ms / 1000, path):
            yield pb.AwaitAgentsResponse(
                revision=standing.revision,
                connected=standing.connected,
                reached=standing.reached,
                behind=map(self._id, standing.behind),
                polling=standing.polling,
                over=standing.over,
                unknown=standing.unknown_count,
                unknown_agents=map(self._id, standing.unknown),
                unknown_since=standing.unknown_since,
                servers=standing.servers,
                servers_owing=standing.servers_owing,
            )

    async def ListProgress(self, request: pb.ListProgressRequest, _context: Context) -> pb.ListProgressResponse:
        """How far each agent is, in the order of their IDs."""
        found = await self._progress.fresh()
        path = self._agent(request.agent_id)
        after = self._agent(request.page_token)
        size = min(max(request.page_size, 0) or PAGE_AGENTS, PAGE_AGENTS)
        wanted = sorted(one for one in found if (one == path or not path) and one > after)
        page = [found[one] for one in wanted[:size]]
        return pb.ListProgressResponse(
            revision=self._progress.revision,
            agents=[
                pb.AgentProgress(
                    agent_id=self._id(one.agent_path),
                    revision=one.revision,
                    connected=one.connected,
                    polled_at=one.polled_at,
                    streams_behind=one.streams_behind,
                    server_id=one.server_id,
                    unknown_since=one.unknown_since,
                )
                for one in page
            ],
            next_page_token=self._id(page[-1].agent_path) if len(wanted) > size else "",
        )

    async def CountInForce(self, request: pb.CountInForceRequest, _context: Context) -> pb.CountInForceResponse:
        """At how many of the agents that may have them these entries are in force."""
        if len(request.entry_ids) > MAX_COUNTED:
            raise InvalidRequest(f"entry_ids: more than {MAX_COUNTED}; ask in parts", field="entry_ids")
        return pb.CountInForceResponse(
            entries=[
                pb.EntryInForce(
                    entry_id=one.entry_id,
                    agents=one.agents,
                    reached=one.agents - one.behind_count,
                    behind=map(self._id, one.behind),
                    polling=one.polling,
                    unknown=one.unknown,
                )
                for one in await self._in_force.of(tuple(request.entry_ids))
            ]
        )

    def _agent(self, text: str) -> str:
        """The path of an agent's SPIFFE ID; "" for none."""
        return check_agent_id(SpiffeId.parse(text), self._trust_domain).path if text else ""

    def _id(self, path: str) -> str:
        return str(SpiffeId(self._trust_domain, path))

    async def _more(self, follower: Follower) -> Iterator[bytes]:
        """The next pages, once there are any, or a bare position when it is time for one."""
        seconds = min(HEARTBEAT_SECONDS, max(self._followers.seconds_left(follower), 0.0))
        try:
            async with asyncio.timeout(seconds):
                await follower.news.wait()
        except TimeoutError:
            return self._pages(follower, self._followers.next(follower, heartbeat=True))
        delta = self._followers.next(follower)
        return self._pages(follower, delta) if delta else iter(())

    async def _listen(self, follower: Follower, messages: AsyncIterator[pb.FollowRequest]) -> None:
        async for message in messages:
            if message.WhichOneof("step") != "ack":
                raise InvalidRequest("a stream that has begun takes acknowledgements only", field="step")
            self._followers.acknowledge(follower, message.ack.position, message.ack.streams_behind)

    def _pages(self, follower: Follower, delta: Delta) -> Iterator[bytes]:
        """One message or more; the last one is the one without `more`."""
        assert follower.sent is not None
        page = pb.FollowResponse(
            position=str(follower.sent.position),
            removed_entries=delta.removed,
            removed_bundles=[name.name for name in delta.removed_bundles],
            all_entries=delta.all_entries,
            all_bundles=delta.all_bundles,
        )
        own = follower.sent.own
        parts = [
            _field(_OWN_BUNDLE if bundle.trust_domain == own else _FEDERATED_BUNDLES, self._encoded(bundle))
            for bundle in delta.bundles
        ]
        size = sum(map(len, parts))
        for record in delta.entries:
            if size >= PAGE_BYTES or len(parts) >= PAGE_ENTRIES:
                page.more = True
                yield page.SerializeToString() + b"".join(parts)
                page = pb.FollowResponse(position=page.position)
                parts, size = [], 0
            parts.append(_field(_ENTRIES, record.wire))
            size += len(parts[-1])
        yield page.SerializeToString() + b"".join(parts)

    def _encoded(self, bundle: TrustBundle) -> bytes:
        """Many agents are sent the very same bundle."""
        kept = self._bundles.get(id(bundle))
        if kept is not None and kept[0] is bundle:
            return kept[1]
        if len(self._bundles) >= MAX_KEPT_BUNDLES:
            del self._bundles[next(iter(self._bundles))]
        wire = convert.bundle_to_proto(bundle).SerializeToString()
        self._bundles[id(bundle)] = bundle, wire
        return wire


async def _stamps(messages: AsyncIterator[pb.FollowRequest]) -> dict[str, tuple[int, int]]:
    """What the agent says it holds.

    Raises:
        Unavailable: it does not say so in time.
    """
    try:
        async with asyncio.timeout(STAMPS_SECONDS):
            return await _told(messages)
    except TimeoutError:
        raise Unavailable(f"stamps were asked for and not sent within {STAMPS_SECONDS:.0f} s; open it again") from None


async def _told(messages: AsyncIterator[pb.FollowRequest]) -> dict[str, tuple[int, int]]:
    held: dict[str, tuple[int, int]] = {}
    async for message in messages:
        if message.WhichOneof("step") != "stamps":
            raise InvalidRequest("stamps were asked for", field="step")
        held.update((one.id, (one.revision_number, one.created_at)) for one in message.stamps.stamps)
        if len(held) > MAX_STAMPS:
            raise InvalidRequest(f"stamps: more than {MAX_STAMPS} entries", field="stamps")
        if not message.stamps.more:
            break
    return held


def _field(tag: bytes, payload: bytes) -> bytes:
    """A length-delimited field of a message, out of finished bytes (protobuf encoding, "Length-Delimited Records")."""
    size, length = len(payload), bytearray(tag)
    while size >> _VARINT_BITS:
        length.append(size & 0x7F | 0x80)
        size >>= _VARINT_BITS
    length.append(size)
    return bytes(length) + payload
