"""The database goes back in time: a restored backup, a fail-over to a replica that lacks the last writes (R27, R50)."""

import asyncio
import contextlib
import uuid
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cryptography import x509

from identity_server.daemon import keep_authorities
from identity_server.domain.history import HistoryChange
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as authority_pb2
from tests.builders import make_entry
from tests.databases import SHARED_KINDS, open_store, running_store
from tests.doubles.database_proxy import DatabaseProxy
from tests.doubles.database_replicas import REPLICAS, Standby
from tests.doubles.database_servers import new_server
from tests.doubles.held_follower import held_back, seen
from tests.doubles.live_server import TD, entry, live_server, sign, wanted


@pytest.fixture(scope="module", params=SHARED_KINDS)
def database(request):
    server = new_server(request.param)
    yield server
    server.close()


@pytest.fixture
def url(database):
    return database.new_database(f"t{uuid.uuid4().hex[:20]}")


def add(name):
    return lambda uow: uow.entries.add([make_entry(id=str(name), spiffe_id=f"/{name}")])


async def tables(store):
    return {one.id for one in await store.read(lambda uow: list(uow.entries.all()))}


@pytest.mark.slow
@pytest.mark.parametrize("written", [2, 5, 9])
async def test_a_restored_database_is_recognised_whatever_was_written_since(database, url, written):
    """R27, eventlog 4.5: five revisions are lost, and `written` new ones stand in their place before we look again."""
    async with running_store(url, server_id="one") as store:
        told: asyncio.Queue[HistoryChange] = asyncio.Queue()
        store.on_history_change = told.put_nowait
        await store.execute(add("kept"))
        await asyncio.to_thread(database.save)
        async with asyncio.timeout(20):
            for number in range(5):
                await retried(store, add(f"lost-{number}"))
        before = store.state.value.position
        async with held_back(store):
            await asyncio.to_thread(database.restore)
            async with running_store(url, server_id="other") as other:
                for number in range(written):
                    await other.execute(add(f"new-{number}"))
        async with asyncio.timeout(20):
            change = await told.get()
        assert (change.proven, change.before) == (True, before)
        await seen(store, lambda state: state.position.epoch > before.epoch)
        expected = {"kept", *(f"new-{number}" for number in range(written))}
        assert set(store.state.value.entries) == await tables(store) == expected
        await store.execute(add("after"))
        assert told.empty(), "one alarm"


async def retried(store, command):
    """As a caller does that is told to come back."""
    while True:
        try:
            return await store.execute(command)
        except Exception as error:
            if "try again" not in str(error):
                raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def looked_after(live):
    """With the daemon's loop that keeps the authorities."""
    async with Supervisor() as tasks:
        tasks.start(keep_authorities(live.server), "rotation")
        yield
        tasks.stop()


async def rotated(live, *others):
    """A new authority signs; its id. Eleven seconds pass for everybody meanwhile."""
    made = await live.local.PrepareX509Authority(authority_pb2.PrepareX509AuthorityRequest(), timeout=20)
    authority_id = made.prepared_authority.authority_id
    for one in (live, *others):
        one.clock.move(11)
    await live.local.ActivateX509Authority(
        authority_pb2.ActivateX509AuthorityRequest(authority_id=authority_id), timeout=40
    )
    return authority_id


def root_ids(bundle):
    return {root.key_id for root in bundle.x509_authorities}


def issuer_id(svid):
    leaf = x509.load_der_x509_certificate(svid.cert_chain[0])
    return leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier.hex()


