"""How a real agent tells how it is: health pages, gRPC health, metrics under SPIRE's names (issue 3, item 9; R16, R20)."""

import asyncio
import http.client
import json
import time
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, spiffe_id
from workload_api.client import METADATA

MONITORED = {
    "health_checks": {"listener_enabled": True, "bind_port": 0},
    "telemetry": {"prometheus": {"port": 0}},
}
DASHBOARD = (
    "spire_agent_manager_sync_fetch_entries_updates",
    "spire_agent_manager_sync_fetch_entries_updates_elapsed_time_count",
    "spire_agent_manager_sync_fetch_entries_updates_elapsed_time_sum",
    "spire_agent_manager_sync_fetch_svids_updates",
    "spire_agent_manager_sync_fetch_svids_updates_elapsed_time_count",
    "spire_agent_manager_sync_fetch_svids_updates_elapsed_time_sum",
    "spire_agent_rpc_workload_api_fetch_jwt_bundles",
    "spire_agent_rpc_workload_api_fetch_jwtsvid",
    "spire_agent_rpc_workload_api_fetch_jwtsvid_elapsed_time_count",
    "spire_agent_rpc_workload_api_fetch_jwtsvid_elapsed_time_sum",
    "spire_agent_rpc_workload_api_fetch_x509_bundles",
    "spire_agent_rpc_workload_api_fetch_x509svid",
    "spire_agent_rpc_workload_api_fetch_x509svid_elapsed_time_count",
    "spire_agent_rpc_workload_api_fetch_x509svid_elapsed_time_sum",
    "spire_agent_runtime_alloc_bytes",
    "spire_agent_runtime_heap_objects",
    "spire_agent_sds_api_connections",
    "spire_agent_started",
    "spire_agent_workload_api_workload_attestation_elapsed_time_count",
    "spire_agent_workload_api_workload_attestation_elapsed_time_sum",
)
"""What SPIRE's Grafana dashboard for agents asks for."""
MORE = (
    "spire_agent_node_attestor_new_svid",
    "spire_agent_workload_api_connection",
    "spire_agent_workload_api_connections",
    "spire_agent_workload_api_workload_attestor",
    "spire_agent_workload_api_discovered_selectors_count",
    "spire_agent_lru_cache_record_map_size",
    "spire_agent_lru_cache_svid_map_size",
    "spire_agent_jwt_svid_cache_size",
    "spire_agent_uptime_in_ms",
)


def fetch(address, path):
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def page(address, path):
    return await asyncio.to_thread(fetch, address, path)


async def health(agent):
    """(live, ready, document) as probes see them, and gRPC's word."""
    address = agent.agent.monitor.health_address
    alive, _ = await page(address, "/live")
    ready, body = await page(address, "/ready")
    return alive, ready, json.loads(body), await agent.health()


async def scraped(agent):
    status, body = await page(agent.agent.monitor.metrics_address, "/metrics")
    assert status == 200
    found = {}
    for sample in (one for family in text_string_to_metric_families(body.decode()) for one in family.samples):
        assert sample.name.startswith("process_") or sample.labels.pop("host")
        found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@asynccontextmanager
async def joined(live, token=None, **over):
    async with agent_folder() as folder:
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, token or await live.token())),
        }
        async with live_agent(folder, live.server.address, **MONITORED, **settings, **over) as agent:
            if token is None:
                await agent.until_joined()
            yield agent


async def test_an_agent_that_has_joined_is_live_and_ready(live):
    async with joined(live) as agent:
        await agent.until(lambda: agent.agent.synchronize.synced)
        alive, ready, document, word = await health(agent)
        assert (alive, ready, word) == (200, 200, "SERVING")
        assert {part["state"] for part in document.values()} == {"ok"}
        assert document["agent.svid"]["phase"] == "joined"
        assert 3_500 < document["agent.svid"]["runway_seconds"] <= 3_600
        assert document["agent.sync"]["last_sync_seconds"] < 30


async def test_an_agent_that_cannot_join_is_live_and_not_ready_and_says_why(live):
    async with joined(live, token="never-made") as agent:
        await agent.until(lambda: agent.agent.membership.session.failures)
        alive, ready, document, word = await health(agent)
        assert (alive, ready, word) == (200, 500, "NOT_SERVING")
        assert "could not join the trust domain" in document["agent.svid"]["trouble"]
        assert "never-made" not in json.dumps(document)


