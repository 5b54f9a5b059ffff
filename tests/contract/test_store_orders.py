"""Orders to all servers in every database: kept, handed to whom they concern, reported once, bounded (architecture A15)."""

from dataclasses import replace

import pytest

from identity_server.domain.authority import Authority, Status
from identity_server.domain.orders import MAX_FINISHED, Errand, ErrandStatus, Order
from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import Internal
from tests.databases import SERVER, open_store, running_store

ORDER = Order("o1", "x509", "taint", "local (uid 0)", 1_700_000_000)
DESTROY = Order("o2", "jwt", "destroy", "émoji 🦊", 1_700_000_001, "kid", b"\x00" * 32)
DONE = Errand(SERVER, ErrandStatus.DONE, "tainted ab", 1_700_000_009)
AUTHORITY = Authority(
    authority_id="ab" * 20,
    server_id=SERVER,
    slot="A",
    status=Status.ACTIVE,
    certificate=b"der",
    issued_at=1,
    not_after=2,
    published_at=3,
)


async def test_an_order_reaches_the_servers_it_concerns_in_the_order_it_was_given(store: SqlStore) -> None:
    """The state holds what this server has to do; a report takes it off, and a second one changes nothing."""
    await store.execute(lambda uow: uow.orders.add(ORDER, ("other", SERVER)))
    await store.execute(lambda uow: uow.orders.add(DESTROY, (SERVER,)))
    await store.execute(lambda uow: uow.orders.add(replace(ORDER, order_id="o3"), ("other",)))
    assert store.state.value.orders == (ORDER, DESTROY)
    assert [one.order_id for one in await store.read(lambda uow: uow.orders.waiting_for("other"))] == ["o1", "o3"]
    await store.execute(lambda uow: uow.orders.report("o1", DONE))
    assert store.state.value.orders == (DESTROY,)
    await store.execute(lambda uow: uow.orders.report("o1", replace(DONE, status=ErrandStatus.FAILED)))
    await store.execute(lambda uow: uow.orders.report("absent", DONE))
    await store.execute(lambda uow: uow.orders.report("o3", DONE))
    progress = await store.read(lambda uow: uow.orders.get("o1"))
    assert progress is not None
    assert progress.order == ORDER
    assert progress.errands == (Errand("other"), DONE)
    assert not progress.finished
    assert [one.order.order_id for one in await store.read(lambda uow: uow.orders.all())] == ["o3", "o2", "o1"]
    assert await store.read(lambda uow: uow.orders.get("absent")) is None


async def test_orders_are_there_after_a_restart(database_url: str) -> None:
    """R33: a server that was down finds them in its first state."""
    async with running_store(database_url) as first:
        await first.execute(lambda uow: uow.orders.add(ORDER, (SERVER,)))
    second = open_store(database_url)
    try:
        assert second.state.value.orders == (ORDER,)
    finally:
        await second.close()


async def test_finished_orders_beyond_the_bound_go_and_those_somebody_waits_for_stay(store: SqlStore) -> None:
    def command(uow) -> None:
        for number in range(MAX_FINISHED + 20):
            uow.orders.add(replace(ORDER, order_id=f"n{number}"), (SERVER,))
            if number != 3:
                uow.orders.report(f"n{number}", DONE)

    await store.execute(command)
    kept = [one.order.order_id for one in await store.read(lambda uow: uow.orders.all())]
    assert len(kept) == MAX_FINISHED + 1
    assert kept[0] == f"n{MAX_FINISHED + 19}"
    assert kept[-1] == "n3"
    assert [one.order_id for one in store.state.value.orders] == ["n3"]


async def test_the_journal_shows_one_kind_of_every_server(store: SqlStore) -> None:
    """A15: whom an order concerns."""
    there = replace(AUTHORITY, authority_id="cd" * 20, server_id="other")
    token = replace(AUTHORITY, authority_id="kid", kind="jwt")
    await store.execute(lambda uow: [uow.authorities.put(one) for one in (AUTHORITY, there, token)])
    assert await store.read(lambda uow: uow.authorities.of_kind("x509")) == (AUTHORITY, there)
    assert await store.read(lambda uow: uow.authorities.of_kind("jwt")) == (token,)
    assert await store.read(lambda uow: uow.authorities.of_kind("wit")) == ()


async def test_a_query_gives_no_orders(store: SqlStore) -> None:
    for write in (lambda uow: uow.orders.add(ORDER, (SERVER,)),):
        with pytest.raises(Internal, match=r"Store\.execute"):
            await store.read(write)
