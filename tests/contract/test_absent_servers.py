"""A15: the authorities of a server unseen for two CA lifetimes are retired, in every database."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import pytest

from identity_server.domain.absence import WATCH_SECONDS
from identity_server.domain.audit import AuditEvent, AuthorityChanged, AuthorityOrdered
from identity_server.domain.authority import Status
from identity_server.domain.orders import ErrandStatus, Order
from identity_server.domain.published import published_ids, signing_ids
from identity_server.domain.server_settings import DefaultTtls, IssuingSettings
from identity_server.keys import MemoryKeys
from identity_server.ports import UnitOfWork
from identity_server.services.absent_servers import AbsentServers
from identity_server.services.authorities import Authorities
from identity_server.services.server_agreement import WRITE_SECONDS, ServerAgreement
from identity_server.store.sql_store import SqlStore
from spiffe_core.errors import Unavailable
from tests.builders import TD
from tests.databases import running_store
from tests.doubles.authority_rig import authorities_of
from tests.doubles.clock import FakeClock

T = TypeVar("T")
HOUR, DAY = 3_600, 86_400


class Recorder:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.broken = False

    def record(self, *events: AuditEvent) -> None:
        if self.broken:
            raise Unavailable("the audit log cannot be written")
        self.events.extend(events)

    def told(self) -> list[tuple[str, str, str]]:
        return [
            (one.change, one.server_id, one.outcome)
            for one in self.events
            if isinstance(one, AuthorityChanged | AuthorityOrdered)
        ]


class Overtaken:
    """A store where the server that is thought to be gone writes just before each command."""

    def __init__(self, store: SqlStore) -> None:
        self.state, self.read, self._store = store.state, store.read, store

    async def execute(self, command: Callable[[UnitOfWork], T]) -> T:
        def returned(uow: UnitOfWork) -> None:
            (record,) = [one for one in uow.servers.all() if one.server_id == "gone"]
            uow.servers.put(replace(record, written_at=record.written_at + 1))

        await self._store.execute(returned)
        return await self._store.execute(command)


class Looking:
    """One server: its store, authorities, record and the look at the others."""

    def __init__(self, store: SqlStore, name: str, clock: FakeClock) -> None:
        self.store, self.name, self.clock = store, name, clock
        self.audit = Recorder()
        self.authorities: Authorities = authorities_of(store, name, clock, MemoryKeys())
        self.absent = AbsentServers(store=store, clock=clock, audit=self.audit, server_id=name)
        self.agreement = ServerAgreement(
            store=store, clock=clock, server_id=name, settings=IssuingSettings(()), apply=self._apply
        )

    @staticmethod
    def _apply(ttls: DefaultTtls) -> None:
        del ttls

    async def live(self, hours: int) -> None:
        """As its daemon does, hour by hour."""
        for _ in range(hours):
            self.clock.advance(HOUR)
            await self.authorities.tick()
            await self.agreement.tick()
            await self.absent.tick()

    async def journal_of(self, name: str) -> dict[str, Status]:
        found = await self.store.read(lambda uow: uow.authorities.of_server(name))
        return {one.authority_id: one.status for one in found}


@asynccontextmanager
async def up(url: str, name: str, clock: FakeClock) -> AsyncIterator[Looking]:
    async with running_store(url, server_id=name, clock=clock) as store:
        server = Looking(store, name, clock)
        await server.authorities.start()
        await server.agreement.tick()
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def stopped(url: str, clock: FakeClock) -> str:
    """A server that ran and is down now; what it signed with."""
    async with up(url, "gone", clock) as gone:
        assert gone.authorities.active is not None
        return gone.authorities.active.authority_id


async def test_after_two_lifetimes_its_authorities_are_old_and_later_leave_the_journal(
    database_url: str, clock: FakeClock
) -> None:
    """A15: audited, told apart from an administrator's act by the empty actor; ours and the bundle are not touched."""
    theirs = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        order = Order("o1", "x509", "taint", "local (uid 0)", 1)
        destroy = Order("o2", "x509", "destroy", "local (uid 0)", 1, theirs, b"\x01" * 32)
        await one.store.execute(lambda uow: [uow.orders.add(each, ("gone",)) for each in (order, destroy)])
        await one.live(48)
        assert await one.journal_of("gone") == {theirs: Status.ACTIVE}
        assert one.audit.told() == []
        await one.live(1)
        assert one.audit.told() == [
            ("give up", "gone", "begun"),
            ("retire", "gone", "begun"),
            ("give up", "gone", "done"),
            ("retire", "gone", "done"),
        ]
        assert {getattr(event, "actor", None) for event in one.audit.events} == {""}
        assert await one.journal_of("gone") == {theirs: Status.OLD}
        waiting = await one.store.read(lambda uow: uow.orders.waiting_for("gone"))
        assert waiting == (destroy,), "should it return, a revoked key is destroyed still"
        progress = await one.store.read(lambda uow: uow.orders.get("o1"))
        assert progress is not None
        assert [each.status for each in progress.errands] == [ErrandStatus.GIVEN_UP]
        own = one.authorities.active
        assert own is not None
        await one.live(3)
        assert await one.journal_of("gone") == {}
        assert one.audit.told()[4:] == [("forget", "gone", "begun"), ("forget", "gone", "done")]
        bundle = await one.store.read(lambda uow: uow.bundles.get(TD))
        assert own.authority_id in signing_ids(bundle, "x509")


