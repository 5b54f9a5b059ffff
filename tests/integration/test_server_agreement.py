"""R39: servers that share a database and differ in their settings: alarm on each, one lifetime, an end by itself.

Each test runs on PostgreSQL and on MariaDB, both real.
"""

import asyncio
import contextlib
import http.client
import json
import logging
import re
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from cryptography import x509

from identity_server import daemon
from identity_server.domain.profiles import Profile
from identity_server.domain.server_settings import PRESENT_SECONDS
from identity_server.services.server_agreement import WRITE_SECONDS
from spiffe_core.errors import Unavailable
from spiffe_core.lifetime import BACKDATE
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.held_follower import seen
from tests.doubles.live_server import TD, entry, live_server, sign, wanted

SHORT = {"svid": {"default_x509_ttl": "10m"}, "jwt": {"default_ttl": "1m"}}
LONG = {"svid": {"default_x509_ttl": "30m"}, "jwt": {"default_ttl": "5m"}}
KEYS = ["jwt.default_ttl", "svid.agent_ttl", "svid.default_x509_ttl"]
MONITORED = {
    "health_checks": {"listener_enabled": True, "bind_port": 0},
    "telemetry": {"prometheus": {"port": 0}},
}


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@asynccontextmanager
async def serving(url, folder, **settings):
    """A server that looks at the others' settings as the daemon does."""
    async with live_server(folder, database={"url": url}, **settings) as live:
        loop = asyncio.ensure_future(daemon.keep_agreement(live.server))
        try:
            yield live
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


async def agreed(live, *keys):
    """Wait until this server finds that exactly these settings differ."""
    async with asyncio.timeout(20):
        while [one.key for one in live.server.agreement.differences] != list(keys):
            await asyncio.sleep(0.01)


async def lifetimes(live, agent, entry_id):
    """In seconds, of the X.509-SVID and the JWT-SVID that this server gives for the entry."""
    await seen(live.server.store, lambda state: entry_id in state.entries and agent.path in state.agents)
    there = await live.agent_with(agent.own, agent.key)
    (made,) = await sign(there, wanted(entry_id))
    assert made.status.code == 0, made.status
    leaf = x509.load_der_x509_certificate(made.svid.cert_chain[0])
    request = svid_pb2.NewJWTSVIDRequest(entry_id=entry_id, audience=["a"])
    token = (await there.svid.NewJWTSVID(request, timeout=10)).svid
    whole = leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE
    return whole.total_seconds(), token.expires_at - token.issued_at


def default_life(live):
    """In seconds, of a certificate for which nobody asks for another."""
    return live.server.authorities.issuer.order(Profile.WORKLOAD, SpiffeId(TD, "/x")).ttl


def told(caplog):
    return [one for one in caplog.records if one.name == "identity_server.services.server_agreement"]


def page(address, path):
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def test_differing_servers_alarm_agree_on_the_shorter_life_and_are_well_once_they_are_equal(
    url, tmp_path, caplog
):
    """R39: neither refuses to start; the same entry's lifetime does not alternate; the alarm ends with the difference."""
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        long = await stack.enter_async_context(serving(url, tmp_path / "a", **LONG))
        agent = await long.join()
        plain, own = await long.entries(
            entry("/web", agent.path), entry("/own", agent.path, x509_svid_ttl=1200, jwt_svid_ttl=240)
        )
        assert await lifetimes(long, agent, plain) == (1800, 300)
        async with serving(url, tmp_path / "b", **SHORT) as short:
            for live in (long, short):
                await agreed(live, *KEYS)
                assert live.server.serving
            for live in (long, short, long, short):
                assert await lifetimes(live, agent, plain) == (600, 60)
                assert await lifetimes(live, agent, own) == (1200, 240), "an entry's own lifetimes stand"
            alarms = [one for one in told(caplog) if one.levelno == logging.ERROR]
            assert len(alarms) == 2, "one from each server, once"
            for alarm in alarms:
                text = alarm.getMessage()
                assert "jwt.default_ttl is " in text
                for value, live in ((300, long), (60, short)):
                    assert f"{value} on server {live.server.server_id}" in text
                assert "Make them equal" in text
        caplog.clear()
        async with serving(url, tmp_path / "b", **LONG) as equal:
            assert equal.server.server_id == short.server.server_id
            for live in (long, equal):
                await agreed(live)
                assert await lifetimes(live, agent, plain) == (1800, 300)
            assert [one.levelno for one in told(caplog)] == [logging.INFO]


async def test_health_and_metrics_show_it_and_the_server_stays_ready(url, tmp_path):
    """R39: live and ready pages answer 200, the part is degraded and names what differs; the gauge counts the settings."""
    async with (
        serving(url, tmp_path / "a", **LONG, **MONITORED) as one,
        serving(url, tmp_path / "b", **{**LONG, "jwt": {"default_ttl": "2m"}}) as other,
    ):
        await agreed(one, "jwt.default_ttl")
        status, document = await asyncio.to_thread(page, one.server.monitor.health_address, "/ready")
        part = json.loads(document)["server.settings"]
        assert (status, part["state"]) == (200, "degraded")
        assert f"120 on server {other.server.server_id}" in part["trouble"]
        assert (await asyncio.to_thread(page, one.server.monitor.health_address, "/live"))[0] == 200
        _, metrics = await asyncio.to_thread(page, one.server.monitor.metrics_address, "/metrics")
        assert re.search(r"^spire_server_settings_differ(\{[^}]*\})? 1\.0$", metrics, re.MULTILINE)


async def test_a_server_that_is_gone_counts_no_more_and_one_that_stays_does(url, tmp_path):
    """R39: taking a server away ends the alarm without any command; as long as it is there it signs on."""
    async with live_server(tmp_path / "a", database={"url": url}, **LONG) as one:
        async with live_server(tmp_path / "b", database={"url": url}, **SHORT) as other:
            for live in (one, other, one, other):
                live.clock.move(WRITE_SECONDS)
                await live.server.agreement.tick()
                assert [found.key for found in live.server.agreement.differences] == KEYS
        one.clock.move(PRESENT_SECONDS + 5)
        await one.server.agreement.tick()
        assert one.server.agreement.differences == ()
        assert default_life(one) == 1800


async def test_while_the_database_is_away_what_was_agreed_stays_in_force(url, tmp_path):
    """R24, R39: a server that cannot ask does not fall back to its own longer lifetime."""
    with DatabaseProxy(url) as proxy:
        async with live_server(tmp_path / "a", database={"url": proxy.url}, **LONG) as one:
            async with live_server(tmp_path / "b", database={"url": url}, **SHORT):
                await one.server.agreement.tick()
            proxy.cut()
            one.clock.move(PRESENT_SECONDS * 2)
            with pytest.raises(Unavailable):
                await one.server.agreement.tick()
            assert [found.key for found in one.server.agreement.differences] == KEYS
            assert default_life(one) == 600
            proxy.mend()
            async with asyncio.timeout(30):
                while one.server.agreement.differences:
                    with contextlib.suppress(Unavailable):
                        await one.server.agreement.tick()
            assert default_life(one) == 1800
