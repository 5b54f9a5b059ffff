"""Laws of the authority lifecycle under every sequence of commands and every movement of the clock (R1, R17, R18, A15)."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from identity_server.domain.authority import (
    MOVES,
    PROPAGATION_SECONDS,
    Activate,
    Activated,
    Authority,
    Command,
    Forget,
    Forgotten,
    IllegalMove,
    Prepare,
    Prepared,
    Retire,
    Slots,
    Status,
    Taint,
    apply,
    decide,
    usable,
)
from identity_server.domain.rotation import Do, next_step

LIFE = 600
SLOTS = st.sampled_from(["A", "B"])
MOVEMENTS = st.one_of(st.integers(0, 30), st.sampled_from([100, 200, 300, 599, 600, 601, 5_000]), st.integers(-700, -1))


class AuthoritySlots(RuleBasedStateMachine):
    """Any caller may send any command at any time; the bundle is what the events made of it, less what is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.slots = Slots()
        self.bundle: dict[str, int] = {}  # authority id -> when it was published
        self.made = 0

    def send(self, command: Command) -> bool:
        """Decide and apply as the store does; return whether it was allowed."""
        before = self.slots
        try:
            events = decide(before, command, self.now)
        except IllegalMove:
            assert self.slots is before, "a refusal changes nothing"
            return False
        for event in events:
            former = self.slots.find(event.authority.authority_id)
            if isinstance(event, Prepared):
                former = event.replaced
                self.bundle[event.authority.authority_id] = self.now
            if isinstance(event, Activated):
                self.check_activation(before, event.authority)
            status = None if isinstance(event, Forgotten) else event.authority.status
            verbs = [
                verb
                for (was, verb), becomes in MOVES.items()
                if was is (former and former.status) and becomes is status
            ]
            assert verbs, "no row of the table allows this move"
            self.slots = apply(self.slots, event)
            assert sum(one.status is Status.ACTIVE for one in self.slots) <= 1, "between two events as well"
        assert decide_again(self.slots, command, self.now), "a repeated command changes nothing or is refused"
        return True

    def check_activation(self, before: Slots, authority: Authority) -> None:
        assert authority.authority_id in self.bundle, "nothing signs before it is published"
        assert usable(authority, self.now)
        active = before.active
        if active is not None and usable(active, self.now):
            waited = self.now - self.bundle[authority.authority_id]
            outlives = active.not_after > authority.published_at + PROPAGATION_SECONDS
            assert waited >= PROPAGATION_SECONDS or not outlives

    def some_id(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([*sorted(one.authority_id for one in self.slots), "unknown"]))

    @rule(slot=SLOTS, reuse=st.booleans(), status=st.sampled_from(Status))
    def prepare(self, slot: Any, reuse: bool, status: Status) -> None:
        self.made += 1
        authority_id = next((one.authority_id for one in self.slots), "x") if reuse else f"k{self.made}"
        self.send(
            Prepare(
                Authority(
                    authority_id=authority_id,
                    server_id="s",
                    slot=slot,
                    status=status,
                    certificate=b"",
                    issued_at=self.now,
                    not_after=self.now + LIFE,
                    published_at=self.now,
                )
            )
        )

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        self.send(Activate(self.some_id(data), frozenset(self.bundle)))

    @rule(data=st.data(), kind=st.sampled_from([Retire, Taint, Forget]))
    def other(self, data: st.DataObject, kind: Any) -> None:
        self.send(kind(self.some_id(data)))

    @rule(seconds=MOVEMENTS)
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.bundle)
    @rule(data=st.data())
    def somebody_takes_a_root_out(self, data: st.DataObject) -> None:
        self.bundle.pop(data.draw(st.sampled_from(sorted(self.bundle))))

    @rule()
    def restart(self) -> None:
        """The journal is all there is."""
        assert self.slots == Slots.of(list(self.slots))

    @rule()
    def rotation_runs(self) -> None:
        """From any reachable state the schedule settles in a few steps with an authority that may sign."""
        for _ in range(6):
            step = next_step(self.slots, self.now, bundle=frozenset(self.bundle))
            if step.do is Do.NOTHING:
                break
            if step.do is Do.PREPARE:
                self.made += 1
                slot = self.slots.free
                held = self.slots[slot]
                assert held is None or held.status is Status.OLD, "the key about to be replaced is nobody's in force"
                fresh = Authority(
                    authority_id=f"k{self.made}",
                    server_id="s",
                    slot=slot,
                    status=Status.PREPARED,
                    certificate=b"",
                    issued_at=self.now,
                    not_after=self.now + LIFE,
                    published_at=self.now,
                )
                assert self.send(Prepare(fresh)), step
            else:
                assert step.authority is not None
                whom = step.authority.authority_id
                command = Activate(whom, frozenset(self.bundle)) if step.do is Do.ACTIVATE else Retire(whom)
                assert self.send(command), f"the schedule asks only for what the table allows: {step}"
        else:
            raise AssertionError("the schedule does not settle")
        active = self.slots.active
        assert active is not None
        assert usable(active, self.now)
        assert active.authority_id in self.bundle

    @invariant()
    def at_most_one_active_and_one_prepared(self) -> None:
        for status in (Status.ACTIVE, Status.PREPARED):
            assert sum(one.status is status for one in self.slots) <= 1

    @invariant()
    def only_old_ones_are_tainted_and_ids_differ(self) -> None:
        assert all(one.status is Status.OLD for one in self.slots if one.tainted)
        ids = [one.authority_id for one in self.slots]
        assert len(set(ids)) == len(ids)
        assert [slot for slot in ("A", "B") if (one := self.slots[slot]) is not None and one.slot != slot] == []  # type: ignore[index]  # both are slots


def decide_again(slots: Slots, command: Command, now: int) -> bool:
    try:
        return decide(slots, command, now) == ()
    except IllegalMove:
        return True


TestAuthoritySlots = AuthoritySlots.TestCase
TestAuthoritySlots.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
