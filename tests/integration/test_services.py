"""Services, stubs and the error interceptor over a real gRPC server on a Unix socket."""

import asyncio
import logging
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import status_pb2 as rpc_status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from spiffe_core.errors import (
    AgentRefused,
    Conflict,
    Exhausted,
    Forbidden,
    IdentityError,
    Internal,
    InvalidEntry,
    InvalidRequest,
    Kind,
    NotFound,
    PreconditionFailed,
    Refusal,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as types_entry_pb2
from spiffe_core.wire._gen.spire.api.types import status_pb2
from spiffe_core.wire.services import Stub, handlers
from spiffe_core.wire.status import DETAILS_TRAILER, KIND_TRAILER, STATUS, ErrorInterceptor, from_rpc_error

ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
WORKLOAD = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

ERRORS = [
    InvalidRequest("ttl is negative"),
    Unauthenticated("nobody"),
    Forbidden("not you"),
    NotFound("no such entry"),
    Conflict("exists"),
    PreconditionFailed("not now"),
    Exhausted("too much"),
    Unavailable("restarting"),
    Unimplemented("not here"),
    Internal("our fault"),
]


class Entries:
    """Unary and bidirectional methods; `fail` is raised instead when it is set."""

    fail: Exception | None = None

    async def GetEntry(self, request, context):
        if self.fail:
            raise self.fail
        return types_entry_pb2.Entry(id=request.id)

    async def CountEntries(self, request, context):
        return entry_pb2.CountEntriesResponse(count=7).SerializeToString()

    async def SyncAuthorizedEntries(self, requests, context):
        if self.fail:
            raise self.fail
        async for request in requests:
            for entry_id in request.ids:
                if entry_id == "stop":
                    raise NotFound("entry stop")
                yield entry_pb2.SyncAuthorizedEntriesResponse(entries=[types_entry_pb2.Entry(id=entry_id)])


class Workloads:
    """Server streams, of messages and of finished bytes."""

    def __init__(self):
        self.closed = asyncio.Event()
        self.fail = None

    async def FetchX509SVID(self, request, context):
        try:
            for hint in ("a", "b"):
                yield workload_pb2.X509SVIDResponse(svids=[workload_pb2.X509SVID(hint=hint)])
            if self.fail:
                raise self.fail
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def FetchX509Bundles(self, request, context):
        yield workload_pb2.X509BundlesResponse(bundles={"spiffe://a": b"x"}).SerializeToString()


class RefusingInterceptor(grpc.aio.ServerInterceptor):
    """An authorization step that says no before any handler is reached."""

    async def intercept_service(self, continuation, handler_call_details):
        if handler_call_details.method.endswith(("ListEntries", "AttestAgent")):
            raise Forbidden("authorization denied")
        return await continuation(handler_call_details)


@pytest.fixture
async def entries():
    return Entries()


@pytest.fixture
async def workloads():
    return Workloads()


@pytest.fixture
async def channel(tmp_path: Path, entries, workloads):
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(lambda: "cafe"), RefusingInterceptor()], maximum_concurrent_rpcs=50
    )
    health = HealthServicer()
    server.add_generic_rpc_handlers(
        [handlers(ENTRY, entries), handlers(WORKLOAD, workloads), handlers(AGENT, object()), handlers(HEALTH, health)]
    )
    target = f"unix:{tmp_path}/s.sock"
    server.add_insecure_port(target)
    await server.start()
    async with grpc.aio.insecure_channel(target) as channel:
        yield channel
    await server.stop(None)


async def test_unary_call(channel):
    answer = await Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(id="x"), timeout=5)
    assert answer == types_entry_pb2.Entry(id="x")


async def test_finished_bytes_are_sent_as_they_are(channel):
    answer = await Stub(channel, ENTRY).CountEntries(entry_pb2.CountEntriesRequest(), timeout=5)
    assert answer.count == 7
    stream = Stub(channel, WORKLOAD).FetchX509Bundles(workload_pb2.X509BundlesRequest(), timeout=5)
    assert [dict(message.bundles) async for message in stream] == [{"spiffe://a": b"x"}]


async def test_server_stream_ends_its_handler_when_the_client_leaves(channel, workloads):
    stream = Stub(channel, WORKLOAD).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=5)
    hints = [(await stream.read()).svids[0].hint for _ in range(2)]
    assert hints == ["a", "b"]
    stream.cancel()
    await asyncio.wait_for(workloads.closed.wait(), 5)


async def test_bidirectional_stream(channel):
    stream = Stub(channel, ENTRY).SyncAuthorizedEntries(timeout=5)
    await stream.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=["a", "b"]))
    assert (await stream.read()).entries[0].id == "a"
    assert (await stream.read()).entries[0].id == "b"
    await stream.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=["c"]))
    assert (await stream.read()).entries[0].id == "c"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


def test_blocking_stub_works_over_a_blocking_channel():
    with grpc.insecure_channel("unix:/nowhere.sock") as channel, pytest.raises(grpc.RpcError) as caught:
        Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(id="x"), timeout=5)
    assert isinstance(from_rpc_error(caught.value), Unavailable)


