"""The refresh of foreign bundles on a clock of the test's: pace, independence of peers, and what is taken."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from identity_server.domain.audit import BundleChanged
from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.services.bundle_refresh import BundleRefresh
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import LoadedBundle
from spiffe_core.errors import NotFound, Unavailable
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore

TD, FED = TrustDomain("example.org"), TrustDomain("fed.test")
OLD, NEW = SpiffeTestCA("fed.test"), SpiffeTestCA("fed.test")


def web(name="fed.test", url=""):
    return FederationRelationship(TrustDomain(name), url or f"https://{name}/", EndpointProfile.HTTPS_WEB)


class Peers:
    """A BundleFetcher: `serves` holds what each URL answers, a bundle or a refusal; `held` ones wait."""

    def __init__(self):
        self.serves, self.asked, self.held = {}, [], {}
        self.running = self.most = 0

    async def fetch(self, relationship, trusted):
        self.asked.append(relationship.trust_domain.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            held = self.held.get(relationship.trust_domain.name)
            if held is not None:
                await held.wait()
            answer = self.serves.get(relationship.endpoint_url, Unavailable("the peer is down"))
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, LoadedBundle) else LoadedBundle(answer)
        finally:
            self.running -= 1


class Lines(list):
    """An AuditLog."""

    def record(self, *events):
        self.extend(events)


class Rig:
    def __init__(self, *relationships, static=(), floor=None):
        self.clock, self.peers, self.audit = FakeClock(), Peers(), Lines()
        self.database = Database(
            bundles={TD: SpiffeTestCA().bundle()}, relationships={one.trust_domain: one for one in relationships}
        )
        self.store = MemoryStore(self.database, TD, "server")
        self.fetches = []
        self.refresh = BundleRefresh(
            store=self.store,
            audit=self.audit,
            clock=self.clock,
            fetcher=self.peers,
            jitter=lambda: 0.0,
            static=static,
            on_fetched=lambda worked, _: self.fetches.append(worked),
        )

    async def tick(self, tasks):
        """Start what is due and let it end, as far as it is not held; the seconds to the next."""
        self.refresh.tick(tasks)
        for _ in range(20):
            await asyncio.sleep(0)
        return self.refresh.tick(tasks)

    def bundle(self, name=FED):
        return self.store.state.value.bundles.get(name)

    def state(self, name="fed.test"):
        return next(one.state for one in self.refresh.report() if one.relationship.trust_domain.name == name)

    def serve(self, bundle, url="https://fed.test/"):
        self.peers.serves[url] = bundle


@pytest.fixture
async def tasks():
    async with Supervisor() as supervisor:
        yield supervisor
        supervisor.stop()


async def test_bundles_are_fetched_at_their_hint(tasks):
    """FED-05, FED-06, FED-08: at once, then each hint; a new hint counts from the next pause on."""
    rig = Rig(web())
    rig.serve(replace(OLD.bundle(sequence=1), refresh_hint=120))
    assert await rig.tick(tasks) == 120
    assert rig.bundle().refresh_hint == 120
    rig.clock.advance(119)
    assert await rig.tick(tasks) == 1
    rig.clock.advance(1)
    rig.serve(replace(OLD.bundle(sequence=2), refresh_hint=600))
    assert await rig.tick(tasks) == 600
    assert rig.peers.asked == ["fed.test"] * 2
    assert rig.fetches == [True, True]
    state = rig.state()
    assert (state.fetched_at, state.error) == (rig.clock.now(), "")
    assert (state.next_at - state.fetched_at).total_seconds() == 600


async def test_each_fetch_is_a_line_of_the_log(tasks, caplog):
    """FED-48: which trust domain, from where, by which profile, with what outcome and sequence."""
    caplog.set_level(logging.INFO, "identity_server.services.bundle_refresh")
    rig = Rig(web())
    rig.serve(replace(OLD.bundle(sequence=7), refresh_hint=60))
    await rig.tick(tasks)
    rig.peers.serves.clear()
    rig.clock.advance(60)
    await rig.tick(tasks)
    told = [one.facts for one in caplog.records]
    where = {"trust_domain": "fed.test", "url": "https://fed.test/", "profile": "https_web"}
    assert told == [
        {**where, "outcome": "fetched", "sequence": 7},
        {**where, "outcome": "failed", "failures": 1},
    ]


async def test_a_peer_that_is_down_keeps_its_bundle_and_is_asked_ever_less(tasks):
    """FED-45, N-F-18, S61: a day away; the bundle stays in force, the count of GETs is small, and the way back is taken."""
    rig = Rig(web())
    rig.serve(replace(OLD.bundle(), refresh_hint=60))
    await rig.tick(tasks)
    good = rig.bundle()
    rig.peers.serves.clear()
    pauses = []
    rig.clock.advance(60)
    elapsed = 0.0
    while elapsed < 86_400:
        pauses.append(await rig.tick(tasks))
        rig.clock.advance(pauses[-1])
        elapsed += pauses[-1]
    assert pauses[:4] == [60, 120, 240, 480]
    assert len(rig.peers.asked) < 190
    assert rig.bundle() == good
    assert rig.state().failures == len(pauses)
    assert rig.state().error == "the peer is down"
    rig.serve(OLD.bundle(sequence=9))
    await rig.tick(tasks)
    assert (rig.bundle().sequence, rig.state().failures) == (9, 0)


async def test_two_hundred_domains_and_one_that_never_answers(tasks):
    """R49, S61: whoever is slow delays no other, and is asked once at a time."""
    names = [f"d{number}.test" for number in range(200)]
    rig = Rig(*map(web, names))
    for name in names:
        rig.serve(SpiffeTestCA(name, key=OLD.key).bundle(), f"https://{name}/")
    held = rig.peers.held["d7.test"] = asyncio.Event()
    for _ in range(3):
        await rig.tick(tasks)
        rig.clock.advance(300)
    assert sum(rig.bundle(TrustDomain(name)) is not None for name in names) == 199
    assert rig.peers.asked.count("d7.test") == 1
    assert rig.peers.asked.count("d8.test") == 3
    held.set()
    await rig.tick(tasks)
    assert rig.bundle(TrustDomain("d7.test")) is not None


async def test_an_older_sequence_is_not_taken(tasks):
    """FED-09, N-B-26, S61: the stored one stays, and it is an error with what to do; equal content under it is none."""
    rig = Rig(web())
    rig.serve(OLD.bundle(NEW, sequence=5))
    await rig.tick(tasks)
    rig.serve(OLD.bundle(sequence=4))
    rig.clock.advance(300)
    await rig.tick(tasks)
    assert rig.bundle().sequence == 5
    assert "older bundle: sequence 4 is older than 5" in rig.state().error
    assert "invitation" in rig.state().error


async def test_an_empty_bundle_ends_the_trust(tasks):
    """TDB-14, TDB-15, N-B-07, N-B-08: it is taken, not skipped."""
    rig = Rig(web())
    rig.serve(OLD.bundle(sequence=5))
    await rig.tick(tasks)
    empty = TrustBundle(FED, sequence=6)
    rig.serve(LoadedBundle(empty, ("no usable key",)))
    rig.clock.advance(300)
    await rig.tick(tasks)
    assert rig.bundle() == empty
    assert (rig.state().error, rig.state().warnings) == ("", ("no usable key",))


async def test_publishers_without_sequences_are_believed_in_order(tasks):
    """FED-10, N-B-25; and FED-11: what was set by hand stands until the next fetch."""
    rig = Rig(web())
    for bundle in (OLD.bundle(sequence=0), NEW.bundle(sequence=0)):
        rig.serve(bundle)
        await rig.tick(tasks)
        assert rig.bundle().x509_roots == bundle.x509_roots
        rig.clock.advance(300)
    await rig.store.execute(lambda uow: uow.bundles.put(OLD.bundle(sequence=0)))
    assert rig.bundle().x509_roots == (OLD.der,)
    await rig.tick(tasks)
    assert rig.bundle().x509_roots == (NEW.der,)


async def test_the_same_number_with_other_content_is_taken_with_a_warning(tasks, caplog):
    """N-B-27; the log says it once, not with every fetch."""
    rig = Rig(web())
    rig.serve(OLD.bundle(sequence=5))
    await rig.tick(tasks)
    with caplog.at_level(logging.WARNING):
        rig.serve(NEW.bundle(sequence=5))
        rig.clock.advance(300)
        await rig.tick(tasks)
    assert rig.bundle().x509_roots == (NEW.der,)
    assert "content changed under the same sequence 5" in rig.state().warnings[0]
    assert caplog.text.count("is odd") == 1


async def test_only_a_change_is_written_and_audited(tasks):
    """FED-08, A16: one line before and one after the write; an equal bundle writes nothing."""
    rig = Rig(web())
    rig.serve(OLD.bundle(sequence=5))
    for _ in range(3):
        await rig.tick(tasks)
        rig.clock.advance(300)
    assert rig.store.commands == 1
    assert [(type(line), line.change, line.outcome) for line in rig.audit] == [
        (BundleChanged, "refresh", "begun"),
        (BundleChanged, "refresh", "done"),
    ]


async def test_what_arrives_after_the_end_is_thrown_away(tasks):
    """N-F-19, FED-46: a relationship that ended, or changed, while its fetch was under way."""
    rig = Rig(web())
    rig.serve(OLD.bundle())
    held = rig.peers.held["fed.test"] = asyncio.Event()
    await rig.tick(tasks)
    await rig.store.execute(lambda uow: uow.relationships.remove(FED))
    held.set()
    await rig.tick(tasks)
    assert rig.bundle() is None
    assert rig.refresh.report() == []
    # the database knows of the end before memory does
    await rig.store.execute(lambda uow: uow.relationships.put(web()))
    rig.peers.held["fed.test"] = held = asyncio.Event()
    await rig.tick(tasks)
    rig.database.relationships.clear()
    held.set()
    for _ in range(5):
        await rig.tick(tasks)
    assert rig.bundle() is None
    assert rig.peers.asked == ["fed.test"] * 2, "and it is not asked in a circle"


async def test_a_changed_relationship_is_fetched_at_once(tasks):
    """FED-16: another URL is another endpoint; nothing waits for the old one's pace."""
    rig = Rig(web())
    rig.serve(OLD.bundle())
    await rig.tick(tasks)
    rig.serve(NEW.bundle(sequence=2), "https://elsewhere.test/")
    await rig.store.execute(lambda uow: uow.relationships.put(web(url="https://elsewhere.test/")))
    await rig.tick(tasks)
    assert rig.bundle().x509_roots == (NEW.der,)