async def test_a_server_that_is_away_is_shown_and_the_agent_goes_on_serving(live):
    """R20: workloads keep what they have; probes must not restart their agent for it."""
    async with joined(live) as agent:
        await agent.until(lambda: agent.agent.synchronize.synced)
        await live.server.door.close()
        agent.sync_now()
        await agent.until(lambda: not agent.agent.synchronize.synced)
        alive, ready, document, word = await health(agent)
        assert (alive, ready, word) == (200, 200, "SERVING")
        assert document["agent.sync"]["state"] == "degraded"


async def test_a_banned_agent_is_live_and_not_ready(live):
    """A19: it stays up, red."""
    async with joined(live) as agent:
        await live.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)), timeout=10)
        agent.sync_now()
        await agent.until(lambda: not agent.agent.membership.session.is_member)
        alive, ready, document, word = await health(agent)
        assert (alive, ready, word) == (200, 500, "NOT_SERVING")
        assert "banned" in document["agent.svid"]["trouble"]


async def test_an_agent_that_stops_is_live_and_not_ready(live):
    async with joined(live) as agent:
        agent.agent.parts.draining = True
        alive, ready, document, _ = await health(agent)
        assert (alive, ready) == (200, 500)
        assert document["agent"]["trouble"] == "the agent is stopping"


async def test_a_blocked_loop_is_not_live(live):
    """R16: the page is answered by another thread."""
    async with joined(live) as agent:
        watchdog = agent.agent.monitor.watchdog
        watchdog._beat, watchdog._slow, watchdog._blocked = 0.01, 0.05, 0.2
        began = time.monotonic()
        answer = None
        await asyncio.sleep(0.3)
        while answer is None or answer[0] == 200:  # this blocks the agent's loop
            answer = fetch(agent.agent.monitor.health_address, "/live")
            assert time.monotonic() - began < 30
        assert json.loads(answer[1])["event_loop"]["state"] == "stuck"


async def test_the_names_of_spires_dashboard_are_there_with_true_numbers(live):
    async with joined(live) as agent:
        await live.entries(entry("/web", parent=agent.path, selectors=OWN))
        agent.sync_now()
        await agent.until(agent.agent.workloads.all_held)
        await agent.client.fetch_x509()
        api = agent._api
        await api.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["a"]), metadata=METADATA, timeout=10)
        for stream in (
            api.FetchX509Bundles(workload_pb2.X509BundlesRequest(), metadata=METADATA),
            api.FetchJWTBundles(workload_pb2.JWTBundlesRequest(), metadata=METADATA),
        ):
            assert await stream.read() is not grpc.aio.EOF
            stream.cancel()
        names = {"x509_bundles", "jwt_bundles"}
        async with asyncio.timeout(20):
            while not {f"spire_agent_rpc_workload_api_fetch_{name}" for name in names} <= {
                n for n, _ in await scraped(agent)
            }:
                await asyncio.sleep(0.01)
        found = await scraped(agent)
        names = {name for name, _ in found}
        assert set(DASHBOARD) | set(MORE) <= names, (set(DASHBOARD) | set(MORE)) - names
        ok = (("status", "OK"),)
        assert found["spire_agent_node_attestor_new_svid", ok] == 1
        assert found["spire_agent_rpc_workload_api_fetch_jwtsvid", ok] == 1
        assert found["spire_agent_workload_api_workload_attestor", (("attestor", "unix"), *ok)] >= 4
        assert found["spire_agent_lru_cache_svid_map_size", ()] == 1
        assert found["spire_agent_jwt_svid_cache_size", ()] == 1
        assert found["spire_agent_workload_api_connection", ()] >= 4
        assert found["spire_agent_workload_api_connections", ()] == 0
        labels = dict(next(labels for name, labels in found if name == "spire_agent_started"))
        assert labels["trust_domain_id"] == "example.org"


async def test_probes_of_health_are_not_counted(live):
    async with joined(live) as agent:
        before = set(await scraped(agent))
        await agent.health()
        assert {name for name, _ in set(await scraped(agent)) - before if "health_v1" in name} == set()


async def test_nothing_listens_and_nothing_is_counted_unless_configured(live):
    async with agent_folder() as folder:
        bundle = str(pem_bundle(live, folder))
        async with live_agent(folder, live.server.address, trust_bundle_path=bundle) as agent:
            monitor = agent.agent.monitor
            assert (monitor.health_address, monitor.metrics_address, monitor.metrics) == (None, None, None)
