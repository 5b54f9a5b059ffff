"""A real Prometheus scrapes a real server and agent, and answers what dashboards and alerts ask (issue 3, item 9)."""

import asyncio
from pathlib import Path

import pytest

from node_agent.monitoring import CLIENT_METRICS
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from tests.doubles.live_agent import OWN, agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, sign, wanted
from tests.doubles.prometheus import prometheus, promtool

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
PORT = {"telemetry": {"prometheus": {"port": 0}}}
CSR = build_csr(generate(KeyKind.EC_P256), spiffe_id=None)
SPIRES_NAMES = (
    "spire_server_uptime_in_ms ",
    "spire_agent_uptime_in_ms ",
    "spire_server_node_agents_by_",
    "spire_server_entry_",
)
"""What promtool would have named otherwise (abbreviated units, gauges that end in _count); dashboards know them so."""
EXPRESSIONS = (
    "sum(rate(spire_server_rpc_entry_v1_entry_list_entries[1m])) by (status)",
    (
        "sum(rate(spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_sum[1m]))"
        " / sum(rate(spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_count[1m]))"
    ),
    'spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time{quantile="0.9"}',
    'spire_server_datastore_registration_entry_create_elapsed_time{quantile="0.5",status="OK"}',
    "increase(spire_server_server_ca_sign_x509_svid[5m])",
    "spire_server_manager_x509_ca_rotate_ttl / 3600",
    "spire_server_manager_x509_ca_rotate_expiration - time()",
    "spire_server_manager_jwt_key_rotate_ttl",
    "spire_server_entry_entries_by_entryid_cache_count + spire_server_node_agents_by_id_cache_count",
    "sum(spire_server_started) by (version, trust_domain_id)",
    "spire_server_uptime_in_ms / 1000",
    "process_resident_memory_bytes > 0",
    "sum(rate(spire_agent_rpc_workload_api_fetch_x509svid[1m])) by (status)",
    'spire_agent_workload_api_workload_attestation_elapsed_time{quantile="0.99"}',
    "rate(spire_agent_workload_api_workload_attestor_elapsed_time_sum[1m])",
    "spire_agent_workload_api_discovered_selectors_sum / spire_agent_workload_api_discovered_selectors_count",
    'sum(spire_agent_manager_sync_fetch_entries_updates{status="OK"})',
    "spire_agent_agent_svid_ttl_seconds",
    "spire_agent_lru_cache_svid_map_size",
    "spire_agent_sds_api_connections",
    "min(spire_agent_health) by (part)",
)


@pytest.fixture
async def both():
    """A server and an agent that have done a bit of everything."""
    async with live_server(**PORT) as live, agent_folder() as folder:
        settings = {
            "trust_bundle_path": str(pem_bundle(live, folder)),
            "join_token_file": str(token_file(folder, await live.token())),
        }
        async with live_agent(folder, live.server.address, **PORT, **settings) as agent:
            await agent.until_joined()
            await work(live, agent)
            yield live, agent


async def work(live, agent):
    number = len(live.state.entries)
    await live.entries(entry(f"/web{number}", parent=agent.path, selectors=OWN))
    agent.sync_now()
    held = len(agent.agent.workloads.all_held())
    await agent.until(lambda: len(agent.agent.workloads.all_held()) > held)
    await agent.client.fetch_x509()
    other = await live.join()
    (made,) = await live.entries(entry("/other", parent=other.path))
    await sign(other, wanted(made, csr=CSR), wanted("none", csr=CSR))
    await other.agent.RenewAgent(agent_pb2.RenewAgentRequest(params={"csr": CSR}), timeout=10)
    for _ in range(3):
        await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)


async def test_dashboards_get_numbers_from_a_real_prometheus(both, tmp_path):
    live, agent = both
    targets = {"server": live.server.monitor.metrics_address, "agent": agent.agent.monitor.metrics_address}
    async with prometheus(tmp_path, targets) as api:
        await api.until("count(up == 1) == 2")
        for _ in range(3):  # rates need two samples that differ
            await work(live, agent)
            await asyncio.sleep(0.5)
        for expression in EXPRESSIONS:
            assert await api.until(expression), expression
        for name in CLIENT_METRICS.values():
            if name != "agent_svid_rotate":  # not within this test's minute
                assert await api.until(f"spire_agent_{name}_elapsed_time_count"), name
        assert 23 < (await api.query("spire_server_manager_x509_ca_rotate_ttl / 3600"))[0] <= 24
        assert not await api.query('{__name__=~"spire_.*",spiffe_id!=""}')
        assert (await api.query('count({__name__=~"spire_.*"})'))[0] < 1500


async def test_promtool_finds_nothing_wrong_with_the_pages_but_spires_own_names(both):
    for one in (both[0].server, both[1].agent):
        page = await asyncio.to_thread(one.monitor.metrics.page)
        assert b"_elapsed_time_count" in page
        complaints = promtool("check", "metrics", text=page, content=False).splitlines()
        strange = [line for line in complaints if line and not line.startswith(SPIRES_NAMES)]
        assert not strange


def test_the_alert_rules_are_valid_and_fire_when_they_should():
    """docs/operations.md names these rules; promtool runs their own tests."""
    assert "SUCCESS" in promtool("check", "rules", str(RULES / "muniment.rules.yml"))
    promtool("test", "rules", str(RULES / "muniment.rules.test.yml"))