async def test_the_configuration_comes_before_the_database_and_never_names_us(tasks):
    """spire_features section 19.2: static wins. N-F-20: no relationship with our own trust domain, wherever it stands."""
    rig = Rig(web(), web("example.org"), static=[web(url="https://static.test/")])
    rig.serve(OLD.bundle(), "https://static.test/")
    await rig.tick(tasks)
    (only,) = rig.refresh.report()
    assert (only.static, only.relationship.endpoint_url) == (True, "https://static.test/")
    assert only.bundle.x509_roots == (OLD.der,)
    assert rig.peers.asked == ["fed.test"]


async def test_asking_for_a_refresh_tells_how_it_went(tasks):
    """spire_wire section 5.5: RefreshBundle; also for a bundle that is not due, and for one nobody federates with."""
    rig = Rig(web())
    with pytest.raises(NotFound, match="no relationship"):
        await rig.refresh.refresh(TrustDomain("nobody.test"))
    with pytest.raises(Unavailable, match=r"bundle of fed\.test was not refreshed: the peer is down"):
        await rig.refresh.refresh(FED)
    rig.serve(OLD.bundle())
    await rig.refresh.refresh(FED)
    assert rig.bundle().x509_roots == (OLD.der,)
    assert await rig.tick(tasks) == 300, "the schedule counts from there"


