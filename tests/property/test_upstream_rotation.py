"""Laws of rotation below an upstream, whatever it does and whatever operators command (S37, R11, A15)."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from identity_server.domain.access import Caller, CallerKind
from identity_server.domain.authority import Status
from identity_server.domain.upstream import UpstreamCa
from spiffe_core.bundle import X509Authority
from spiffe_core.errors import IdentityError, Unavailable
from tests.authority import SpiffeTestCA
from tests.doubles.nested_server import Nested, ca

ADMIN = Caller(CallerKind.LOCAL, "law")
STRANGER = ca("stranger")
POOL = [ca(f"root {number}") for number in range(4)]


class UpstreamRotation(RuleBasedStateMachine):
    """One server; the upstream's root changes, is tainted, withdrawn; answers are spoiled; the upstream goes away."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.nested = Nested(root=POOL[0])
        self.tainted: set[int] = set()
        self.shown: set[int] = {0}
        self.current = 0
        self.loop.run(self.nested.start())

    def teardown(self) -> None:
        self.loop.close()

    def attempt(self, coroutine: object) -> None:
        """A refusal is an answer; what signed before signs after, unless its own time is over."""
        with contextlib.suppress(IdentityError):
            self.loop.run(coroutine)  # type: ignore[arg-type]  # a coroutine
        self.check_signing()

    def check_signing(self) -> None:
        """Whoever is active and in its time signs, below a root that is stored and untainted."""
        nested = self.nested
        active = nested.slots.active
        now = int(nested.clock.now().timestamp())
        try:
            chain = nested.issue()
        except Unavailable:
            assert active is None or active.not_after <= now, "nothing took the authority's root away while it signs"
            return
        assert active is not None
        assert chain[1:] == active.upstream_chain
        tainted = {one.key_id for one in nested.bundle.x509_authorities if one.tainted}
        assert active.anchor_id not in tainted

    def show(self) -> None:
        roots = [POOL[number] for number in sorted(self.shown)]
        self.nested.upstream.show(*roots, tainted=tuple(POOL[number] for number in sorted(self.tainted)))
        self.attempt(self.nested.follow())

    @rule(number=st.integers(0, 3))
    def the_upstream_signs_below_another_root(self, number: int) -> None:
        self.nested.upstream.issuer = POOL[number]
        self.current = number
        self.shown.add(number)
        self.show()

    @rule(number=st.integers(0, 3))
    def the_upstream_taints_a_root(self, number: int) -> None:
        if number != self.current:
            self.tainted.add(number)
            self.shown.add(number)
        self.show()

    @rule(number=st.integers(0, 3))
    def the_upstream_withdraws_a_root(self, number: int) -> None:
        if number != self.current:
            self.shown.discard(number)
        self.show()

    @rule(away=st.booleans())
    def the_upstream_goes_or_returns(self, away: bool) -> None:
        self.nested.upstream.trouble = Unavailable("away") if away else None

    @rule(spoiled=st.booleans())
    def answers_are_spoiled_or_good(self, spoiled: bool) -> None:
        def bad(given: UpstreamCa) -> UpstreamCa:
            return UpstreamCa(given.chain, (STRANGER.der,))

        self.nested.upstream.spoil = bad if spoiled else (lambda given: given)

    @rule(seconds=st.sampled_from([1, 60, 3_600, 5 * 3_600]))
    def time_passes(self, seconds: int) -> None:
        self.nested.clock.advance(seconds)
        self.attempt(self.nested.authorities.tick())

    @rule()
    def prepare(self) -> None:
        self.attempt(self.nested.authorities.prepare("x509", "law"))

    @rule()
    def activate(self) -> None:
        prepared = self.nested.slots.prepared
        if prepared is not None:
            self.attempt(self.nested.authorities.activate("x509", prepared.authority_id, "law"))

    @rule(number=st.integers(0, 3), verb=st.sampled_from(["taint", "revoke"]))
    def an_operator_commands(self, number: int, verb: str) -> None:
        self.attempt(getattr(self.nested.above, verb)(ADMIN, root_id(POOL[number])))

    @invariant()
    def what_is_in_force_is_published_untainted_and_ends_in_time(self) -> None:
        bundle = self.nested.bundle
        known = {one.key_id: one for one in bundle.x509_authorities}
        for one in self.nested.database.authorities.values():
            if one.status is not Status.OLD:
                assert one.anchor_id in known
                assert not known[one.anchor_id].tainted
                assert one.not_after <= known[one.anchor_id].not_after.timestamp()
        assert STRANGER.der not in bundle.x509_roots
        assert sum(one.status is Status.ACTIVE for one in self.nested.slots) <= 1


def root_id(root: SpiffeTestCA) -> str:
    return X509Authority(root.der).key_id


TestUpstreamRotation = UpstreamRotation.TestCase
TestUpstreamRotation.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
