"""Laws of the authorities of two servers on one database, whatever anybody does when (R1, R17, R18, R31, R33, A15).

The real services over a database, keys and a clock in memory: commands by id, orders to all servers, the schedule, time
that passes and clocks that jump, servers that lag behind, and kill -9 before and after every step that leaves a trace.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from identity_server.domain.absence import WATCH_SECONDS
from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.audit import AuditEvent
from identity_server.domain.authority import Authority, AuthorityKind, Slots, Status
from identity_server.domain.orders import OrderVerb, key_digest
from identity_server.domain.published import published_ids, signing_ids
from identity_server.keys import MemoryKeys
from identity_server.services.absent_servers import AbsentServers
from identity_server.services.authorities import Authorities
from identity_server.services.authority_commands import KINDS
from identity_server.services.authority_lines import CaSettings, TokenSettings, spki_of
from identity_server.services.authority_orders import AuthorityOrders
from identity_server.services.errands import Errands
from identity_server.services.local_authority import LocalAuthorities
from spiffe_core.crypto.keys import KeyKind, PublicKey, generate, spki_der
from spiffe_core.errors import CorruptState, IdentityError, Unavailable
from spiffe_core.jwt_svid import Audience
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.wit_svid import ConfirmationKey
from tests.builders import TD
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore

WEB = SpiffeId(TD, "/web")
KEY = generate(KeyKind.EC_P256).public_key()
CONFIRMED = ConfirmationKey.read(spki_der(KEY), "ES256")
BY_HAND = Caller(CallerKind.LOCAL, "test")
HOUR = 3_600
NAMES = ("one", "two")
KIND = st.sampled_from(KINDS)
SERVER = st.sampled_from(NAMES)
VERB: st.SearchStrategy[OrderVerb] = st.sampled_from(["prepare", "activate", "taint", "revoke"])
BY_ID = st.sampled_from(["taint", "revoke"])
PASSING = st.sampled_from([1, 5, 11, 60, HOUR, 5 * HOUR, 13 * HOUR, 21 * HOUR, 25 * HOUR, 60 * HOUR])
JUMPS = st.sampled_from([-2 * HOUR, -30, 90, 2 * HOUR, 25 * HOUR])


class Killed(BaseException):
    """kill -9, as seen from inside."""


class KeptKeys(MemoryKeys):
    """Keys that outlive the process, as on a disk; a step before and after each change."""

    persistent = True

    def __init__(self) -> None:
        super().__init__()
        self.step: Callable[[], None] = lambda: None

    def generate(self, slot: str, kind: KeyKind) -> PublicKey:
        self.step()
        public = super().generate(slot, kind)
        self.step()
        return public

    def delete(self, slot: str) -> None:
        self.step()
        super().delete(slot)
        self.step()


@dataclass
class Audit:
    step: Callable[[], None]

    def record(self, *events: AuditEvent) -> None:
        for _ in events:
            self.step()


class LaggingStore(MemoryStore):
    """Follows when it is told to, and steps around each transaction."""

    step: Callable[[], None] = staticmethod(lambda: None)

    async def execute(self, command: Callable[[Any], Any]) -> Any:
        self.step()
        found = await super().execute(command)
        self.step()
        return found

    async def read(self, query: Callable[[Any], Any]) -> Any:
        self.step()
        return await super().read(query)


@dataclass
class Server:
    """One server: what survives it, and its life."""

    name: str
    database: Database
    clock: FakeClock
    ids: Callable[[], str]
    keys: KeptKeys = field(default_factory=KeptKeys)
    lagging: bool = False
    looked_at: tuple[Authority, ...] = ()
    steps: int = 0
    dies_at: int = -1

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.dies_at:
            raise Killed

    async def start(self) -> None:
        self.dies_at, self.lagging = -1, False
        self.keys.step = self.step
        store = self.store = LaggingStore(self.database, TD, self.name)
        store.step = self.step
        tokens = TokenSettings(timedelta(hours=5))
        ca = CaSettings(TD, self.name, jwt=tokens, wit=tokens)
        clock, audit = self.clock, Audit(self.step)
        self.authorities = Authorities(store, self.keys, clock, audit, ca, os.urandom)
        self.local = LocalAuthorities(
            authorities=self.authorities,
            store=store,
            clock=clock,
            audit=audit,
            trust_domain=TD,
            server_id=self.name,
            new_id=self.ids,
        )
        self.orders = AuthorityOrders(
            authorities=self.authorities, store=store, clock=clock, audit=audit, server_id=self.name, new_id=self.ids
        )
        self.errands = Errands(
            authorities=self.authorities, local=self.local, store=store, clock=clock, server_id=self.name
        )
        self.absent = AbsentServers(store=store, clock=clock, audit=audit, server_id=self.name)
        await self.authorities.start()

    async def follow(self) -> None:
        """See what was committed; a journal that another server changed is looked after at once, as the daemon does."""
        if self.lagging:
            return
        self.store.reload()
        if self.store.state.value.authorities != self.looked_at:
            await self.authorities.tick()
            self.looked_at = self.store.state.value.authorities

    def sign(self, kind: AuthorityKind) -> tuple[str, int]:
        """Issue one of a kind: which authority signed it, and until when it is good."""
        issuers = self.authorities.issuers
        if kind == "x509":
            made = issuers.x509.issue("workload", WEB, KEY)
            extensions = x509.load_der_x509_certificate(made.chain[0]).extensions
            signer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            return (signer or b"").hex(), made.not_after
        if kind == "jwt":
            assert issuers.jwt is not None
            jwt, about = issuers.jwt.issue(WEB, Audience(("a",)))
            return about.key_id, jwt.expires_at
        assert issuers.wit is not None
        wit, about = issuers.wit.issue(WEB, CONFIRMED)
        return about.key_id, wit.expires_at


class AuthorityLife(RuleBasedStateMachine):
    """Anybody does anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.database, self.clock = Database(), FakeClock()
        self.made = 0
        self.latest = 0.0
        """The latest the wall clock has shown: what had ended by then may be forgotten."""
        self.signed: dict[tuple[AuthorityKind, str], int] = {}
        self.revoked: dict[tuple[AuthorityKind, str], bytes] = {}
        """With the digest of the key that is to be destroyed."""
        self.forgotten: set[tuple[AuthorityKind, str]] = set()
        """Revoked by id, perhaps after a new key took the place of theirs."""
        self.servers = {name: Server(name, self.database, self.clock, self.new_id) for name in NAMES}

    def new_id(self) -> str:
        self.made += 1
        return f"order-{self.made}"

    @initialize()
    def begin(self) -> None:
        for server in self.servers.values():
            self.loop.run_until_complete(server.start())
        self.everybody_follows()

    def teardown(self) -> None:
        self.loop.close()

    def attempt(self, server: Server, act: Callable[[], Awaitable[Any]], dies_after: int = 0) -> None:
        """Act; refusals are fine, death is followed by a restart, and who does not lag sees what was committed."""
        before = dict(self.database.authorities)
        server.dies_at = server.steps + dies_after if dies_after else -1
        try:
            self.loop.run_until_complete(self.outcome(act))
        except Killed:
            self.loop.run_until_complete(server.start())
        server.dies_at = -1
        self.everybody_follows()
        for one in before.values():
            listed = published_ids(self.database.bundles[TD], one.kind)
            gone = one.authority_id not in self.database.authorities and one.authority_id not in listed
            if gone and one.not_after > self.latest:  # not forgotten because it ended: revoked
                self.revoked[one.kind, one.authority_id] = key_digest(spki_of(one))

    def everybody_follows(self) -> None:
        for _ in range(2):  # whoever looks after the journal may change the bundle that the other has seen
            for one in self.servers.values():
                self.loop.run_until_complete(one.follow())

    @staticmethod
    async def outcome(act: Callable[[], Awaitable[Any]]) -> None:
        try:
            await act()
        except CorruptState:
            raise
        except IdentityError:
            pass

    # What people, the schedule and time do

    @rule(name=SERVER, dies_after=st.integers(0, 9))
    def schedule(self, name: str, dies_after: int) -> None:
        server = self.servers[name]
        self.attempt(server, server.authorities.tick, dies_after)

    @rule(name=SERVER, kind=KIND, dies_after=st.integers(0, 9))
    def prepare(self, name: str, kind: AuthorityKind, dies_after: int) -> None:
        server = self.servers[name]
        self.attempt(server, lambda: server.local.prepare(BY_HAND, kind), dies_after)

    @rule(name=SERVER, kind=KIND, dies_after=st.integers(0, 6))
    def activate(self, name: str, kind: AuthorityKind, dies_after: int) -> None:
        server = self.servers[name]
        prepared = Slots.of(server.store.state.value.authorities, kind).prepared
        wanted = prepared.authority_id if prepared is not None else "nobody"
        self.attempt(server, lambda: server.local.activate(BY_HAND, kind, wanted), dies_after)

    @rule(name=SERVER, kind=KIND, verb=BY_ID, pick=st.integers(0, 5), dies_after=st.integers(0, 8))
    def by_id(self, name: str, kind: AuthorityKind, verb: str, pick: int, dies_after: int) -> None:
        server, bundle = self.servers[name], self.database.bundles[TD]
        listed = {"x509": bundle.x509_authorities, "jwt": bundle.jwt_authorities, "wit": bundle.wit_authorities}[kind]
        wanted = listed[pick % len(listed)].key_id if listed else "nobody"
        tainted = wanted not in signing_ids(bundle, kind)
        self.attempt(server, lambda: getattr(server.local, verb)(BY_HAND, kind, wanted), dies_after)
        if verb == "revoke" and tainted and wanted not in published_ids(self.database.bundles[TD], kind):
            self.forgotten.add((kind, wanted))

    @rule(name=SERVER, by=SERVER, kind=KIND, dies_after=st.integers(0, 9))
    def rotate_by_force(self, name: str, by: str, kind: AuthorityKind, dies_after: int) -> None:
        """From prepare to revoke; tainted and revoked by whichever server, which may die of the last step."""
        server, revoker = self.servers[name], self.servers[by]
        self.attempt(server, lambda: server.local.prepare(BY_HAND, kind))
        slots = Slots.of(server.store.state.value.authorities, kind)
        if slots.active is None or slots.prepared is None:
            return
        old, fresh = slots.active.authority_id, slots.prepared.authority_id
        self.clock.advance(11)
        self.attempt(server, lambda: server.local.activate(BY_HAND, kind, fresh))
        self.attempt(revoker, lambda: revoker.local.taint(BY_HAND, kind, old))
        self.attempt(revoker, lambda: revoker.local.revoke(BY_HAND, kind, old), dies_after)

    @rule(name=SERVER, kind=KIND, verb=VERB)
    def order(self, name: str, kind: AuthorityKind, verb: OrderVerb) -> None:
        server = self.servers[name]
        self.attempt(server, lambda: server.orders.place(BY_HAND, kind, verb))

    @rule(name=SERVER, dies_after=st.integers(0, 12))
    def run_errands(self, name: str, dies_after: int) -> None:
        server = self.servers[name]
        self.attempt(server, server.errands.run_waiting, dies_after)

    @rule(name=SERVER)
    def give_up(self, name: str) -> None:
        server = self.servers[name]
        other = next(one for one in NAMES if one != name)
        self.attempt(server, lambda: server.orders.give_up(BY_HAND, other))

    @rule(name=SERVER, dies_after=st.integers(0, 9))
    def look_for_absent(self, name: str, dies_after: int) -> None:
        """After an hour's watch, also when the other one is there and its clock or ours is wrong."""
        server = self.servers[name]
        self.attempt(server, server.absent.tick)
        self.clock.advance(WATCH_SECONDS)
        self.attempt(server, server.absent.tick, dies_after)

    @rule(name=SERVER)
    def restart(self, name: str) -> None:
        self.loop.run_until_complete(self.servers[name].start())

    @rule(name=SERVER, lagging=st.booleans())
    def lag(self, name: str, lagging: bool) -> None:
        self.servers[name].lagging = lagging
        self.everybody_follows()

    @rule(seconds=PASSING)
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=JUMPS)
    def the_clock_jumps(self, seconds: int) -> None:
        self.clock.jump(seconds)

    # What has to hold

    @rule(name=SERVER, kind=KIND)
    def sign(self, name: str, kind: AuthorityKind) -> None:
        """Nothing is signed by what is not published or is tainted, as far as the server can know; nor by two at once."""
        server = self.servers[name]
        try:
            signer, end = server.sign(kind)
        except Unavailable:
            return
        seen = server.store.state.value
        assert seen.bundles is not None
        assert signer in signing_ids(seen.bundles.own, kind)
        if not server.lagging:
            active = Slots.of(seen.authorities, kind).active
            assert active is not None
            assert active.authority_id == signer
            assert end <= active.not_after, "nothing outlives what signed it"
            assert signer in signing_ids(self.database.bundles[TD], kind)
            assert (kind, signer) not in self.revoked
            self.signed[kind, signer] = max(end, self.signed.get((kind, signer), 0))

    @rule(name=SERVER)
    def it_can_always_go_on(self, name: str) -> None:
        """A server that is not held back settles with one authority of each kind that signs, and no key too many."""
        server = self.servers[name]
        if server.lagging:
            return
        self.loop.run_until_complete(server.authorities.tick())
        self.everybody_follows()
        assert server.authorities.last_error is None
        for kind in KINDS:
            assert server.sign(kind)
        self.loop.run_until_complete(server.errands.run_waiting())
        held = {
            key_digest(spki_der(key.public_key())) for slot in server.keys.list() if (key := server.keys.signer(slot))
        }
        assert held.isdisjoint(self.revoked.values()), "the key of a revoked authority is destroyed"
        self.everybody_follows()

    @invariant()
    def the_journal_is_sound(self) -> None:
        """At most one active and one prepared of each kind on each server; whoever has a role is published, with its key."""
        self.latest = max(self.latest, self.clock.now().timestamp())
        if TD not in self.database.bundles:
            return
        for name, server in self.servers.items():
            rows = [one for one in self.database.authorities.values() if one.server_id == name]
            for kind in KINDS:
                slots = Slots.of(rows, kind)
                for status in (Status.ACTIVE, Status.PREPARED):
                    assert sum(one.status is status for one in slots) <= 1
                for one in slots:
                    if one.status is not Status.OLD:
                        assert self.has_key(server, one)
                        if one.not_after > self.latest:  # what ended long ago others may forget
                            assert one.authority_id in published_ids(self.database.bundles[TD], kind)
                        assert (kind, one.authority_id) not in self.revoked

    @staticmethod
    def has_key(server: Server, authority: Authority) -> bool:
        key = server.keys.signer(authority.key_slot)
        return key is not None and spki_der(key.public_key()) == spki_of(authority)

    @invariant()
    def no_key_leaves_the_bundle_while_it_may_be_needed(self) -> None:
        """R31: only revoking takes away what something signed may still be verified with."""
        if TD not in self.database.bundles:
            return
        bundle = self.database.bundles[TD]
        for (kind, signer), end in self.signed.items():
            if end > self.latest and signer not in published_ids(bundle, kind):
                assert (kind, signer) in {*self.revoked, *self.forgotten}


TestAuthorityLife = AuthorityLife.TestCase
TestAuthorityLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
