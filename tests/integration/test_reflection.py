"""Server reflection on the Workload API's socket (WEP-28, N-A-06), asked by a client that knows no message beforehand."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from node_agent.rpc.health import SERVICE as HEALTH
from node_agent.rpc.health import Health
from spiffe_core.wire import reflection as served
from spiffe_core.wire.reflection import MOST_QUESTIONS, SERVICES, Reflection
from spiffe_core.wire.services import Stub, full_method
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from tests.doubles.workload_endpoint import HEADER, workload_endpoint
from workload_api.sds import CARRIED
from workload_api.sds import SERVICE as SDS
from workload_api.service import SERVICE as WORKLOAD_API

VERSIONS = pytest.mark.parametrize("service", SERVICES, ids=["v1", "v1alpha"])
NAMES = sorted(one.full_name for one in (WORKLOAD_API, HEALTH, SDS, *SERVICES))


@asynccontextmanager
async def endpoint(backend=None, **options):
    reflection = Reflection([WORKLOAD_API, HEALTH, SDS], CARRIED, **options)
    also = [lambda *_: Health(lambda: True).handler(), *(lambda *_, one=one: one for one in reflection.handlers())]
    async with workload_endpoint(backend or ScriptedBackend(None), also=also) as found:
        found.reflection = reflection
        yield found


class Asker:
    """One dialogue."""

    def __init__(self, channel, service):
        self.request = GetMessageClass(service.methods[0].input_type)
        self.call = Stub(channel, service).ServerReflectionInfo()

    async def ask(self, **question):
        await self.call.write(self.request(host="h", **question))
        return await self.call.read()

    async def files(self, **question):
        answer = await self.ask(**question)
        return [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]

    async def done(self):
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


@VERSIONS
async def test_a_tool_learns_the_services_without_the_header(service):
    """WEP-28, N-A-06: no metadata at all."""
    async with endpoint() as found:
        asker = Asker(found.channel, service)
        answer = await asker.ask(list_services="*")
        assert [one.name for one in answer.list_services_response.service] == NAMES
        assert (answer.valid_host, answer.original_request.list_services) == ("h", "*")
        await asker.done()


@VERSIONS
async def test_what_it_tells_is_enough_to_call(service, ca):
    """WEP-28: a client with an empty pool builds the messages from the answers and fetches an identity."""
    async with endpoint(ScriptedBackend(ca.view("/a"))) as found:
        asker = Asker(found.channel, service)
        pool = DescriptorPool()
        for symbol in ("SpiffeWorkloadAPI", "grpc.health.v1.Health", SDS.full_name):
            for file in reversed(await asker.files(file_containing_symbol=symbol)):
                pool.Add(file)
        learned = pool.FindServiceByName("SpiffeWorkloadAPI").methods_by_name["FetchX509SVID"]
        call = found.channel.unary_stream(
            full_method(learned),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(learned.output_type).FromString,
        )(GetMessageClass(learned.input_type)(), metadata=HEADER)
        assert (await call.read()).svids[0].spiffe_id.endswith("/a")
        assert pool.FindServiceByName(SDS.full_name).methods_by_name.keys() == SDS.methods_by_name.keys()
        await asker.done()


async def test_files_come_with_all_they_import_under_their_own_names():
    async with endpoint() as found:
        asker = Asker(found.channel, SERVICES[0])
        files = await asker.files(file_by_filename="workload.proto")
        assert files[0].name == "workload.proto"
        known = {file.name for file in files}
        assert all(set(file.dependency) <= known for file in files)
        assert len(known) == len(files)
        for symbol in (
            "X509SVIDResponse",
            "SpiffeWorkloadAPI.FetchJWTSVID",
            "X509SVID.spiffe_id",
            "X509SVIDResponse.FederatedBundlesEntry",
            "google.protobuf.Struct",
            "google.protobuf.NULL_VALUE",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "grpc.reflection.v1.ServerReflectionRequest.message_request",
            "envoy.extensions.transport_sockets.tls.v3.Secret",
        ):
            assert await asker.files(file_containing_symbol=symbol), symbol
        assert not any("spiffe_core" in f"{file}" for file in files)
        await asker.done()


@VERSIONS
@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_by_filename": "agent.proto"}, 5),
        ({"file_by_filename": "spiffe_core/wire/_gen/workload.proto"}, 5),
        ({"file_containing_symbol": "spire.api.server.agent.v1.Agent"}, 5),
        ({"file_containing_symbol": ""}, 5),
        ({"file_containing_extension": {"containing_type": "X509SVID", "extension_number": 1}}, 5),
        ({"all_extension_numbers_of_type": "Nothing"}, 5),
        ({"all_extension_numbers_of_type": "SpiffeWorkloadAPI"}, 5),
        ({}, 3),
    ],
    ids=["file", "our-folder", "unserved", "empty", "extension", "no-type", "no-message", "nothing"],
)
async def test_what_is_not_served_here_is_not_told_and_the_dialogue_goes_on(service, question, code):
    async with endpoint() as found:
        asker = Asker(found.channel, service)
        answer = await asker.ask(**question)
        assert answer.error_response.error_code == code
        assert answer.error_response.error_message
        answer = await asker.ask(all_extension_numbers_of_type="X509SVID")
        assert answer.all_extension_numbers_response.base_type_name == "X509SVID"
        await asker.done()


async def test_a_dialogue_is_bounded_in_time_and_in_questions(monkeypatch):
    """S53's kind: nobody was attested, so nothing else bounds it."""
    async with endpoint(seconds=0.1) as found:
        asker = Asker(found.channel, SERVICES[0])
        async with asyncio.timeout(20):
            assert await asker.call.code() is grpc.StatusCode.UNAVAILABLE
    monkeypatch.setattr(served, "MOST_QUESTIONS", 3)
    assert MOST_QUESTIONS == 1000
    async with endpoint() as found:
        asker = Asker(found.channel, SERVICES[0])
        for _ in range(3):
            await asker.ask(list_services="")
        async with asyncio.timeout(20):
            assert await asker.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_dialogues_are_bounded_in_number_and_give_their_place_back(monkeypatch):
    """S53's kind: a user may have a hundred calls on each of a thousand connections."""
    monkeypatch.setattr(served, "MOST_DIALOGUES", 2)
    async with endpoint() as found:
        first, second = Asker(found.channel, SERVICES[0]), Asker(found.channel, SERVICES[1])
        await first.ask(list_services="")
        await second.ask(list_services="")
        async with asyncio.timeout(20):
            assert await Asker(found.channel, SERVICES[0]).call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            first.call.cancel()
            while found.reflection._open == 2:
                await asyncio.sleep(0.01)
        await Asker(found.channel, SERVICES[0]).ask(list_services="")


async def test_a_dialogue_does_not_hold_up_the_end():
    """A7: drained like every stream."""
    async with endpoint() as found:
        asker = Asker(found.channel, SERVICES[1])
        await asker.ask(list_services="")
        found.reflection.drain()
        async with asyncio.timeout(20):
            assert await asker.call.code() is grpc.StatusCode.UNAVAILABLE
            assert await asker.call.details() == "restarting"
            again = Asker(found.channel, SERVICES[1])
            assert await again.call.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()
