"""Traces of a real server and agent, over real HTTP to a collector (issue 3, item 9)."""

import asyncio
import subprocess
import sys
import time

import grpc.aio
import pytest

from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.runtime.request_id import TRAILER
from spiffe_core.runtime.settings import TracingSection
from spiffe_core.runtime.tracing import SPANS, span
from spiffe_core.runtime.tracing_setup import tracing_of
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, sign, wanted
from tests.doubles.otlp_collector import attributes, collector
from workload_api.client import METADATA

KEY = generate(KeyKind.EC_P256)
ENTRY = "spire.api.server.entry.v1.Entry"
LIST, CREATE = f"{ENTRY}/ListEntries", f"{ENTRY}/BatchCreateEntry"
ATTEST = "spire.api.server.agent.v1.Agent/AttestAgent"
SIGN = "spire.api.server.svid.v1.SVID/BatchNewX509SVID"
FETCH = "SpiffeWorkloadAPI/FetchX509SVID"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def to(found, **over):
    return {"tracing": {"endpoint": found.endpoint, "interval_seconds": 0.1, "timeout_seconds": 5.0, **over}}


@pytest.fixture
def found():
    with collector() as one:
        yield one


async def test_a_call_is_a_span_and_its_steps_are_its_children(found):
    """RPC, store command, signing and attestation; with the request id and without any secret."""
    async with live_server(**to(found)) as live:
        token = await live.token()
        agent = await live.join(token)
        (made,) = await live.entries(entry(parent=agent.path))
        (result,) = await sign(agent, wanted(made, KEY))
        jwt = await agent.svid.NewJWTSVID(svid_pb2.NewJWTSVIDRequest(entry_id=made, audience=["a"]), timeout=10)
        call = live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)
        await call
        request_id = dict(await call.trailing_metadata())[TRAILER]
        with pytest.raises(grpc.aio.AioRpcError):
            await agent.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)
        await asyncio.to_thread(found.wait_for, ATTEST, CREATE, SIGN, LIST, "sign.jwt_svid")
        await live.server.grpc.stop(1)
    for rpc, step in (
        (ATTEST, "attest.node"),
        (ATTEST, "sign.x509_svid"),
        (ATTEST, "store.execute"),
        (CREATE, "store.execute"),
        (SIGN, "sign.x509_svid"),
    ):
        (parent,) = found.named(rpc)
        children = [one for one in found.named(step) if one.parent_span_id == parent.span_id]
        assert children, (rpc, step)
        assert {one.trace_id for one in children} == {parent.trace_id}
    listed = {attributes(one)["rpc.grpc.status_code"]: one for one in found.named(LIST)}
    assert attributes(listed[0])["muniment.request_id"] == request_id
    assert attributes(listed[0]) | {"muniment.request_id": ""} == {
        "rpc.system": "grpc",
        "rpc.service": ENTRY,
        "rpc.method": "ListEntries",
        "rpc.grpc.status_code": 0,
        "muniment.request_id": "",
    }
    assert (listed[7].status.code, listed[7].status.message) == (2, "PermissionDenied")
    assert found.resources[0]["service.name"] == "identity-server"
    sent = b"".join(found.bodies)
    for secret in (token, jwt.svid.token, made, "example.org", "/web"):
        assert secret.encode() not in sent
    assert result.svid.cert_chain[0] not in sent


async def test_a_callers_traceparent_gives_the_trace_its_id_and_nothing_else(found):
    """W3C Trace Context section 3.2; `tracestate` and a broken header are passed over."""
    async with live_server(**to(found)) as live:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "evil=1"), ("baggage", "x=evil"))
        await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), metadata=metadata, timeout=10)
        for broken in ("00-zz-zz-01", "x" * 5_000, f"00-{TRACE}"):
            await live.entry.CountEntries(
                entry_pb2.CountEntriesRequest(), metadata=(("traceparent", broken),), timeout=10
            )
        await asyncio.to_thread(found.wait_for, LIST, f"{ENTRY}/CountEntries")
    (one,) = found.named(LIST)
    assert (one.trace_id.hex(), one.parent_span_id.hex()) == (TRACE, PARENT)
    assert b"evil" not in b"".join(found.bodies)
    counted = found.named(f"{ENTRY}/CountEntries")
    assert len({other.trace_id for other in counted}) == 3
    assert not any(other.parent_span_id for other in counted)


async def test_a_caller_cannot_make_the_server_sample(found):
    async with live_server(**to(found, sample_ratio=0.0)) as live:
        await live.entry.ListEntries(
            entry_pb2.ListEntriesRequest(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),), timeout=10
        )
    assert not found.spans


async def test_an_agent_traces_its_calls_and_attestations(found):
    async with live_server() as live, agent_folder() as folder:
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
        }
        async with live_agent(folder, live.server.address, **to(found), **settings) as agent:
            await agent.until_joined()
            await live.entries(entry("/web", parent=agent.path, selectors=OWN))
            agent.sync_now()
            await agent.until(agent.agent.workloads.all_held)
            await agent.client.fetch_x509()
            await agent._api.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["a"]), metadata=METADATA, timeout=10)
            await asyncio.to_thread(found.wait_for, FETCH, "SpiffeWorkloadAPI/FetchJWTSVID", "attest.workload")
    calls = {one.span_id for one in found.spans if one.name.startswith("SpiffeWorkloadAPI/")}
    assert {one.parent_span_id for one in found.named("attest.workload")} <= calls
    assert found.resources[0]["service.name"] == "node-agent"


async def test_a_collector_that_is_away_holds_up_nobody_and_a_stop_waits_a_bounded_time():
    nowhere = {"tracing": {"endpoint": "http://127.0.0.1:9/v1/traces", "interval_seconds": 0.1}}
    async with live_server(**nowhere) as live:
        for _ in range(20):
            await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)
        began = time.monotonic()
        live.server.tracing.close()
        assert time.monotonic() - began < 10


async def test_without_tracing_a_span_is_nothing():
    assert SPANS.get() is None
    with span("store.read") as nothing:
        assert nothing is None
    assert tracing_of(None, "x", "1") is None


OFF = """
import asyncio, sys
from tests.doubles.live_server import live_server
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
import node_agent.bootstrap

async def main():
    async with live_server() as live:
        await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)

asyncio.run(main())
assert not [name for name in sys.modules if name.partition(".")[0] in {"opentelemetry", "requests"}]
"""


def test_off_means_that_nothing_of_it_is_imported():
    subprocess.run([sys.executable, "-c", OFF], check=True, timeout=50)


def test_without_the_extra_the_configuration_is_refused_with_what_to_do():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from spiffe_core.errors import ConfigError\n"
        "from spiffe_core.runtime.settings import TracingSection\n"
        "from spiffe_core.runtime.tracing_setup import tracing_of\n"
        "try:\n    tracing_of(TracingSection(endpoint='http://127.0.0.1:4318/v1/traces'), 'x', '1')\n"
        "except ConfigError as error:\n    assert \"'.[otel]'\" in error.public\n"
        "else:\n    raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:4318", "ftp://x/v1", "http://", "http://user:word@host/", "http://h\n/"]
)
def test_an_endpoint_is_a_url_without_a_password(endpoint):
    with pytest.raises(ValueError, match="endpoint"):
        TracingSection(endpoint=endpoint)


def test_close_may_be_repeated(found):
    tracing = tracing_of(TracingSection(endpoint=found.endpoint), "x", "1")
    tracing.begin("/s.S/M", (), "id")("OK", 0)
    tracing.close()
    tracing.close()
    assert [one.name for one in found.spans] == ["s.S/M"]
