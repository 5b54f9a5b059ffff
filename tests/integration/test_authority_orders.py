"""Orders to all servers: forced rotation for everyone who shares the database (architecture A15).

Each test of several servers runs on PostgreSQL and on MariaDB, both real.
"""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import grpc.aio
import pytest

from identity_server import daemon
from identity_server.rpc.services import AUTHORITY_ORDERS
from identity_server.services import absent_servers
from spiffe_core.wire._gen.muniment.server.authorityorders.v1 import authorityorders_pb2 as pb
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as local_pb
from spiffe_core.wire.services import Stub
from tests.databases import SHARED_KINDS, url_of
from tests.doubles.held_follower import seen
from tests.doubles.live_server import live_server

KINDS = {"x509": pb.KIND_X509, "jwt": pb.KIND_JWT, "wit": pb.KIND_WIT}
SLOTS = {"x509": "x509-CA", "jwt": "JWT-Signer", "wit": "WIT-Signer"}
DONE, WAITING, GIVEN_UP = pb.Report.STATUS_DONE, pb.Report.STATUS_WAITING, pb.Report.STATUS_GIVEN_UP


@pytest.fixture(params=SHARED_KINDS)
def url(request, tmp_path):
    return url_of(request.param, tmp_path)


@pytest.fixture
async def fleet(url, tmp_path):
    async with AsyncExitStack() as stack:
        yield Fleet(url, tmp_path, stack)


class Fleet:
    """Servers on one database that can go and come back, each with the loop that carries out orders."""

    def __init__(self, url, folder, stack):
        self.url, self.folder, self._stack = url, folder, stack
        self._own = {}

    async def up(self, *names):
        return await asyncio.gather(*map(self._up, names))

    async def _up(self, name):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        own = self._own[name] = await self._stack.enter_async_context(AsyncExitStack())
        live = await own.enter_async_context(live_server(folder, database={"url": self.url}, wit={"enabled": True}))
        live.folder = folder
        live.orders = Stub(live.channel, AUTHORITY_ORDERS)
        await own.enter_async_context(carrying_out(live))
        return live

    def also(self, loop):
        """Run one more loop of the daemon until the end."""
        task = asyncio.ensure_future(loop)
        self._stack.callback(task.cancel)

    async def down(self, name):
        await self._own.pop(name).aclose()


@asynccontextmanager
async def carrying_out(live):
    loop = asyncio.ensure_future(daemon.keep_errands(live.server))
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def place(live, verb, kind="x509"):
    request = pb.PlaceOrderRequest(kind=KINDS[kind], verb=getattr(pb, f"VERB_{verb.upper()}"))
    return (await live.orders.PlaceOrder(request, timeout=20)).order


async def finished(live, order, *, but=()):
    """Wait until nobody is waited for except `but`; the reports by server."""
    async with asyncio.timeout(30):
        while True:
            found = (await live.orders.GetOrder(pb.GetOrderRequest(order_id=order.order_id))).order
            reports = {report.server_id: report for report in found.reports}
            if {name for name, report in reports.items() if report.status == WAITING} == set(but):
                return reports
            await asyncio.sleep(0.02)


async def step(live, verb, kind="x509", *, but=()):
    return await finished(live, await place(live, verb, kind), but=but)