async def test_absent_methods_answer_unimplemented_and_name_themselves(channel):
    calls = [
        Stub(channel, ENTRY).BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(), timeout=5),
        Stub(channel, AGENT).GetAgent(agent_pb2.GetAgentRequest(), timeout=5),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "is not offered here" in caught.value.details()
    stream = Stub(channel, WORKLOAD).FetchWITSVID(workload_pb2.WITSVIDRequest(), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "/SpiffeWorkloadAPI/FetchWITSVID" in caught.value.details()


async def test_unknown_service_answers_unimplemented(channel):
    call = channel.unary_unary("/no.such.Service/Method")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_stub_has_no_other_attributes():
    with pytest.raises(AttributeError, match="service SpiffeWorkloadAPI has no method Fetch"):
        Stub(grpc.insecure_channel("unix:/nowhere.sock"), WORKLOAD).Fetch  # noqa: B018


def test_every_kind_is_covered_here():
    assert {error.kind for error in ERRORS} == set(Kind)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.kind.value)
async def test_identity_errors_arrive_as_the_same_kind_and_text(channel, entries, error):
    entries.fail = error
    stub = Stub(channel, ENTRY)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is STATUS[error.kind][0]
    assert dict(caught.value.trailing_metadata())[KIND_TRAILER] == error.kind.value
    back = from_rpc_error(caught.value)
    assert (type(back), back.kind, back.public) == (type(error), error.kind, error.public)

    stream = stub.SyncAuthorizedEntries(timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert type(from_rpc_error(caught.value)) is type(error)


async def test_subclasses_arrive_as_their_kind(channel, entries):
    entries.fail = InvalidEntry("spiffe_id: path is missing", field="spiffe_id", secret="stays here")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "spiffe_id: path is missing"


async def test_an_error_after_messages_keeps_the_messages(channel, workloads):
    workloads.fail = Forbidden("no identity issued")
    stream = Stub(channel, WORKLOAD).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=5)
    assert [(await stream.read()).svids[0].hint for _ in range(2)] == ["a", "b"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "no identity issued"


async def test_an_error_in_the_middle_of_a_dialogue(channel):
    stream = Stub(channel, ENTRY).SyncAuthorizedEntries(timeout=5)
    await stream.write(entry_pb2.SyncAuthorizedEntriesRequest(ids=["a", "stop"]))
    assert (await stream.read()).entries[0].id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert isinstance(from_rpc_error(caught.value), NotFound)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unexpected_exception_shows_a_reference_and_nothing_else(channel, entries, caplog, stream):
    entries.fail = ValueError("the password is hunter2")
    stub = Stub(channel, ENTRY)
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
        if stream:
            await stub.SyncAuthorizedEntries(timeout=5).read()
        else:
            await stub.GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error, reference cafe"
    assert dict(caught.value.trailing_metadata()) == {KIND_TRAILER: "internal"}
    record = next(record for record in caplog.records if "cafe" in record.getMessage())
    assert record.exc_info[1] is entries.fail


async def test_an_exception_in_a_server_stream_is_internal(channel, workloads):
    workloads.fail = KeyError("secret")
    stream = Stub(channel, WORKLOAD).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INTERNAL,
        "internal error, reference cafe",
    )


@pytest.mark.parametrize("refusal", list(Refusal))
async def test_agent_refusals_round_trip_through_the_rich_status(channel, entries, refusal):
    """spire_wire section 2: code 7 and one PermissionDeniedDetails in grpc-status-details-bin."""
    entries.fail = AgentRefused(refusal)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    rich = rpc_status_pb2.Status.FromString(dict(caught.value.trailing_metadata())[DETAILS_TRAILER])
    assert (rich.code, rich.message) == (7, caught.value.details())
    assert rich.details[0].type_url == "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
    details = status_pb2.PermissionDeniedDetails()
    assert rich.details[0].Unpack(details)
    assert details.reason == refusal.value
    back = from_rpc_error(caught.value)
    assert isinstance(back, AgentRefused)
    assert back.refusal is refusal


async def test_an_inner_interceptors_refusal_reaches_unary_and_streaming_callers(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, ENTRY).ListEntries(entry_pb2.ListEntriesRequest(), timeout=5)
    assert isinstance(from_rpc_error(caught.value), Forbidden)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, AGENT).AttestAgent(timeout=5).read()
    assert isinstance(from_rpc_error(caught.value), Forbidden)


async def test_foreign_handlers_pass_through(channel):
    """grpc.health's own servicer uses coroutines and context.abort; the interceptor leaves its statuses alone."""
    stub = Stub(channel, HEALTH)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_a_long_text_is_cut_so_that_the_status_arrives(channel, entries):
    entries.fail = InvalidRequest("x" * 100_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) == 1024


async def test_a_wide_text_fits_the_metadata_limit_as_well(channel, entries):
    entries.fail = AgentRefused(Refusal.AGENT_BANNED)
    entries.fail.public = "\N{SNOWMAN}" * 5000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Stub(channel, ENTRY).GetEntry(entry_pb2.GetEntryRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_deadline_is_unavailable(channel, workloads):
    stream = Stub(channel, WORKLOAD).FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    back = from_rpc_error(caught.value)
    assert isinstance(back, Unavailable)
    assert isinstance(back, IdentityError)
    await asyncio.wait_for(workloads.closed.wait(), 5)


def test_the_any_packs_with_the_standard_prefix():
    packed = AnyMessage()
    packed.Pack(status_pb2.PermissionDeniedDetails())
    assert packed.type_url.startswith("type.googleapis.com/")
