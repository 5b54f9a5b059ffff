"""S24: numbers an enumeration does not have, and steps of no known kind, are refused by every call that could get one."""

from __future__ import annotations

import logging
from functools import reduce

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor

from identity_server.rpc import services
from spiffe_core.wire._gen.muniment.server.authorityorders.v1 import authorityorders_pb2 as orders
from spiffe_core.wire.services import Stub
from tests.doubles.live_server import entry, live_server

UNKNOWN = 99
SELECTORS = {"selectors": [{"type": "a", "value": "b"}]}
DOMAINS = {"trust_domains": ["fed.test"]}
AROUND = {
    "Agent/CountAgents filter.by_selector_match.match": {"filter": {"by_selector_match": SELECTORS}},
    "Agent/ListAgents filter.by_selector_match.match": {"filter": {"by_selector_match": SELECTORS}},
    "AuthorityOrders/PlaceOrder kind": {"verb": orders.VERB_PREPARE},
    "AuthorityOrders/PlaceOrder verb": {"kind": orders.KIND_X509},
    "Bundle/BatchDeleteFederatedBundle mode": DOMAINS,
    "Entry/CountEntries filter.by_selectors.match": {"filter": {"by_selectors": SELECTORS}},
    "Entry/CountEntries filter.by_federates_with.match": {"filter": {"by_federates_with": DOMAINS}},
    "Entry/ListEntries filter.by_selectors.match": {"filter": {"by_selectors": SELECTORS}},
    "Entry/ListEntries filter.by_federates_with.match": {"filter": {"by_federates_with": DOMAINS}},
    "Logger/SetLogLevel new_level": {},
}
"""What a request needs besides, to be refused for the number alone."""
KNOWN = {"AuthorityOrders/PlaceOrder kind": orders.KIND_X509, "AuthorityOrders/PlaceOrder verb": orders.VERB_PREPARE}


def services_offered():
    return [one for one in vars(services).values() if hasattr(one, "methods")]


def enumerations(message, path=()):
    """The fields of a message, at any depth, that hold a number with a name."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_ENUM:
            yield (*path, field.name)
        elif field.message_type is not None and len(path) < 5:
            yield from enumerations(field.message_type, (*path, field.name))


PLACES = {
    f"{service.name}/{method.name} {'.'.join(path)}": (service, method, path)
    for service in services_offered()
    for method in service.methods
    for path in enumerations(method.input_type)
}


@pytest.fixture
async def live():
    level = logging.getLogger().level  # a known level is set too
    async with live_server() as server:
        yield server
    logging.getLogger().setLevel(level)


def test_every_enumeration_of_every_request_is_looked_at():
    """S24: one that is added to the protocol without a row here fails."""
    assert set(PLACES) == set(AROUND)


async def test_a_number_without_a_name_is_refused_and_changes_nothing(live):
    """S24: InvalidArgument, where the same request with a number that has a name is served."""
    await live.entries(entry(id="e"))
    for place, around in AROUND.items():
        service, method, path = PLACES[place]
        call = getattr(Stub(live.channel, service), method.name)
        request = method.input_type._concrete_class(**around)
        position = live.state.position
        holder = reduce(getattr, path[:-1], request)
        setattr(holder, path[-1], UNKNOWN)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (place, caught.value.details())
        assert live.state.position == position, place
        setattr(holder, path[-1], KNOWN.get(place, 1))
        await call(request, timeout=20)


DIALOGUES = {
    f"{service.name}/{method.name}": (service, method)
    for service in services_offered()
    for method in service.methods
    if method.client_streaming
}
BEGINNINGS = {"nothing": b"", "a field nobody knows": b"\xc2\x3e\x01x", "the second step": b"\x12\x01x"}
ASKS_FOR_EVERYTHING = ("Entry/SyncAuthorizedEntries", {"nothing", "a field nobody knows"})
"""The one dialogue that an empty message begins; fields of a later version are passed over."""
WRONG = [
    (place, first)
    for place in sorted(DIALOGUES)
    for first in BEGINNINGS
    if not (place == ASKS_FOR_EVERYTHING[0] and first in ASKS_FOR_EVERYTHING[1])
]


async def test_a_dialogue_that_does_not_begin_as_it_must_ends_refused(live):
    """S24: no step, a step of a later protocol, an answer to a challenge nobody gave; and the server serves on."""
    channel = (await live.join()).dialer.channel()
    for place, first in WRONG:
        service, method = DIALOGUES[place]
        call = channel.stream_stream(f"/{service.full_name}/{method.name}")(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.write(BEGINNINGS[first])
            await call.done_writing()
            async for _ in call:
                pass
        error = caught.value
        assert error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}, (place, first, error)
        assert not (error.details() or "").startswith("internal error"), (place, first)
    await live.join()