async def test_a_database_that_is_away_costs_a_fetch_and_no_more(tasks):
    """R25: the refusal is told like any other, and the next fetch stores."""
    rig = Rig(web())
    rig.serve(OLD.bundle())
    rig.store.before.append(Unavailable("the database is away"))
    await rig.tick(tasks)
    assert (rig.bundle(), rig.state().error) == (None, "the database is away")
    rig.clock.advance(60)
    await rig.tick(tasks)
    assert rig.bundle() is not None


async def test_our_own_mistake_in_reading_a_stranger_does_not_end_the_server(tasks, caplog):
    """S61: whatever comes, the loop goes on and the log has the trace."""
    rig = Rig(web())
    rig.serve(RuntimeError("a bug"))
    await rig.tick(tasks)
    assert rig.state().error == "internal error, see the log of the server"
    assert "a bug" in caplog.text
    rig.serve(OLD.bundle())
    rig.clock.advance(60)
    await rig.tick(tasks)
    assert rig.state().error == ""


async def test_the_loop_wakes_for_a_new_relationship():
    """FED-46: by whichever server it was made."""
    rig = Rig()
    rig.serve(OLD.bundle())
    async with Supervisor() as tasks:
        tasks.start(rig.refresh.run(), "refresh")
        await asyncio.sleep(0)
        await rig.store.execute(lambda uow: uow.relationships.put(web()))
        version = rig.store.state.version
        async with asyncio.timeout(20):
            while rig.bundle() is None:
                version = await rig.store.state.changed(version)
        tasks.stop()
    assert rig.store.state.listeners == []
