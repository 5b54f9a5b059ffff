"""Push streams where several servers share a database: nothing missed, nothing twice, nothing old (A8, A9).

Each test runs on PostgreSQL and on MariaDB, both real, unless it is about one of them.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack, closing

import grpc
import psycopg
import pymysql
import pytest
from sqlalchemy import make_url

from identity_server.domain.agents import AttestedAgent
from identity_server.rpc.services import PROPAGATION
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import x509svid_pb2 as types_pb2
from spiffe_core.wire.services import handlers
from tests.builders import TD, make_entry
from tests.databases import SHARED_KINDS, running_store, url_of
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.database_servers import shared_server
from tests.doubles.held_follower import held_back, seen
from tests.doubles.live_agent import agent_folder, live_agent, pem_bundle, token_file
from tests.doubles.live_server import entry, live_server, spiffe_id
from tests.doubles.server_pair import following, sharing_servers

OWN = (("unix", f"uid:{os.getuid()}"),)


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.fixture
async def pair(url):
    async with sharing_servers(url) as servers:
        yield servers


async def delete(live, *ids):
    await live.entry.BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=ids), timeout=10)


async def renew(agent, key):
    request = agent_pb2.RenewAgentRequest(params={"csr": build_csr(key, spiffe_id=None)})
    return (await agent.agent.RenewAgent(request, timeout=10)).svid


async def attested_again(live, agent):
    """As an attestor does whose agents keep their path: a new certificate and a new record."""
    issued = live.server.authorities.issuer.issue("agent", SpiffeId(TD, agent.path), agent.key.public_key())
    record = AttestedAgent(issued.spiffe_id, "x509pop", issued.serial, issued.not_after, can_reattest=True)
    await live.server.store.execute(lambda uow: uow.agents.put(record))
    return types_pb2.X509SVID(cert_chain=issued.chain, id=spiffe_id(agent.path), expires_at=issued.not_after)


async def test_a_server_that_cannot_listen_pushes_within_five_seconds_each_change_once(tmp_path):
    """R34: NOTIFY does not reach the server that the agent follows; the reconcile poll does."""
    url = url_of("postgresql", tmp_path)
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(DatabaseProxy(url))
        one = await stack.enter_async_context(live_server(database={"url": url}))
        other = await stack.enter_async_context(live_server(database={"url": proxy.url}))
        there = await stack.enter_async_context(following(other))
        proxy.forbid(b"LISTEN")
        made = []
        for number in range(3):
            began = time.monotonic()
            made += await one.entries(entry(f"/e{number}", parent=there.path))
            await there.until(lambda it, wanted=frozenset(made): it.entries.keys() == wanted, seconds=5)
            assert time.monotonic() - began < 5
        await delete(one, made[0])
        await there.until(lambda it: made[0] not in it.entries, seconds=5)
        assert proxy.cuts >= 1, "it tried to listen again"
        proxy.mend()
        assert there.received == made, "none missed, none twice, in order"


async def test_a_transaction_that_commits_late_is_pushed_by_every_server(pair, url):
    """R35: somebody holds the head while both servers write; whoever commits first, every agent gets all of it."""
    one, other = pair
    async with following(one) as here, following(other) as there:
        (first,) = await one.entries(entry("/first", parent=here.path))
        await seen(other.server.store, lambda state: first in state.entries)
        with closing(connection_to(url)) as slow, slow.cursor() as cursor:
            cursor.execute("SELECT epoch, revision FROM log_head WHERE id = 1 FOR UPDATE")
            _, revision = cursor.fetchone()
            cursor.execute("UPDATE entry SET hint = %s", (b"late",))
            cursor.execute(
                "INSERT INTO log_event (revision, seq, token, kind, subject) VALUES (%s, 0, 77, 2, %s)",
                (revision + 1, first.encode()),
            )
            writes = [
                asyncio.ensure_future(live.entries(entry(f"/{name}", parent=agent.path)))
                for name, live, agent in (("a", one, there), ("b", other, here))
            ]
            done, _ = await asyncio.wait(writes, timeout=0.3)
            assert not done, "nobody passes the one who holds the head"
            cursor.execute("UPDATE log_head SET revision = %s, token = 77 WHERE id = 1", (revision + 1,))
            slow.commit()
        (for_there,), (for_here,) = await asyncio.gather(*writes)
        await here.until(lambda it: it.entries.keys() == {first, for_here} and it.entries[first].hint == "late")
        await there.until(lambda it: it.entries.keys() == {for_there})
        assert sorted(here.received) == sorted([first, first, for_here]), "once when made, once when changed"


def connection_to(url):
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return psycopg.connect(host=parsed.query["host"], user=parsed.username, dbname=parsed.database)
    return pymysql.connect(unix_socket=parsed.query["unix_socket"], user=parsed.username, database=parsed.database)


NUMBERS = {
    "postgresql": "SELECT {after} + n, 0, n, kind, subject FROM generate_series(1, {count}) n",
    "mariadb": "SELECT {after} + n.seq, 0, n.seq, kind, subject FROM seq_1_to_{count} n",
}


async def test_half_a_million_old_events_hold_up_neither_start_nor_push(url):
    """R36: the state is read as it is, then followed; ready within ten seconds of work, and so is an agent."""
    count = 500_000
    async with running_store(url) as store:
        await store.execute(lambda uow: uow.entries.add([make_entry(id="kept")]))
        after = store.state.value.position.revision
    parsed = make_url(url)
    numbers = NUMBERS[parsed.get_backend_name()].format(after=after, count=count)
    shared_server(parsed.get_backend_name()).execute(
        parsed.database,
        f"INSERT INTO log_event (revision, seq, token, kind, subject) {numbers}, "  # constants
        f"(SELECT kind, subject FROM log_event WHERE revision = {after}) last",
        f"UPDATE log_head SET revision = {after + count}, token = {count}",  # constants
    )
    began = time.process_time()
    async with sharing_servers(url) as (one, other):
        took = time.process_time() - began
        assert "kept" in one.state.entries
        async with following(other) as there:
            (made,) = await one.entries(entry(parent=there.path))
            await there.until(lambda it: it.entries.keys() == {made})
    assert took < 10, f"{took:.1f} s for two servers"


async def test_an_entry_deleted_and_made_again_with_its_id_while_the_agent_moves(pair):
    """R47: the other server does not know the agent's position, and its stamps tell the old entry from the new one."""
    one, other = pair
    agent = await one.join()
    (entry_id,) = await one.entries(entry(parent=agent.path))
    async with following(one, agent) as here:
        old = here.entries[entry_id]
    await delete(one, entry_id)
    one.clock.move(2)
    new = entry(parent=agent.path, selectors=(("unix", "uid:2000"),), id=entry_id)
    assert await one.entries(new) == [entry_id]
    moved = await other.agent_with(agent.own, agent.key)
    await seen(other.server.store, lambda state: entry_id in state.entries and agent.path in state.agents)
    async with following(other, moved, here.position, held=[old]) as there:
        await there.until(lambda it: it.entries[entry_id] != old)
        assert there.compared
        assert there.entries[entry_id].revision_number == old.revision_number
        assert [one.value for one in there.entries[entry_id].selectors] == ["uid:2000"]


