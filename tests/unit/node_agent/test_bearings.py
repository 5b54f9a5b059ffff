"""Which position an agent carries: the newest it was told, by whichever server (A8)."""

import pytest

from node_agent.domain.bearings import Bearings, newer

OLD, NEW, LATER, OTHER = "7.10.111", "7.12.222", "7.15.333", "8.3.444"


@pytest.mark.parametrize(
    ("known", "told", "carried", "after"),
    [
        ("", NEW, "", NEW),
        (OLD, NEW, OLD, NEW),
        (NEW, OLD, "", NEW),
        (NEW, OTHER, NEW, OTHER),
        (LATER, NEW, OLD, LATER),
        (LATER, OLD, NEW, LATER),
        (LATER, NEW, LATER, NEW),
        (OTHER, LATER, OTHER, LATER),
        (NEW, "", NEW, NEW),
        (NEW, "1.2", NEW, NEW),
        (NEW, "1.2.x", NEW, NEW),
        (NEW, "1.-2.3", NEW, NEW),
        (NEW, "٣.٣.٣", NEW, NEW),
        ("polled", OLD, "", OLD),
    ],
    ids=[
        "the first",
        "a newer one",
        "an older one, by a call that carried none",
        "of a newer history",
        "by an answer that comes late",
        "by an answer older than what it carried, when more is known by now",
        "the database was restored: the server has set aside what was carried",
        "an older history: restored whole",
        *(f"no position: {text}" for text in ("nothing", "two parts", "letters", "a sign", "other digits")),
        "nothing was known",
    ],
)
def test_the_newest_is_kept_and_a_lost_history_is_let_go(known, told, carried, after):
    assert newer(known, told, carried) == after


def test_what_the_push_stream_says_counts_and_who_joins_anew_has_seen_nothing():
    bearings = Bearings()
    bearings.told(LATER)
    bearings.reset(NEW)
    assert bearings.newest == NEW
    bearings.reset()
    assert bearings.newest == ""
