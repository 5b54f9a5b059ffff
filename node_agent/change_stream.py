"""The agent's half of the push stream (muniment.server.propagation.v1), over the dialer (architecture A9)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import grpc.aio

from node_agent.domain.entry_cache import Stamp
from node_agent.domain.news import News
from node_agent.server_calls import Calls, received, translated
from node_agent.server_client import MAX_ENTRIES
from spiffe_core.bundle import TrustBundle
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2 as pb

log = logging.getLogger(__name__)

SILENCE_SECONDS = 45.0
"""The server sends a position every 30 s: one that is silent for longer is not there any more."""
FIRST_SECONDS = 30.0
STAMPS_PER_MESSAGE = 5_000
MAX_PARTS = 100_000
MAX_POSITION = 64

_SERVICE = pb.DESCRIPTOR.services_by_name["Propagation"]


class _Silent(Unavailable):
    """Nothing came for so long that nothing will."""


class ChangeStream:
    """One push stream at a time. Belongs to the event loop's thread."""

    def __init__(self, trust_domain: TrustDomain, calls: Calls) -> None:
        self._trust_domain = trust_domain
        self._calls = calls
        self._call: Any = None

    async def follow(self, position: str, known: Callable[[], Mapping[str, Stamp]]) -> AsyncGenerator[News, None]:
        """What the server has to say to an agent at `position` ("" if it holds nothing), until the stream ends.

        `known` tells what the agent holds, if the server asks.

        Raises:
            Unimplemented: the server has no push service.
            AgentRefused: it does not accept this agent.
            Unavailable: it cannot be reached, ended the stream, or says what cannot be understood.
        """
        member = self._calls.dialer
        with translated(member):
            call = self._calls.open(_SERVICE, "Follow", endless=True)
            self._call = call
            try:
                await call.write(pb.FollowRequest(hello=pb.Hello(position=position)))
                patience = FIRST_SECONDS
                while True:
                    parts = await _parts(call, patience)
                    if parts[0].compare:
                        await _compare(call, known())
                        continue
                    patience = SILENCE_SECONDS
                    member.answered(available=True)
                    news = self._news(parts)
                    self._calls.bearings.reset(news.position)
                    yield news
            except _Silent:
                member.fell_silent()  # the next stream goes over a connection of its own
                raise
            finally:
                self._call = None
                call.cancel()

    async def acknowledge(self, position: str, streams_behind: int) -> None:
        """Tell the server that everything up to `position` is applied; nothing if the stream has ended meanwhile."""
        call = self._call
        if call is None:
            return
        try:
            await call.write(pb.FollowRequest(ack=pb.Ack(position=position, streams_behind=streams_behind)))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            log.debug("the stream ended before it could be acknowledged")  # who reads it knows why

    def _news(self, parts: list[Any]) -> News:
        entries: list[RegistrationEntry] = []
        unreadable: set[str] = set()
        for message in (one for part in parts for one in part.entries):
            try:
                entries.append(convert.entry_from_proto(message, trust_domain=self._trust_domain))
            except IdentityError as error:
                unreadable.add(message.id)
                log.warning("an entry is left out: %s", error.public, extra={"facts": {"entry_id": message.id}})
        last = parts[-1]
        try:
            own = next((convert.bundle_from_proto(part.bundle) for part in parts if part.HasField("bundle")), None)
            if own is not None and own.trust_domain != self._trust_domain:
                raise Unavailable(f"the server sent the bundle of {own.trust_domain}, not of {self._trust_domain}")
            removed_bundles = frozenset(TrustDomain(name) for part in parts for name in part.removed_bundles)
        except IdentityError as error:
            raise Unavailable(f"what the server pushed cannot be used: {error.public}") from error
        return News(
            position=last.position,
            entries=tuple(entries),
            removed=frozenset(entry_id for part in parts for entry_id in part.removed_entries),
            unreadable=frozenset(unreadable),
            all_entries=any(part.all_entries for part in parts),
            own=own,
            federated=self._federated(parts),
            removed_bundles=removed_bundles,
            all_bundles=any(part.all_bundles for part in parts),
        )

    def _federated(self, parts: list[Any]) -> tuple[TrustBundle, ...]:
        """The federated bundles that can be used; one that cannot does not stop the others."""
        bundles: list[TrustBundle] = []
        for message in (one for part in parts for one in part.federated_bundles):
            try:
                bundle = convert.bundle_from_proto(message)
            except IdentityError as error:
                log.warning("the bundle of %s cannot be used: %s", message.trust_domain, error.public)
                continue
            if bundle.trust_domain != self._trust_domain:
                bundles.append(bundle)
        return tuple(bundles)


async def _parts(call: Any, seconds: float) -> list[Any]:
    """The messages of one delta."""
    parts: list[Any] = []
    entries = 0
    while True:
        try:
            async with asyncio.timeout(seconds):
                message = await call.read()
        except TimeoutError:
            raise _Silent("the server's push stream has gone silent") from None
        if message is grpc.aio.EOF:
            raise Unavailable("the server ended the push stream")
        message = received(message)
        parts.append(message)
        entries += len(message.entries)
        if len(parts) > MAX_PARTS or entries > MAX_ENTRIES or len(message.position) > MAX_POSITION:
            raise Unavailable("the server's push stream breaks its bounds")
        if not message.more:
            return parts


async def _compare(call: Any, known: Mapping[str, Stamp]) -> None:
    """Say what this agent holds."""
    stamps = [
        pb.Stamp(id=entry_id, revision_number=stamp.revision_number, created_at=stamp.created_at)
        for entry_id, stamp in known.items()
    ]
    for start in range(0, max(len(stamps), 1), STAMPS_PER_MESSAGE):
        more = start + STAMPS_PER_MESSAGE < len(stamps)
        message = pb.Stamps(stamps=stamps[start : start + STAMPS_PER_MESSAGE], more=more)
        await call.write(pb.FollowRequest(stamps=message))