async def test_a_stream_that_fails_over_costs_what_differs_and_back_again_nothing(pair):
    """A9: an unknown position is compared by stamps, a known one goes on; neither costs a snapshot."""
    one, other = pair
    agent = await one.join()
    kept, gone = await one.entries(*(entry(f"/{name}", parent=agent.path) for name in ("kept", "gone")))
    moved = await other.agent_with(agent.own, agent.key)
    async with following(one, agent) as first:
        assert first.entries.keys() == {kept, gone}
    while len(one.server.followers):  # what it was sent last is what it has
        await asyncio.sleep(0.01)
    await delete(other, gone)
    (new,) = await other.entries(entry("/new", parent=agent.path))
    async with following(other, moved, first.position, held=first.entries.values()) as second:
        await second.until(lambda it: it.entries.keys() == {kept, new})
        assert (second.compared, second.replaced, second.received) == (True, False, [new])
    await seen(one.server.store, lambda state: new in state.entries)
    async with following(one, agent, first.position, held=first.entries.values()) as third:
        await third.until(lambda it: it.entries.keys() == {kept, new})
        assert (third.compared, third.replaced, third.received) == (False, False, [new])


async def test_a_server_behind_the_agent_takes_nothing_from_it(pair):
    """A8, A9: it waits until it is as far as the agent was told, or says Unavailable; it never sends an older state."""
    one, other = pair
    agent = await one.join()
    moved = await other.agent_with(agent.own, agent.key)
    await seen(other.server.store, lambda state: agent.path in state.agents)
    async with held_back(other.server.store):
        (made,) = await one.entries(entry(parent=agent.path))
        async with following(one, agent) as here:
            assert here.entries.keys() == {made}
        at, held = here.position, list(here.entries.values())
        async with following(other, moved, at, held=held, carries=at) as there:
            assert there.ended.code() is grpc.StatusCode.UNAVAILABLE
            assert there.entries.keys() == {made}
    async with following(other, moved, at, held=held, carries=at) as there:
        assert there.entries.keys() == {made}
        assert there.received == []


