"""X.509-SVIDs in batches: taken a slice at a time, each step for the whole slice (architecture A7; S27, N-C-07)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.audit import AuditEvent, CallRefused, SvidIssued
from identity_server.domain.history import Position
from identity_server.domain.profiles import Profile
from identity_server.domain.state import Change
from identity_server.keys import MemoryKeys
from identity_server.rpc.svid_api import terms_of
from identity_server.services.authorities import Authorities, CaSettings
from identity_server.services.entitlements import Entitlements
from identity_server.services.issue_svids import MOST_TOGETHER, SLICE_SECONDS, IssueSvids, Wanted
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import AuthorityKey, KeyKind, SubjectKey, generate, spki_der
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.spiffe_id import SpiffeId
from tests.builders import TD
from tests.doubles.clock import FakeClock
from tests.doubles.memory_store import Database, MemoryStore
from tests.doubles.state_maker import AGENT, attested, record

CALLER = Caller(CallerKind.AGENT, "test", SpiffeId(TD, AGENT), "1", "127.0.0.1")
KEYS = [generate(KeyKind.EC_P256) for _ in range(3)]
CSRS = [build_csr(key, spiffe_id=None) for key in KEYS]
COUNT = 60


@dataclass
class Log:
    events: list[AuditEvent] = field(default_factory=list)

    def record(self, *events: AuditEvent) -> None:
        self.events.extend(events)


class TimedKey:
    """An authority's key whose signatures take time, and which notes in which slice each was made."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: TurnsClock) -> None:
        self._key, self._clock = key, clock
        self.seconds = 0.0
        self.turns: list[int] = []
        self.fails_at = -1

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: bytes, how: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        self.turns.append(self._clock.turn)
        self._clock.advance(self.seconds)
        if len(self.turns) - 1 == self.fails_at:
            raise Unavailable("the token is gone")
        return self._key.sign(data, how)

    @property
    def slices(self) -> list[int]:
        """How many signatures were made in each turn of the loop."""
        return [self.turns.count(turn) for turn in sorted(set(self.turns))]


ec.EllipticCurvePrivateKey.register(TimedKey)


class TurnsClock(FakeClock):
    """Counts how often the loop was given back."""

    turn = 0

    async def sleep(self, seconds: float) -> None:
        self.turn += 1
        await super().sleep(seconds)


@dataclass
class Rig:
    issue: IssueSvids
    authorities: Authorities
    store: MemoryStore
    log: Log
    clock: TurnsClock
    key: TimedKey
    ids: list[str]

    async def ask(self, *more: Wanted, count: int = COUNT):
        wanted = [Wanted(one, CSRS[number % 3]) for number, one in enumerate(self.ids[:count])]
        return await self.issue.for_entries(CALLER, [*wanted, *more])


@pytest.fixture
async def rig():
    clock, log = TurnsClock(), Log()
    store = MemoryStore(Database(), TD, "s1")
    authorities = Authorities(store, MemoryKeys(), clock, log, CaSettings(trust_domain=TD, server_id="s1"), os.urandom)
    await authorities.start()
    signer = authorities.issuer.signer
    key = TimedKey(signer.key, clock)
    timed: AuthorityKey = key
    authorities.issuer.signer = replace(signer, key=timed)
    entries = {f"e{number}": record(f"e{number}", f"/w/{number}") for number in range(COUNT)}
    position = Position(1, store.state.value.position.revision + 1, 1)
    store.state.publish(store.state.value.apply(Change(position, entries=entries, agents={AGENT: attested("a:b")})))
    issue = IssueSvids(
        entitlements=Entitlements(store=store, audit=log),
        issuer=authorities.issuer,
        terms_of=terms_of,
        clock=clock,
        audit=log,
        trust_domain=TD,
    )
    log.events.clear()
    return Rig(issue, authorities, store, log, clock, key, list(entries))


def key_in(answer) -> bytes:
    return spki_der(x509.load_der_x509_certificate(answer.chain[0]).public_key())


