"""Envoy's secret discovery over the Workload API's socket: streams live and end as those of the Workload API."""

import asyncio

import grpc
import pytest

from spiffe_core.clock import SystemClock
from spiffe_core.wire._gen.envoy import secret_discovery_pb2 as discovery
from spiffe_core.wire._gen.envoy import secret_pb2
from spiffe_core.wire.services import Stub
from tests.doubles.scripted_backend import ScriptedBackend, WorkloadCa
from tests.doubles.workload_endpoint import workload_endpoint
from workload_api.sds import SERVICE, SecretDiscovery

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


def sds(**options):
    """Build the service for an endpoint."""
    return lambda api, door: SecretDiscovery(
        api.streams, door.caller_of, SystemClock(), lambda: "n", **options
    ).handler()


def names_of(response):
    found = []
    for resource in response.resources:
        secret = secret_pb2.Secret()
        resource.Unpack(secret)
        found.append(secret.name)
    return found


async def world(stub, *names):
    stream = stub.StreamSecrets()
    await stream.write(discovery.DiscoveryRequest(resource_names=names))
    return stream


async def refusal(stream):
    with pytest.raises(grpc.aio.AioRpcError) as end:
        await asyncio.wait_for(stream.read(), 10)
    return end.value.code(), end.value.details()


async def test_a_stream_answers_at_once_and_at_each_change(ca):
    """No security header (D8, N-A-06); full state again when the SVID rotates."""
    backend = ScriptedBackend(ca.view("/web"))
    async with workload_endpoint(backend, also=[sds()]) as endpoint:
        stub = Stub(endpoint.channel, SERVICE)
        stream = await world(stub, "default", "ROOTCA")
        first = await stream.read()
        assert (names_of(first), first.version_info) == (["default", "ROOTCA"], "1")
        backend.publish(ca.view("/web"))
        second = await stream.read()
        assert second.version_info == "2"
        assert second.resources[0] != first.resources[0]
        assert second.resources[1] == first.resources[1]
        await stream.write(discovery.DiscoveryRequest(resource_names=["ROOTCA"], response_nonce="n"))
        assert names_of(await stream.read()) == ["ROOTCA"]
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert (await stream.code()) is grpc.StatusCode.OK


async def test_fetch_answers_once_without_version_and_nonce(ca):
    async with workload_endpoint(ScriptedBackend(ca.view("/web")), also=[sds()]) as endpoint:
        stub = Stub(endpoint.channel, SERVICE)
        response = await stub.FetchSecrets(discovery.DiscoveryRequest(type_url="x"))
        assert names_of(response) == ["spiffe://example.org/web", "spiffe://example.org"]
        assert (response.version_info, response.nonce, response.type_url) == ("", "", "x")


async def test_delta_delivers_removes_and_delivers_again(ca):
    """What SPIRE lacks: a name that is withdrawn is taken away from the proxy."""
    backend = ScriptedBackend(ca.view("/web"))
    async with workload_endpoint(backend, also=[sds()]) as endpoint:
        stream = Stub(endpoint.channel, SERVICE).DeltaSecrets()
        await stream.write(discovery.DeltaDiscoveryRequest(resource_names_subscribe=["default", "ROOTCA"]))
        first = await stream.read()
        assert [one.name for one in first.resources] == ["default", "ROOTCA"]
        backend.publish(ca.view())
        assert list((await stream.read()).removed_resources) == ["default", "ROOTCA"]
        backend.publish(ca.view("/web"))
        assert [one.name for one in (await stream.read()).resources] == ["default", "ROOTCA"]
        stream.cancel()


async def test_whoever_has_no_identity_is_refused_every_name(ca):
    async with workload_endpoint(ScriptedBackend(ca.view()), also=[sds()]) as endpoint:
        stub = Stub(endpoint.channel, SERVICE)
        for name in ("default", "ROOTCA", "spiffe://example.org/neighbour", "nothing"):
            assert await refusal(await world(stub, name)) == (
                INVALID,
                f'workload is not authorized for the requested identities ["{name}"]',
            )


async def test_bundles_without_an_identity_and_waiting_for_one_are_settings(ca):
    backend = ScriptedBackend(ca.view())
    async with workload_endpoint(backend, also=[sds(entitled_only=False, wait=True)]) as endpoint:
        stub = Stub(endpoint.channel, SERVICE)
        assert names_of(await (await world(stub, "ROOTCA")).read()) == ["ROOTCA"]
        waiting = await world(stub, "default")
        reading = asyncio.ensure_future(waiting.read())
        async with asyncio.timeout(10):
            while backend.subscribed < 2:
                await asyncio.sleep(0.005)
        assert not reading.done()
        backend.publish(ca.view("/late"))
        assert names_of(await reading) == ["default"]


async def test_a_withdrawn_identity_ends_the_stream(ca):
    backend = ScriptedBackend(ca.view("/web"))
    async with workload_endpoint(backend, also=[sds()]) as endpoint:
        stream = await world(Stub(endpoint.channel, SERVICE), "default")
        await stream.read()
        backend.publish(ca.view())
        status, _ = await refusal(stream)
        assert status is INVALID


async def test_streams_count_towards_the_same_bounds_and_leave_nothing_behind(ca):
    """N-A-37: cancelled, ended and refused streams are gone."""
    backend = ScriptedBackend(ca.view("/web"))
    async with workload_endpoint(backend, also=[sds()]) as endpoint:
        stub = Stub(endpoint.channel, SERVICE)
        streams = [await world(stub, "default") for _ in range(20)]
        for stream in streams:
            await stream.read()
        assert endpoint.api.open_streams == 20
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(10):
            while endpoint.api.open_streams:
                await asyncio.sleep(0.005)
        silent = stub.StreamSecrets()
        await silent.write(discovery.DiscoveryRequest(resource_names=["default"]))
        await silent.read()
        endpoint.api.drain()
        assert (await refusal(silent))[0] is grpc.StatusCode.UNAVAILABLE
