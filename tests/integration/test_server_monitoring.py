"""How a real server tells how it is: health pages, gRPC health, metrics, request ids (issue 3, item 9; R10, R16, S65)."""

import asyncio
import http.client
import json
import logging
import os
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client.parser import text_string_to_metric_families

from identity_server.domain.history import Position
from identity_server.services import abreast
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.runtime.request_id import current_request_id
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire.positions import POSITION
from tests.doubles.live_server import entry, live_server, sign, wanted

KEY = generate(KeyKind.EC_P256)
CSR = build_csr(KEY, spiffe_id=SpiffeId(TrustDomain("example.org"), "/x"))
MONITORED = {
    "health_checks": {"listener_enabled": True, "bind_port": 0},
    "telemetry": {"prometheus": {"port": 0}},
}
DASHBOARD = (
    "spire_server_rpc_agent_v1_agent_attest_agent",
    "spire_server_rpc_agent_v1_agent_renew_agent",
    "spire_server_rpc_bundle_v1_bundle_get_bundle",
    "spire_server_rpc_bundle_v1_bundle_get_bundle_elapsed_time_count",
    "spire_server_rpc_bundle_v1_bundle_get_bundle_elapsed_time_sum",
    "spire_server_rpc_entry_v1_entry_batch_create_entry",
    "spire_server_rpc_entry_v1_entry_batch_delete_entry",
    "spire_server_rpc_entry_v1_entry_get_authorized_entries",
    "spire_server_rpc_entry_v1_entry_get_authorized_entries_elapsed_time_count",
    "spire_server_rpc_entry_v1_entry_get_authorized_entries_elapsed_time_sum",
    "spire_server_rpc_entry_v1_entry_list_entries",
    "spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_count",
    "spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_sum",
    "spire_server_datastore_registration_entry_list_elapsed_time_count",
    "spire_server_datastore_registration_entry_list_elapsed_time_sum",
    "spire_server_entry_cache_reload_elapsed_time_count",
    "spire_server_entry_cache_reload_elapsed_time_sum",
    "spire_server_runtime_alloc_bytes",
    "spire_server_runtime_heap_objects",
    "spire_server_started",
    "spire_server_uptime_in_ms",
)
"""What SPIRE's Grafana dashboard for servers asks for."""


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


async def health(live):
    """(live, ready, document) as probes see them, and gRPC's word."""
    address = live.server.monitor.health_address
    alive, _ = await page(address, "/live")
    ready, body = await page(address, "/ready")
    answer = await live.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return alive, ready, json.loads(body), health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def scraped(live):
    status, body = await page(live.server.monitor.metrics_address, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(body.decode())
    found = {}
    for sample in (one for family in families for one in family.samples):
        assert sample.name.startswith("process_") or sample.labels.pop("host"), sample
        found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
async def live():
    async with live_server(**MONITORED) as server:
        yield server


async def work(live):
    """A bit of everything that the dashboard looks at."""
    agent = await live.join()
    (made,) = await live.entries(entry(parent=agent.path))
    await sign(agent, wanted(made, csr=CSR))
    await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10)
    await agent.agent.RenewAgent(agent_pb2.RenewAgentRequest(params={"csr": CSR}), timeout=10)
    await live.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)
    await live.bundle.GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[made, "none"]), timeout=10)
    return agent


async def test_a_well_server_is_live_and_ready_and_says_how_long_it_can_sign(live):
    alive, ready, document, word = await health(live)
    assert (alive, ready, word) == (200, 200, "SERVING")
    assert {part["state"] for part in document.values()} == {"ok"}
    assert 86_000 < document["server.ca"]["runway_seconds"] <= 86_400
    assert document["server.ca"]["authority_id"] == live.server.authorities.active.authority_id
    assert document["catalog.datastore"]["revision"] == live.state.position.revision
    assert document["audit"]["lost_lines"] == 0


async def test_calls_that_a_server_behind_turns_away_are_counted(live, monkeypatch):
    """A8: an agent that was told more elsewhere is refused, and an administrator sees how often."""
    monkeypatch.setattr(abreast, "MAX_WAITING", 0)
    agent = await live.join()
    here = live.state.position
    ahead = ((POSITION, str(Position(here.epoch, here.revision + 1, here.token))),)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="catch up"):
            await agent.entry.GetAuthorizedEntries(entry_pb2.GetAuthorizedEntriesRequest(), timeout=10, metadata=ahead)
    found = await scraped(live)
    assert found["spire_server_behind_calls_refused", ()] == 2
    assert found["spire_server_behind_calls_waiting", ()] == 0