async def test_each_item_gets_its_own_id_and_key_and_line(rig):
    """S27, A16: whatever is done for a whole slice at once."""
    answers = await rig.ask()
    assert [str(answer.spiffe_id) for answer in answers] == [f"spiffe://example.org/w/{n}" for n in range(COUNT)]
    assert [key_in(answer) for answer in answers] == [spki_der(KEYS[n % 3].public_key()) for n in range(COUNT)]
    assert len({answer.serial for answer in answers}) == COUNT
    told = [(one.spiffe_id, one.serial, one.entry_id) for one in rig.log.events if isinstance(one, SvidIssued)]
    assert told == [(str(one.spiffe_id), one.serial, f"e{n}") for n, one in enumerate(answers)]


async def test_a_quick_key_signs_many_in_a_slice_and_a_slow_one_holds_the_loop_for_one(rig):
    """A7: what the last slice took decides how many the next one takes, from call to call."""
    await rig.ask()
    assert rig.key.slices[1:-1] == [MOST_TOGETHER] * (len(rig.key.slices) - 2)
    rig.key.turns, rig.key.seconds = [], SLICE_SECONDS
    await rig.ask()
    assert rig.key.slices == [MOST_TOGETHER] + [1] * (COUNT - MOST_TOGETHER)
    rig.key.turns, rig.key.seconds = [], SLICE_SECONDS / 2.5
    await rig.ask()
    assert rig.key.slices[:4] == [1, 2, 2, 2]
    rig.key.turns, rig.key.seconds = [], 0.0
    await rig.ask()
    assert rig.key.slices[1:3] == [MOST_TOGETHER] * 2


async def test_what_fails_at_any_step_costs_its_own_item(rig):
    """S27: a bad request, an unknown entry, a name that may not be, an authority's own key, and a key that is gone."""
    reserved = record("spire", "/spire/agent/x")
    position = Position(1, rig.store.state.value.position.revision + 1, 2)
    rig.store.state.publish(rig.store.state.value.apply(Change(position, entries={"spire": reserved})))
    await rig.ask(count=1)  # from here on a slice takes as many as it may
    rig.log.events.clear()
    rig.key.turns, rig.key.fails_at = [], 1
    bad = [Wanted("e9", b"\x30"), Wanted("", CSRS[0]), Wanted("spire", CSRS[0]), Wanted("e8", CSRS[1])]
    first, second, malformed, nameless, misnamed, last = await rig.ask(*bad, count=2)
    assert (key_in(first), key_in(last)) == (spki_der(KEYS[0].public_key()), spki_der(KEYS[1].public_key()))
    assert second.public == "the token is gone"
    assert malformed.public.startswith("malformed CSR: ")
    assert nameless.public == "missing entry ID"
    assert misnamed.public.startswith("failed to sign X509-SVID: spiffe_id: /spire/agent/x cannot be")
    assert all(isinstance(one, IdentityError) for one in (second, malformed, nameless, misnamed))
    refused = [one.entry_id for one in rig.log.events if isinstance(one, CallRefused)]
    assert sorted(refused) == ["", "e1", "e9", "spire"]
    assert [one.entry_id for one in rig.log.events if isinstance(one, SvidIssued)] == ["e0", "e8"]


async def test_an_authority_that_was_replaced_does_not_sign_what_was_prepared_for_it(rig):
    """The ticket names its issuer; nothing is signed by a key that stands for nobody any more (A15)."""
    issuer = rig.authorities.issuer
    order = issuer.order(Profile.WORKLOAD, SpiffeId(TD, "/w"))
    waiting = issuer.prepare(order, SubjectKey.of(KEYS[0].public_key()))
    issuer.signer = replace(issuer.signer, key=generate(KeyKind.EC_P256))
    with pytest.raises(Unavailable, match="replaced"):
        issuer.finish(waiting)
    assert rig.key.turns == []
