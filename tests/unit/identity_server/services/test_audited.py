"""Around every change: a line before it and a line with what became of it (architecture A16)."""

import asyncio
from dataclasses import replace

import pytest

from identity_server.domain.audit import AgentChanged, EntryChanged
from identity_server.services.audited import audited, audited_batch
from spiffe_core.errors import Conflict, NotFound, Unavailable

BAN = AgentChanged(change="ban", spiffe_id="spiffe://example.org/spire/agent/x", actor="local")


class Log:
    """Keeps events; refuses those that must stand before their effect while it is full."""

    def __init__(self, *, full=False):
        self.full = full
        self.events = []

    def record(self, *events):
        if self.full and any(event.precedes for event in events):
            raise Unavailable("no room")
        self.events.extend(events)

    @property
    def outcomes(self):
        return [(event.outcome, event.reason) for event in self.events]


def test_what_happened_is_done():
    log = Log()
    with audited(log, BAN):
        assert log.outcomes == [("begun", "")]
    assert log.outcomes == [("begun", ""), ("done", "")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(NotFound("agent not found"), "refused"), (Unavailable("away"), "failed"), (KeyError("secret"), "failed")],
    ids=["refused", "the database is away", "a bug"],
)
def test_what_did_not_happen_says_why_and_the_error_goes_on(error, outcome):
    log = Log()
    with pytest.raises(type(error)), audited(log, BAN):
        raise error
    assert [one for one, _ in log.outcomes] == ["begun", outcome]
    assert "secret" not in log.outcomes[1][1]


def test_without_room_for_the_first_line_nothing_happens():
    """R11: fail closed."""
    log, happened = Log(full=True), []
    with pytest.raises(Unavailable), audited(log, BAN):
        happened.append("the effect")
    assert (happened, log.events) == ([], [])


async def test_a_change_that_was_cut_off_is_not_left_open():
    """A caller that hangs up while the database works: the line says that nobody here knows."""
    log, begun = Log(), asyncio.Event()

    async def change():
        with audited(log, BAN):
            begun.set()
            await asyncio.sleep(3600)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(change())
        await begun.wait()
        task.cancel()
    assert [one for one, _ in log.outcomes] == ["begun", "failed"]
    assert "interrupted" in log.outcomes[1][1]


async def test_a_batch_tells_of_each_item():
    """S27: each has its own outcome, and what only the answer knows."""
    log = Log()
    events = [EntryChanged(change="create", entry_id=str(number), actor="local") for number in range(3)]

    async def act():
        return ["good", Conflict("similar entry already exists"), "good"]

    def told(event, answer):
        return event if isinstance(answer, Conflict) else replace(event, revision_number=7)

    assert len(await audited_batch(log, events, act, told)) == 3
    assert [one for one, _ in log.outcomes] == ["begun"] * 3 + ["done", "refused", "done"]
    assert [event.revision_number for event in log.events[3:]] == [7, None, 7]


async def test_a_batch_that_fails_as_a_whole_fails_for_each():
    log = Log()

    async def away():
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await audited_batch(log, [BAN, BAN], away)
    assert log.outcomes == [("begun", ""), ("begun", ""), ("failed", "away"), ("failed", "away")]