@pytest.mark.slow
async def test_after_a_restored_backup_nothing_is_signed_before_its_root_stands_in_the_bundle_again(database, url):
    """R50: the authority made since is published again; the agents of the backup go on; no serial comes twice.

    Until the server sees that the database is an older one it goes on from memory, as it does while there is none.
    """
    async with live_server(database={"url": url}) as live, looked_after(live):
        agent = await live.join()
        (entry_id,) = await live.entries(entry("/web", agent.path))
        old = live.server.authorities.active.authority_id
        (before,) = await sign(agent, wanted(entry_id))
        await asyncio.to_thread(database.save)
        await back(live)
        fresh = await rotated(live)
        (made,) = await sign(agent, wanted(entry_id))
        assert issuer_id(made.svid) == fresh
        await asyncio.to_thread(database.restore)
        serials = {serial(before.svid), serial(made.svid)}
        epoch, published = live.state.position.epoch, set()
        async with asyncio.timeout(40):
            while live.state.position.epoch == epoch or fresh not in published:
                before_call = root_ids(live.state.bundles.own)
                (signed,) = await sign(agent, wanted(entry_id))
                if signed.status.code == 0:
                    assert issuer_id(signed.svid) in before_call | root_ids(live.state.bundles.own), "its root is known"
                    assert serial(signed.svid) not in serials
                    serials.add(serial(signed.svid))
                else:
                    assert signed.status.code == grpc.StatusCode.UNAVAILABLE.value[0], signed.status
                with contextlib.suppress(Unavailable):
                    published = root_ids(await live.server.store.read(lambda uow: uow.bundles.get(TD)))
        assert {old, fresh} <= published
        assert live.server.authorities.active.authority_id == fresh
        await back(live)
        (later,) = await live.entries(entry("/later", agent.path))
        (signed,) = await sign(agent, wanted(later))
        assert issuer_id(signed.svid) == fresh


def serial(svid):
    return x509.load_der_x509_certificate(svid.cert_chain[0]).serial_number


async def back(live):
    async with asyncio.timeout(40):
        while True:
            try:
                return await live.token()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017  # anything else is a fault of ours
                await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_a_fail_over_to_a_replica_that_lacks_the_last_writes(kind):
    """R27: an asynchronous replica is promoted; two servers notice, publish their own roots again, and go on."""
    primary = REPLICAS[kind].primary_of_it()
    with contextlib.ExitStack() as stack:
        stack.callback(primary.close)
        proxy = stack.enter_context(DatabaseProxy(primary.new_database("failover")))
        standby = REPLICAS[kind](primary)
        stack.callback(standby.close)
        async with (
            live_server(database={"url": proxy.url}) as one,
            live_server(database={"url": proxy.url}) as two,
            looked_after(one),
            looked_after(two),
        ):
            known = await one.join()
            await seen(two.server.store, lambda state: known.path in state.agents)
            while not standby.caught_up():
                await asyncio.sleep(0.05)
            await asyncio.to_thread(standby.cut_off)
            fresh = await rotated(one, two)
            lost = await two.join()
            epoch = one.state.position.epoch
            proxy.cut()
            await asyncio.to_thread(primary.stop_hard)
            await asyncio.to_thread(standby.promote)
            proxy.upstream = standby.address
            proxy.mend()
            for live in (one, two):
                await seen(live.server.store, lambda state: state.position.epoch > epoch, seconds=20)
                await back(live)
                await seen(live.server.store, lambda state: fresh in root_ids(state.bundles.own), seconds=20)
            assert {live.server.authorities.active.authority_id for live in (one, two)} <= root_ids(
                two.state.bundles.own
            )
            assert one.server.authorities.active.authority_id == fresh
            assert lost.path not in two.state.agents
            (made,) = await one.entries(entry("/web", known.path))
            await seen(two.server.store, lambda state: made in state.entries)
            (signed,) = await sign(await two.agent_with(known.own, known.key), wanted(made))
            assert signed.status.code == 0
            await two.join()


def test_a_standby_is_no_place_to_write():
    """A server that reaches only the standby waits, instead of answering from a database it cannot write."""
    primary = Standby.primary_of_it()
    with contextlib.ExitStack() as stack:
        stack.callback(primary.close)
        url = primary.new_database("standby")
        standby = Standby(primary)
        stack.callback(standby.close)
        with pytest.raises(Unavailable):
            open_store(url.replace(str(primary.run), str(standby.run)))