async def test_attested_or_renewed_on_one_an_agent_follows_another_that_does_not_know_yet(pair):
    """A8: the stream is opened by what the database says, and stays when memory learns of it."""
    one, other = pair
    async with AsyncExitStack() as stack:
        async with held_back(other.server.store):
            agent = await one.join()
            there = await stack.enter_async_context(following(other, await other.agent_with(agent.own, agent.key)))
            (made,) = await one.entries(entry(parent=agent.path))
        await there.until(lambda it: it.entries.keys() == {made})
        await stack.aclose()
        async with held_back(other.server.store):
            key = generate(KeyKind.EC_P256)
            renewed = await other.agent_with(await renew(agent, key), key)
            there = await stack.enter_async_context(following(other, renewed))
            (second,) = await one.entries(entry("/second", parent=agent.path))
        await there.until(lambda it: it.entries.keys() == {made, second})
        assert there.ended is None


async def test_banned_evicted_and_attested_again_an_agent_follows_another_that_still_knows_the_ban(pair):
    """A8: what memory says is no longer true; the stream opens, and stays when memory learns of the new record."""
    one, other = pair
    agent = await one.join()
    await one.agent.BanAgent(agent_pb2.BanAgentRequest(id=spiffe_id(agent.path)))
    await seen(other.server.store, lambda state: agent.path in state.agents and state.agents[agent.path].banned)
    async with AsyncExitStack() as stack:
        async with held_back(other.server.store):
            await one.agent.DeleteAgent(agent_pb2.DeleteAgentRequest(id=spiffe_id(agent.path)))
            again = await other.agent_with(await attested_again(one, agent), agent.key)
            there = await stack.enter_async_context(following(other, again))
            assert other.state.agents[agent.path].banned
            (made,) = await one.entries(entry(parent=agent.path))
        await there.until(lambda it: it.entries.keys() == {made})
        assert there.ended is None


def without_push(monkeypatch):
    """Servers that are assembled from here on are of a version that does not know the push service."""

    def older(service, servicer):
        return handlers(service, servicer if service is not PROPAGATION else object())

    monkeypatch.setattr("identity_server.rpc_services.handlers", older)


async def test_a_new_entry_is_served_in_every_mix_of_old_and_new_while_servers_are_replaced(url, monkeypatch):
    """R38: an old and a new server on one database, old and new agents at each; entries are made at the other server.

    Old means without the push service, and without a row that tells how far agents are.
    """
    async with AsyncExitStack() as stack:
        with monkeypatch.context() as patch:
            without_push(patch)
            old = await stack.enter_async_context(live_server(database={"url": url}))
        new = await stack.enter_async_context(live_server(database={"url": url}))
        for live in (old, new):
            await seen(live.server.store, lambda state: len(state.bundles.own.x509_roots) == 2)
        agents = []
        for live in (old, new):
            for push in (False, True):
                folder = await stack.enter_async_context(agent_folder())
                settings = {
                    "trust_bundle_path": str(pem_bundle(live, folder)),
                    "join_token_file": str(token_file(folder, await live.token())),
                    "push": push,
                }
                agent = await stack.enter_async_context(live_agent(folder, live.server.address, **settings))
                await agent.until_joined()
                agents.append((live, agent))
        for round_ in ("/first", "/second"):
            for live, agent in agents:
                maker = new if live is old else old
                await maker.entries(entry(round_, parent=agent.path, selectors=OWN))
            for _, agent in agents:
                wanted = {"/first": 1, "/second": 2}[round_]
                await agent.until(lambda agent=agent, wanted=wanted: agent.agent.workloads.held_count == wanted, 20)
        followed = [live is new and agent.agent.follow is not None and agent.agent.follow.up for live, agent in agents]
        assert followed == [False, False, False, True]