async def test_an_expired_authority_means_not_ready_and_not_serving(live):
    live.clock.move(2 * 86_400)
    alive, ready, document, word = await health(live)
    assert (alive, ready, word) == (200, 500, "NOT_SERVING")
    assert document["server.ca"]["state"] == "failed"
    assert document["server.ca"]["runway_seconds"] == 0


async def test_a_server_that_stops_is_live_and_not_ready(live):
    live.server.drain.begin()
    alive, ready, document, word = await health(live)
    assert (alive, ready, word) == (200, 500, "NOT_SERVING")
    assert document["server"]["trouble"] == "the server is stopping"


async def test_a_database_in_trouble_means_not_ready_until_it_is_over(live, caplog):
    """R24: probes learn of it at once and at its end, people once each time; known agents are served all the while."""
    agent = await live.join()
    (made,) = await live.entries(entry(parent=agent.path))
    follower = live.server.store._follower
    follower.close(5.0)
    follower.trouble = "OperationalError: the change follower cannot read the database"
    with caplog.at_level(logging.INFO):
        live.server.monitor.look()
        live.server.monitor.look()
        alive, ready, document, word = await health(live)
        (result,) = await sign(agent, wanted(made, csr=CSR))
        follower.trouble = ""
        follower._agreed_at = time.monotonic() + 60
        live.server.monitor.look()
    assert (alive, ready, word) == (200, 500, "NOT_SERVING")
    assert document["catalog.datastore"]["state"] == "failed"
    assert result.status.code == 0
    assert (await health(live))[1::2] == (200, "SERVING")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("health: ")]
    assert len(told) == 2
    assert "known agents are served from memory" in told[0]
    assert told[1] == "health: catalog.datastore: is well again"


async def test_a_database_that_does_not_answer_shows_as_event_lag(live):
    """R24, issue 3 item 9: what is in memory may be old."""
    follower = live.server.store._follower
    follower.close(5.0)
    follower._agreed_at = time.monotonic() - 31
    _, ready, document, word = await health(live)
    assert (ready, word) == (500, "NOT_SERVING")
    assert document["catalog.datastore"]["event_lag_seconds"] > 30
    follower._agreed_at = time.monotonic() + 60
    assert (await health(live))[1::2] == (200, "SERVING")


async def test_probes_may_be_told_to_leave_a_server_that_serves_from_memory_alone():
    """R24: `health_checks.ready_without_database`."""
    checks = {"listener_enabled": True, "bind_port": 0, "ready_without_database": True}
    async with live_server(health_checks=checks) as live:
        follower = live.server.store._follower
        follower.close(5.0)
        follower.trouble = "gone"
        _, ready, document, word = await health(live)
        assert (ready, word) == (200, "SERVING")
        assert document["catalog.datastore"]["state"] == "degraded"


async def test_too_little_runway_means_not_ready(live):
    """Issue 3 item 9: less than a 24th of the authority's life is left and no other has taken over."""
    active = live.server.authorities.active
    live.clock.move(active.not_after - live.clock.now().timestamp() - 3_500)
    alive, ready, document, word = await health(live)
    assert (alive, ready, word) == (200, 500, "NOT_SERVING")
    assert 3_400 < document["server.ca"]["runway_seconds"] <= 3_500


async def test_an_audit_gap_is_degraded_health_and_leaves_the_server_serving(live):
    """R10: the disk under the audit log is full; leaf issuance goes on and the gap is counted and shown."""
    agent = await live.join()
    (made,) = await live.entries(entry(parent=agent.path))
    sink = live.server.audit
    good, full = os.dup(sink._output._descriptor), os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, sink._output._descriptor)
        (result,) = await sign(agent, wanted(made, csr=CSR))
        assert result.status.code == 0
        async with asyncio.timeout(5):
            while sink.healthy:
                await asyncio.sleep(0.005)
        _, ready, document, word = await health(live)
        assert (ready, word) == (200, "SERVING")
        assert document["audit"]["state"] == "degraded"
        assert document["audit"]["lost_lines"] >= 1  # the certificate's, and perhaps the call's
    finally:
        os.dup2(good, sink._output._descriptor)
        os.close(good)
        os.close(full)
    (result,) = await sign(agent, wanted(made, csr=CSR))
    async with asyncio.timeout(5):
        while not sink.healthy:
            await asyncio.sleep(0.005)
    _, _, document, _ = await health(live)
    assert document["audit"] == {"state": "ok", "lost_lines": 0}


