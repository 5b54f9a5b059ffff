"""Strict callers: what is asked after attestation, and what the answers do (S13 to S15, A20)."""

import asyncio
import logging
import threading
from dataclasses import replace

import pytest

from attestors.holders import Held
from node_agent.services.callers import Callers, Holders
from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unauthenticated, Unavailable
from spiffe_core.selectors import Selector
from spiffe_core.wire.connection import Connection, Image
from spiffe_core.wire.peer import UnixPeer

SELECTORS = frozenset({Selector("unix", "uid:7")})
IMAGE = Image("/usr/bin/app", (1, 2, 3))
PID = 4711


class Process:
    """A process that ends when it is told to."""

    fd = -1

    def __init__(self):
        self.running = True

    def alive(self):
        return self.running

    def close(self):
        self.running = False


def peer(image=IMAGE, inode=9):
    return UnixPeer(PID, 7, 7, Process(), Connection(inode, image))


class Scan:
    """Answers each pass with the next of its answers, the last for ever; may be held up."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.passes = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, asked, deadline):
        self.passes.append(sorted(one.inode for one in asked))
        assert self.gate.wait(10)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {one: frozenset(answer) for one in asked}


async def attest(_peer):
    return SELECTORS


def callers(*answers, image=IMAGE, second_looks=(0.0, 0.0)):
    return Callers(attest, Holders(Scan(*answers), SystemClock()), image=lambda _: image, second_looks=second_looks)


async def test_alone_and_unchanged_is_served():
    assert await callers({PID})(peer()) == SELECTORS


@pytest.mark.parametrize(
    ("held_by", "image", "words"),
    [
        ({PID, 5}, IMAGE, "another process holds"),
        ({5}, IMAGE, "another process holds"),
        (set(), IMAGE, "does not hold the connection any more"),
        ({PID}, replace(IMAGE, link="/usr/bin/other"), "has started another program"),
        ({PID}, replace(IMAGE, layout=(1, 2, 4)), "has started another program"),
        ({PID}, None, "cannot be seen"),
    ],
    ids=["shared", "passed-on", "closed", "other-program", "same-program-again", "hidden"],
)
async def test_whoever_is_not_is_refused(held_by, image, words):
    """S13, S14, S15, N-A-33."""
    with pytest.raises(Unauthenticated, match=words):
        await callers(held_by, image=image)(peer())


async def test_a_program_that_was_removed_is_refused_also_for_a_delegate():
    """S18: who is named by its number has no connection, and a program all the same."""
    gone = replace(IMAGE, link="/usr/bin/app (deleted)")
    with pytest.raises(Unauthenticated, match="removed or replaced"):
        await callers({PID}, image=gone)(peer(image=gone))
    with pytest.raises(Unauthenticated, match="removed or replaced"):
        await callers({5}, image=gone)(UnixPeer(PID, 7, 7, Process()))
    assert await callers({5})(UnixPeer(PID, 7, 7, Process())) == SELECTORS


async def test_a_program_that_could_not_be_seen_at_accept_is_refused():
    with pytest.raises(Unauthenticated, match="another program"):
        await callers({PID})(peer(image=None))


async def test_a_child_between_fork_and_exec_is_no_other_holder():
    """It is looked at again before anybody is refused; for so often and no more."""
    assert await callers({PID, 5}, {PID, 5}, {PID})(peer()) == SELECTORS
    with pytest.raises(Unauthenticated, match="another process"):
        await callers({PID, 5}, {PID, 5}, {PID, 5}, {PID})(peer())


async def test_what_cannot_be_told_is_refused():
    """Fail closed."""
    with pytest.raises(Unavailable, match="cannot be looked at"):
        await callers(Unavailable("the open files of a process cannot be looked at"))(peer())
    with pytest.raises(MemoryError):
        await callers(MemoryError())(peer())


async def test_a_process_that_ended_meanwhile_is_refused():
    """S12."""
    subject = peer()
    scan = Scan({PID})
    scan.gate.clear()
    call = asyncio.ensure_future(Callers(attest, Holders(scan, SystemClock()), image=lambda _: IMAGE)(subject))
    async with asyncio.timeout(10):
        while not scan.passes:
            await asyncio.sleep(0.001)
    subject.process.close()
    scan.gate.set()
    with pytest.raises(Unauthenticated, match="has ended"):
        await call


async def test_callers_share_passes_and_none_is_answered_by_one_that_began_before_it_asked():
    scan = Scan({PID})
    scan.gate.clear()
    holders = Holders(scan, SystemClock())
    first = asyncio.ensure_future(holders.of(Held(1, PID)))
    async with asyncio.timeout(10):
        while not scan.passes:
            await asyncio.sleep(0.001)
    rest = [asyncio.ensure_future(holders.of(Held(number, PID))) for number in (1, 2, 3, 2)]
    await asyncio.sleep(0)
    scan.gate.set()
    assert await asyncio.gather(first, *rest) == [frozenset({PID})] * 5
    assert scan.passes == [[1], [1, 2, 3]]


async def test_a_caller_who_gives_up_takes_no_others_answer_away():
    scan = Scan({PID})
    scan.gate.clear()
    holders = Holders(scan, SystemClock())
    one, two = (asyncio.ensure_future(holders.of(Held(1, PID))) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    scan.gate.set()
    assert await two == frozenset({PID})


async def test_without_strict_a_change_is_told_once_and_nobody_is_refused(caplog):
    """S14: documented and logged."""
    usual = Callers(attest, link=lambda _: "/usr/bin/other")
    with caplog.at_level(logging.WARNING):
        changed = peer()
        assert [await usual(changed), await usual(changed)] == [SELECTORS] * 2
        assert await usual(UnixPeer(PID, 7, 7, Process())) == SELECTORS
    (record,) = caplog.records
    assert record.facts == {"pid": PID, "uid": 7, "connected_as": "/usr/bin/app", "now": "/usr/bin/other"}
