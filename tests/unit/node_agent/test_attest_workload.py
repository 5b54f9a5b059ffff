"""Asking the attestors: budget, slots, failures (A7, A20, N-A-25, N-A-32)."""

import asyncio
import threading
import time

import pytest

from attestors.api import Findings
from node_agent.services import attestor_lane
from node_agent.services.attest_workload import AttestWorkload
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unauthenticated, Unavailable
from tests.builders import selectors
from tests.unit.node_agent.conftest import Process, Selecting

UID = selectors("unix:uid:1000")


class Failing:
    """Always in the same way."""

    name = "failing"

    def __init__(self, error):
        self.error = error

    def attest(self, subject, deadline):
        raise self.error


class Hanging:
    """Hangs for the uids it is told to, as a read from a dead file system does; counts who is inside."""

    name = "hanging"

    def __init__(self, *uids):
        self.uids = uids
        self.release = threading.Event()
        self.inside = 0
        self.most = 0
        self.total = 0
        self._lock = threading.Lock()

    def attest(self, subject, deadline):
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)
        try:
            if subject.uid in self.uids:
                self.release.wait(20)
            return Findings(UID)
        finally:
            with self._lock:
                self.inside -= 1


def service(*attestors, budget=5.0):
    return AttestWorkload(attestors, clock=SystemClock(), budget=budget)


async def test_the_findings_of_all_are_united():
    more = selectors("docker:label:app")
    assert await service(Selecting(*UID), Selecting(*more))(Process()) == UID | more


async def test_one_failing_attestor_is_tolerated():
    """spire_features 17.1."""
    attest = service(Failing(Unavailable("engine away")), Selecting(*UID))
    assert await attest(Process()) == UID


async def test_a_broken_attestor_is_tolerated_and_reported(caplog):
    attest = service(Failing(ZeroDivisionError("bug")), Selecting(*UID))
    assert await attest(Process()) == UID
    assert "attestor failing failed" in caplog.text


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError("bug")])
async def test_all_failing_is_unavailable(error):
    """N-A-25."""
    with pytest.raises(Unavailable, match="workload attestation failed"):
        await service(Failing(error), Failing(error))(Process())


async def test_an_attestor_that_found_another_user_is_not_outvoted_by_unavailability():
    with pytest.raises(Unauthenticated):
        await service(Failing(Unauthenticated("changed its user")))(Process())


async def test_nobody_is_asked_about_a_process_that_has_ended():
    """N-A-32."""
    asked = []

    class Asking(Selecting):
        def attest(self, subject, deadline):
            asked.append(subject)
            return super().attest(subject, deadline)

    process = Process()
    process.ended = True
    with pytest.raises(Unauthenticated):
        await service(Asking(*UID))(process)
    assert asked == []


async def test_a_process_that_ends_meanwhile_gets_nothing():
    """N-A-32: liveness is required afterwards too."""

    process = Process()

    class Ending(Selecting):
        def attest(self, subject, deadline):
            process.ended = True
            return super().attest(subject, deadline)

    with pytest.raises(Unauthenticated):
        await service(Ending(*UID))(process)


async def test_a_hanging_read_ends_with_the_budget():
    """N-A-25: a FUSE executable that never answers."""
    hanging = Hanging(1000)
    attest = service(hanging, budget=0.05)
    with pytest.raises(Unavailable):
        await attest(Process())
    hanging.release.set()


async def test_a_uid_that_hangs_holds_two_threads_and_nobody_else_up():
    """A7: at most two slots for one uid."""
    hanging = Hanging(666)
    attest = service(hanging, budget=0.3)
    outcomes = asyncio.gather(*(attest(Process(uid=666)) for _ in range(30)), return_exceptions=True)
    await asyncio.sleep(0.02)
    begin = time.monotonic()
    assert await attest(Process(uid=1000)) == UID
    assert time.monotonic() - begin < 0.2
    assert all(isinstance(one, Unavailable) for one in await outcomes)
    assert hanging.most <= 3
    hanging.release.set()


async def test_a_slot_of_a_hanging_thread_stays_taken_until_it_is_back():
    hanging = Hanging(666)
    attest = service(hanging, budget=0.05)
    for _ in range(4):
        with pytest.raises(Unavailable):
            await attest(Process(uid=666))
    assert hanging.most == 2
    hanging.release.set()
    async with asyncio.timeout(20):
        while attest._lanes[0]._slots:
            await asyncio.sleep(0.01)
    hanging.uids = ()
    attest._budget = 20.0  # this one has the time it needs
    assert await attest(Process(uid=666)) == UID


async def test_many_users_that_hang_do_not_starve_the_rest(monkeypatch):
    """A7: a bounded number of replacement pools."""
    monkeypatch.setattr(attestor_lane, "THREADS", 4)
    bad = range(100, 105)
    hanging = Hanging(*bad)
    attest = service(hanging, budget=0.05)
    for _ in range(5):
        await asyncio.gather(*(attest(Process(uid=uid)) for uid in bad), return_exceptions=True)
    attest._budget = 20.0  # they are counted as hanging by now; this one has the time it needs
    assert await attest(Process(uid=1)) == UID
    assert 1 < len(attest._lanes[0]._pools) <= attestor_lane.MOST_POOLS
    hanging.release.set()