async def test_a_blocked_loop_is_not_live_while_it_lasts_and_no_longer(live):
    """R16: the probe is answered by another thread, so it tells the truth while nothing else is answered."""
    watchdog = live.server.monitor.watchdog
    watchdog._beat, watchdog._slow, watchdog._blocked = 0.01, 0.05, 0.2
    address = live.server.monitor.health_address
    seen = threading.Event()
    answers = []

    def probe():
        while not seen.is_set():
            status, body = fetch(address, "/live")
            if status == 500:
                answers.append(json.loads(body)["event_loop"])
                seen.set()
            time.sleep(0.01)

    async with asyncio.timeout(5):
        while watchdog._asked_at is None:  # the beat under the new settings has begun
            await asyncio.sleep(0)
    prober = threading.Thread(target=probe)
    prober.start()
    assert seen.wait(20)  # this blocks the server's loop
    prober.join()
    assert answers[0]["state"] == "stuck"
    assert answers[0]["lag_seconds"] >= 0.2
    async with asyncio.timeout(5):
        while watchdog.blocked:
            await asyncio.sleep(0.005)
    assert (await page(address, "/live"))[0] == 200


async def test_the_names_of_spires_dashboard_are_there(live):
    await work(live)
    names = {name for name, _ in await scraped(live)}
    assert set(DASHBOARD) <= names


async def test_numbers_are_those_of_what_happened(live):
    agent = await work(live)
    found = await scraped(live)
    ok = (("status", "OK"),)
    assert found["spire_server_rpc_agent_v1_agent_attest_agent", ok] == 1
    assert found["spire_server_rpc_svid_v1_svid_batch_new_x509svid", ok] == 1
    assert found["spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_sum", ok] > 0
    assert found["spire_server_datastore_registration_entry_create", ok] == 1
    assert found["spire_server_entry_entries_by_entryid_cache_count", ()] == 0
    assert found["spire_server_node_agents_by_id_cache_count", ()] == 1
    assert found["spire_server_svid_rotate", ok] == 1
    assert found["spire_server_server_ca_sign_x509_svid", ()] == 4  # the server's, the agent's twice, the workload's
    assert found["spire_server_ca_manager_x509_ca_activate", ()] == 1
    labels = dict(next(labels for name, labels in found if name == "spire_server_started"))
    assert labels["trust_domain_id"] == "example.org"
    with pytest.raises(grpc.aio.AioRpcError):
        await agent.entry.ListEntries(entry_pb2.ListEntriesRequest(), timeout=10)
    denied = (("status", "PermissionDenied"),)
    assert (await scraped(live))["spire_server_rpc_entry_v1_entry_list_entries", denied] == 1


async def test_strangers_cannot_make_new_series(live):
    """S65: unknown methods, services and attestor names add nothing."""
    await work(live)
    before = {key for key in await scraped(live) if "rpc_" in key[0]}
    stranger = await live.dial()
    for number in range(20):
        call = stranger.dialer.channel().unary_unary(f"/evil.Service{number}/Method{number}")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"", timeout=5)
    assert {key for key in await scraped(live) if "rpc_" in key[0]} == before


async def test_nothing_listens_and_nothing_is_counted_unless_configured():
    async with live_server() as live:
        assert live.server.monitor.health_address is None
        assert live.server.monitor.metrics_address is None
        assert live.server.monitor.metrics is None


async def test_log_lines_and_audit_lines_of_one_call_share_a_request_id(live):
    await live.entries(entry())
    await live.entries(entry(path="/other"))
    lines = [json.loads(line) for line in live.server.audit._path.read_text().splitlines()]
    first, second = (line["request_id"] for line in lines if line["event"] == "entry" and line["outcome"] == "begun")
    assert len(first) == 16
    assert first != second
    assert all("request_id" not in line for line in lines if line["event"] == "authority")


async def test_the_reference_of_an_internal_error_is_the_request_id(live, monkeypatch, caplog):
    """What a caller reports finds the log lines and audit lines of that call."""
    seen = []

    async def broken(*_):
        seen.append(current_request_id())
        raise RuntimeError("secret")

    monkeypatch.setattr(live.server.registration, "count", broken)
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await live.entry.CountEntries(entry_pb2.CountEntriesRequest(), timeout=5)
    assert found.value.details() == f"internal error, reference {seen[0]}"