async def refused(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


def active(live, kind="x509"):
    return live.server.authorities.slots(kind).active.authority_id


def active_in(state, kind="x509"):
    found = [one.authority_id for one in state.authorities if (one.kind, one.status.value) == (kind, "active")]
    return found[0] if found else None


def in_bundle(state, kind="x509"):
    own = state.bundles.own
    listed = {"x509": own.x509_authorities, "jwt": own.jwt_authorities, "wit": own.wit_authorities}[kind]
    return {one.key_id: one.tainted for one in listed}


def keys_of(live, kind="x509"):
    keys = json.loads((live.folder / "data" / "keys.json").read_text())["keys"]
    return sorted(name for name in keys if name.startswith(SLOTS[kind]))


@pytest.mark.parametrize("kind", KINDS)
async def test_three_servers_rotate_from_prepare_to_revoke_by_four_orders(fleet, kind):
    """A15: given to one server, carried out by each, reported for each; no key of an old authority is left anywhere."""
    servers = await fleet.up("a", "b", "c")
    first = servers[0]
    before = {active(one, kind) for one in servers}
    await seen(first.server.store, lambda state: set(in_bundle(state, kind)) == before)
    reports = await step(first, "prepare", kind)
    assert reports.keys() == {one.server.server_id for one in servers}
    assert [one.this_server for one in reports.values()].count(True) == 1
    assert {active(one, kind) for one in servers} == before, "nothing prepared signs"
    for one in servers:
        one.clock.move(11)
    reports = await step(first, "activate", kind)
    after = {active(one, kind) for one in servers}
    assert len(after) == 3
    assert after.isdisjoint(before)
    assert {report.detail for report in reports.values()} == {f"activated {one}" for one in after}
    await step(servers[1], "taint", kind)
    for one in servers:
        await seen(
            one.server.store, lambda state: {name for name, bad in in_bundle(state, kind).items() if bad} == before
        )
    reports = await step(servers[2], "revoke", kind)
    assert {report.status for report in reports.values()} == {DONE}
    for one in servers:
        await seen(one.server.store, lambda state: set(in_bundle(state, kind)) == after)
        assert active(one, kind) in after
        assert keys_of(one, kind) == [f"{SLOTS[kind]}-B"]
        one.server.audit.close()
        lines = [json.loads(line) for line in (one.folder / "audit.jsonl").read_text().splitlines()]
        done = [line for line in lines if line["event"] == "authority" and line["outcome"] == "done"]
        steps = [line["change"] for line in done if "order" in line.get("actor", "")]
        assert steps == ["prepare", "activate", "taint", "revoke"]
    placed = [json.loads(line) for line in (first.folder / "audit.jsonl").read_text().splitlines()]
    ordered = [(line["change"], line["outcome"]) for line in placed if line["event"] == "authority_order"]
    assert ordered == [("prepare", "begun"), ("prepare", "done"), ("activate", "begun"), ("activate", "done")]


async def test_a_server_that_is_down_does_it_when_it_returns_and_revoking_waits_for_it(fleet):
    """A15: the report says who is waited for; in between nobody revokes what a returning server's agents hang on."""
    a, b = await fleet.up("a", "b")
    late, old = b.server.server_id, active(b)
    await fleet.down("b")
    for verb in ("prepare", "activate", "taint"):
        reports = await step(a, verb, but={late})
        assert reports[a.server.server_id].status == DONE
        a.clock.move(11)
    code, text = await refused(place(a, "revoke"))
    assert code == "FAILED_PRECONDITION"
    assert late in text
    (b,) = await fleet.up("b")
    listed = (await a.orders.ListOrders(pb.ListOrdersRequest())).orders
    assert [pb.Verb.Name(one.verb) for one in listed] == ["VERB_TAINT", "VERB_ACTIVATE", "VERB_PREPARE"]
    await seen(b.server.store, lambda state: len([one for one in state.authorities if one.kind == "x509"]) == 2)
    b.clock.move(11)
    for order in listed:
        assert (await finished(a, order))[late].status == DONE
    assert active(b) != old
    assert in_bundle(b.state)[old] is True
    reports = await step(a, "revoke")
    assert reports[late].detail == f"revoked {old}"
    assert keys_of(b) == ["x509-CA-B"]


async def rotated(live):
    """A new authority of this server alone; the old one's id."""
    old = active(live)
    fresh = await live.local.PrepareX509Authority(local_pb.PrepareX509AuthorityRequest())
    live.clock.move(11)
    fields = {"authority_id": fresh.prepared_authority.authority_id}
    await live.local.ActivateX509Authority(local_pb.ActivateX509AuthorityRequest(**fields))
    return old


async def taint_and_revoke(live, authority_id):
    await live.local.TaintX509Authority(local_pb.TaintX509AuthorityRequest(authority_id=authority_id))
    await live.local.RevokeX509Authority(local_pb.RevokeX509AuthorityRequest(authority_id=authority_id))


@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
async def test_the_key_of_an_authority_that_another_server_revoked_is_destroyed_where_it_is(fleet, running):
    """A15: at once, or when its server returns; the other's own keys stay."""
    a, b = await fleet.up("a", "b")
    old, fresh = await rotated(b), active(b)
    assert keys_of(b) == ["x509-CA-A", "x509-CA-B"]
    await seen(a.server.store, lambda state: {old, fresh} <= in_bundle(state).keys())
    if not running:
        await fleet.down("b")
    await taint_and_revoke(a, old)
    if not running:
        (b,) = await fleet.up("b")
    async with asyncio.timeout(20):
        while keys_of(b) != ["x509-CA-B"]:
            await asyncio.sleep(0.02)
    assert keys_of(a) == ["x509-CA-A"]
    assert active(b) == fresh
    await seen(b.server.store, lambda state: not state.orders)
    lines = [json.loads(line) for line in (b.folder / "audit.jsonl").read_text().splitlines()]
    destroyed = [
        line["outcome"] for line in lines if (line.get("change"), line.get("authority_id")) == ("destroy", old)
    ]
    assert destroyed[0] == "begun"


async def test_a_server_that_will_not_come_back_is_given_up_and_its_authority_revoked(fleet):
    """A15: the stolen machine. Its active authority can be tainted and revoked; should it return, it begins anew."""
    a, b = await fleet.up("a", "b")
    gone, leaked = b.server.server_id, active(b)
    await seen(a.server.store, lambda state: leaked in in_bundle(state))
    await fleet.down("b")
    assert (await refused(taint_and_revoke(a, leaked)))[0] == "INVALID_ARGUMENT", "it signs, as far as anybody knows"
    order = await place(a, "prepare")
    answer = await a.orders.GiveUpServer(pb.GiveUpServerRequest(server_id=gone))
    assert leaked in {one.authority_id for one in answer.retired}
    assert {one.kind for one in answer.retired} == set(KINDS.values())
    assert (await finished(a, order))[gone].status == GIVEN_UP
    assert gone not in await step(a, "prepare"), "nobody waits for it any more"
    await taint_and_revoke(a, leaked)
    assert leaked not in in_bundle(a.state)
    listed = (await a.orders.ListAuthorities(pb.ListAuthoritiesRequest())).authorities
    assert {one.status for one in listed if one.server_id == gone} == {"old"}
    (b,) = await fleet.up("b")
    assert active(b) != leaked
    async with asyncio.timeout(20):
        while len(keys_of(b)) != 1:
            await asyncio.sleep(0.02)
    assert b.server.serving


async def test_a_server_that_was_given_up_by_mistake_makes_new_authorities(fleet):
    """A15: it lives, sees that its authority was retired, signs with it no more, and heals by itself."""
    a, b = await fleet.up("a", "b")
    before = active(b)
    fleet.also(daemon.follow_journal(b.server))
    await a.orders.GiveUpServer(pb.GiveUpServerRequest(server_id=b.server.server_id))
    await seen(b.server.store, lambda state: active_in(state) not in {None, before})
    assert b.server.authorities.last_error is None
    assert in_bundle(b.state)[before] is False, "what it signed is good until somebody taints it"


async def test_one_server_alone_takes_orders_too_and_kinds_that_are_off_are_no_failure(tmp_path):
    """A15 on SQLite, where there is one server: the same commands, the same reports; destroying a key is reported."""
    async with live_server(tmp_path) as live, carrying_out(live):
        live.orders = Stub(live.channel, AUTHORITY_ORDERS)
        assert (await refused(place(live, "prepare", "wit")))[0] == "UNIMPLEMENTED"
        (report,) = (await step(live, "activate")).values()
        assert report.detail == f"nothing was prepared; {active(live)} signs"
        assert (await step(live, "taint")).popitem()[1].detail == "there was no old authority"
        assert (await step(live, "revoke")).popitem()[1].detail == "no old authority was tainted"
        await step(live, "prepare")
        live.clock.move(11)
        for verb in ("activate", "taint", "revoke"):
            await step(live, verb)
        newest = (await live.orders.ListOrders(pb.ListOrdersRequest())).orders[0]
        assert (newest.verb, newest.reports[0].status) == (pb.VERB_DESTROY, DONE)
        assert newest.reports[0].detail == "destroyed the key in slot x509-CA-A"


async def test_what_cannot_be_ordered(tmp_path):
    """Each refusal names the field or says what to do."""
    async with live_server(tmp_path) as live:
        orders = Stub(live.channel, AUTHORITY_ORDERS)
        place_order, give_up = orders.PlaceOrder, orders.GiveUpServer
        prepare = pb.VERB_PREPARE
        for request in (
            pb.PlaceOrderRequest(verb=prepare),
            pb.PlaceOrderRequest(kind=pb.KIND_X509),
            pb.PlaceOrderRequest(kind=pb.KIND_X509, verb=pb.VERB_DESTROY),
            pb.PlaceOrderRequest(kind=9, verb=prepare),
        ):
            assert (await refused(place_order(request)))[0] == "INVALID_ARGUMENT"
        assert (await refused(orders.GetOrder(pb.GetOrderRequest(order_id="nope"))))[0] == "NOT_FOUND"
        for bad in ("", "x" * 256, live.server.server_id):
            assert (await refused(give_up(pb.GiveUpServerRequest(server_id=bad))))[0] == "INVALID_ARGUMENT"
        assert (await refused(give_up(pb.GiveUpServerRequest(server_id="nobody"))))[0] == "NOT_FOUND"


async def test_the_daemon_gives_up_a_server_that_nobody_has_seen_for_two_ca_lifetimes(tmp_path, monkeypatch):
    """A15: by its pruning loop, without an order; the audit file names no actor."""
    monkeypatch.setattr(absent_servers, "WATCH_SECONDS", 0.0)
    async with live_server(tmp_path) as live:
        (own,) = await live.server.store.read(lambda uow: uow.authorities.of_kind("x509"))
        day = 86_400
        theirs = replace(
            own, authority_id="ab" * 20, server_id="gone", issued_at=own.issued_at - 3 * day, not_after=own.issued_at
        )
        await live.server.store.execute(lambda uow: uow.authorities.put(theirs))
        await daemon.prune(live.server)
        found = await live.server.store.read(lambda uow: uow.authorities.of_kind("x509"))
        assert {one.server_id: one.status.value for one in found} == {own.server_id: "active", "gone": "active"}
        await live.server.store.execute(
            lambda uow: uow.authorities.put(replace(theirs, not_after=theirs.issued_at + day))
        )
        await daemon.prune(live.server)
        found = await live.server.store.read(lambda uow: uow.authorities.of_kind("x509"))
        assert {one.server_id: one.status.value for one in found} == {own.server_id: "active", "gone": "old"}
        live.server.audit.close()
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        given_up = [line for line in lines if line.get("server_id") == "gone"]
        assert [(line["change"], line["outcome"]) for line in given_up] == [
            ("give up", "begun"),
            ("retire", "begun"),
            ("give up", "done"),
            ("retire", "done"),
        ]
        assert not any("actor" in line for line in given_up)
