"""A15: which servers are gone for good, as far as the database shows."""

from dataclasses import replace

from identity_server.domain.absence import Trace, keep_records, patience, traces
from identity_server.domain.authority import Authority, Status
from identity_server.domain.server_settings import FORGET_SECONDS, MAX_RECORDS, IssuingSettings, ServerRecord

T0 = 1_700_000_000
HOUR, DAY = 3_600, 86_400
ACTIVE = Authority(
    authority_id="ab" * 20,
    server_id="gone",
    slot="A",
    status=Status.ACTIVE,
    certificate=b"der",
    issued_at=T0,
    not_after=T0 + DAY,
    published_at=T0,
)
PREPARED = replace(ACTIVE, authority_id="cd" * 20, slot="B", status=Status.PREPARED, issued_at=T0 + 12 * HOUR)
TOKEN = replace(ACTIVE, authority_id="kid", kind="jwt", status=Status.OLD)


def record(server_id: str, written_at: int) -> ServerRecord:
    return ServerRecord(server_id, IssuingSettings(()), written_at)


def test_the_last_trace_is_the_record_or_a_newer_authority() -> None:
    """A15: whichever a server left last, by its own clock."""
    assert Trace("gone", T0 + HOUR, (ACTIVE,)).seen_at == T0 + HOUR
    assert Trace("gone", T0 + HOUR, (ACTIVE, PREPARED)).seen_at == T0 + 12 * HOUR
    assert Trace("gone", 0, (ACTIVE,)).seen_at == T0


def test_authorities_are_left_after_two_lifetimes_and_not_a_second_sooner() -> None:
    """A15: of the longest authority of any kind; what is old is not retired again."""
    trace = Trace("gone", T0 + HOUR, (ACTIVE, TOKEN))
    due = T0 + HOUR + 2 * DAY
    assert (trace.left(due), trace.left(due + 1)) == ((), (ACTIVE,))
    longer = replace(TOKEN, not_after=T0 + 3 * DAY)
    assert Trace("gone", T0, (ACTIVE, longer)).left(T0 + 6 * DAY) == ()
    assert Trace("gone", T0, (ACTIVE, longer)).left(T0 + 6 * DAY + 1) == (ACTIVE,)


def test_old_authorities_of_who_is_gone_leave_the_journal_a_day_after_their_end() -> None:
    """A15: nobody else would take them out; of a server that is there they are its own business."""
    trace = Trace("gone", T0, (ACTIVE, TOKEN))
    assert trace.spent(T0 + 2 * DAY) == ()
    assert trace.spent(T0 + 2 * DAY + 1) == (TOKEN,)
    short = replace(TOKEN, not_after=T0 + HOUR)
    alone = Trace("gone", T0, (short,))
    assert alone.spent(T0 + HOUR + DAY) == ()
    assert alone.spent(T0 + HOUR + DAY + 1) == (short,)


def test_a_trace_of_the_future_is_not_overdue() -> None:
    """R17: the clock was ahead when it was written, or ours is behind now."""
    assert Trace("gone", T0 + 400 * DAY, (ACTIVE,)).left(T0 + 10 * DAY) == ()


def test_traces_are_those_of_other_servers_that_have_authorities() -> None:
    """A15: our own slots are led by our own schedule; a record without authorities leaves nothing to retire."""
    mine = replace(ACTIVE, authority_id="me", server_id="own")
    found = traces([PREPARED, mine, ACTIVE], [record("gone", T0), record("own", T0), record("empty", T0)], "own")
    assert found == (Trace("gone", T0, (ACTIVE, PREPARED)),)
    assert traces([ACTIVE], [], "own") == (Trace("gone", 0, (ACTIVE,)),)


def test_nobody_is_taken_for_gone_while_records_may_be_missing() -> None:
    """A15: only the newest records are read; beyond that bound a server that is there might have none."""
    many = [record(f"s{number}", T0) for number in range(MAX_RECORDS)]
    assert traces([ACTIVE], many, "own") == ()
    assert len(traces([ACTIVE], many[1:], "own")) == 1


def test_records_are_kept_as_long_as_somebody_may_be_waited_for() -> None:
    """A15: with authorities of a year the record of a server that stopped is needed for two."""
    assert (patience([]), keep_records([])) == (0, FORGET_SECONDS)
    year = replace(ACTIVE, not_after=T0 + 365 * DAY)
    assert keep_records([ACTIVE, year]) == 730 * DAY + FORGET_SECONDS