async def test_a_server_that_returns_afterwards_makes_new_authorities(database_url: str, clock: FakeClock) -> None:
    """A15: nothing is tainted, nothing has to be repaired by hand."""
    theirs = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(50)
        assert await one.journal_of("gone") == {theirs: Status.OLD}
    async with up(database_url, "gone", clock) as gone:
        assert gone.authorities.active is not None
        assert gone.authorities.active.authority_id != theirs
        bundle = await gone.store.read(lambda uow: uow.bundles.get(TD))
        assert gone.authorities.active.authority_id in published_ids(bundle, "x509")


async def test_a_server_that_was_seen_in_between_keeps_its_slots(database_url: str, clock: FakeClock) -> None:
    """A15: an hour before it is due it came up for a moment; the two lifetimes begin anew."""
    await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(47)
    again = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(40)
        assert (await one.journal_of("gone"))[again] is Status.ACTIVE
        assert one.audit.told() == []


async def test_after_a_clock_jump_nobody_is_retired_for_an_hour(database_url: str, clock: FakeClock) -> None:
    """A15, R17: our clock jumps far ahead; who was there a moment ago looks absent and is not, until somebody watched."""
    theirs = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(2)
        clock.jump(9 * DAY)
        await one.absent.tick()
        clock.advance(WATCH_SECONDS - 1)
        await one.absent.tick()
        assert await one.journal_of("gone") == {theirs: Status.ACTIVE}
        clock.advance(1)
        await one.absent.tick()
        assert await one.journal_of("gone") == {theirs: Status.OLD}


async def test_a_fresh_start_watches_first(database_url: str, clock: FakeClock) -> None:
    """A15: after a long stop of everybody the first server up does not retire the ones that start a moment later."""
    theirs = await stopped(database_url, clock)
    clock.advance(30 * DAY)
    async with up(database_url, "one", clock) as one:
        for _ in range(3):
            await one.absent.tick()
            clock.advance(WRITE_SECONDS)
        assert await one.journal_of("gone") == {theirs: Status.ACTIVE}
        await one.live(1)
        assert await one.journal_of("gone") == {theirs: Status.OLD}
        assert len([told for told in one.audit.told() if told[0] == "retire"]) == 2


async def test_what_changed_since_it_was_looked_at_is_left_alone(database_url: str, clock: FakeClock) -> None:
    """A15: it wrote something between our look and our transaction; the audit log says that nothing was done."""
    theirs = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(48)
        one.absent = AbsentServers(store=Overtaken(one.store), clock=clock, audit=one.audit, server_id="one")
        await one.absent.tick()
        clock.advance(WATCH_SECONDS)
        await one.absent.tick()
        assert await one.journal_of("gone") == {theirs: Status.ACTIVE}
        assert {told[2] for told in one.audit.told()} == {"begun", "refused"}


async def test_nothing_is_retired_that_cannot_be_audited(database_url: str, clock: FakeClock) -> None:
    """A15, A16: the line stands before the effect, or there is none; the next tick tries again."""
    theirs = await stopped(database_url, clock)
    async with up(database_url, "one", clock) as one:
        await one.live(48)
        clock.advance(2)
        one.audit.broken = True
        with pytest.raises(Unavailable):
            await one.absent.tick()
        assert await one.journal_of("gone") == {theirs: Status.ACTIVE}
        one.audit.broken = False
        await one.absent.tick()
        assert await one.journal_of("gone") == {theirs: Status.OLD}