async def test_a_question_nobody_waits_for_is_not_begun(monkeypatch):
    """Behind hanging threads a line of dead questions would otherwise still be worked off."""
    monkeypatch.setattr(attestor_lane, "THREADS", 1)
    monkeypatch.setattr(attestor_lane, "MOST_POOLS", 1)
    hanging = Hanging(666)
    attest = service(hanging, budget=0.05)
    await asyncio.gather(attest(Process(uid=666)), attest(Process(uid=1)), return_exceptions=True)
    hanging.release.set()
    for _ in range(100):
        if not attest._lanes[0]._slots:
            break
        await asyncio.sleep(0.01)
    assert hanging.most == 1
    assert hanging.total == 1


async def test_a_thousand_streams_of_one_user_are_all_answered():
    """B4, R5: two slots are a queue, not a refusal."""
    attest = service(Selecting(*UID))
    answers = await asyncio.gather(*(attest(Process()) for _ in range(1000)))
    assert answers == [UID] * 1000
    assert not attest._lanes[0]._slots


async def test_the_line_of_one_user_is_bounded(monkeypatch):
    monkeypatch.setattr(attestor_lane, "WAITING_PER_UID", 3)
    hanging = Hanging(666)
    attest = service(hanging, budget=5.0)
    waiting = asyncio.gather(*(attest(Process(uid=666)) for _ in range(5)))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await attest(Process(uid=666))
    hanging.release.set()
    assert len(await waiting) == 5


async def test_a_caller_who_leaves_gives_the_slot_back():
    """N-A-37."""
    hanging = Hanging(666)
    attest = service(hanging)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await attest(Process(uid=666))
    hanging.release.set()
    for _ in range(100):
        if not attest._lanes[0]._slots:
            break
        await asyncio.sleep(0.01)
    assert not attest._lanes[0]._slots


def test_an_agent_without_attestors_does_not_start():
    with pytest.raises(ValueError, match="without an attestor"):
        service()


class Prompt(Selecting):
    """Tells at once what it is told to; counts who asks where."""

    def __init__(self, *outcomes):
        super().__init__(*UID)
        self.outcomes, self.threads, self.slowly = list(outcomes), set(), 0

    def attest_at_once(self, subject):
        self.threads.add(threading.current_thread())
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def attest(self, subject, deadline):
        self.slowly += 1
        return super().attest(subject, deadline)


async def test_what_an_attestor_can_tell_at_once_needs_no_thread():
    """A7: only what may have to wait is asked elsewhere."""
    prompt = Prompt(Findings(UID), None, Findings(UID))
    attest = service(prompt)
    assert await attest(Process()) == UID
    assert prompt.slowly == 0
    assert await attest(Process()) == UID
    assert prompt.slowly == 1
    assert prompt.threads == {threading.main_thread()}


async def test_attestors_at_once_and_on_threads_are_united():
    attest = service(Prompt(Findings(UID)), Selecting(*selectors("k8s:ns:web")))
    assert await attest(Process()) == UID | selectors("k8s:ns:web")


@pytest.mark.parametrize("error", [Unavailable("no"), RuntimeError("broken")], ids=["refusal", "bug"])
async def test_failing_at_once_is_failing(error, caplog):
    """As on a thread: tolerated beside others, reported, and not asked a second time."""
    prompt = Prompt(error, error)
    with pytest.raises(Unavailable):
        await service(prompt)(Process())
    assert prompt.slowly == 0
    assert "failed" in caplog.text or not isinstance(error, RuntimeError)
    assert await service(prompt, Selecting(*UID))(Process()) == UID


async def test_another_user_found_at_once_is_not_outvoted():
    with pytest.raises(Unauthenticated):
        await service(Prompt(Unauthenticated("another user")), Selecting(*UID))(Process())


async def test_a_process_that_ended_while_it_was_asked_about_gets_nothing():
    process = Process()

    class Ending(Prompt):
        def attest_at_once(self, subject):
            subject.ended = True
            return Findings(UID)

    with pytest.raises(Unauthenticated):
        await service(Ending())(process)


async def test_what_is_told_at_once_does_not_stand_in_line():
    """A user that hangs two reads is still answered where nothing has to be read from files."""
    hanging = Hanging(666)
    prompt = Prompt(*[Findings(UID)] * 3)
    attest = service(prompt, hanging, budget=0.1)
    for _ in range(2):
        assert await attest(Process(uid=666)) == UID
    assert prompt.slowly == 0
    hanging.release.set()


async def test_who_stood_in_line_is_asked_about_at_once_again():
    """B4: when names have to be looked up again, one of a thousand streams waits for it and the others for that one."""
    prompt = Prompt(None, None, None, Findings(UID), Findings(UID))
    attest = service(prompt)
    assert await asyncio.gather(*(attest(Process()) for _ in range(4))) == [UID] * 4
    assert prompt.slowly == 2
    assert not attest._lanes[0]._slots


async def test_who_fails_after_standing_in_line_gives_the_slot_back():
    prompt = Prompt(None, None, None, Unauthenticated("another user"))
    attest = service(prompt)
    outcomes = await asyncio.gather(*(attest(Process()) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in outcomes] == [frozenset, frozenset, Unauthenticated]
    assert not attest._lanes[0]._slots
