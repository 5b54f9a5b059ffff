"""The published sequence number never goes back (TDB-06, D19)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.domain.bundle_sequence import AWAY_SECONDS, Published, sequence_to_publish

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("stored", "last", "expected"),
    [
        (7, Published(7, NOW - 5), 7),
        (9, Published(7, NOW - 5), 9),
        (6, Published(7, NOW - 5), NOW),
        (7, Published(7, NOW - AWAY_SECONDS - 1), NOW),
        (7, None, NOW),
        (NOW + 3, None, NOW + 4),
        (NOW + 3, Published(NOW + 9, NOW), NOW + 10),
    ],
    ids=["restart", "changed meanwhile", "restored backup", "long away", "new machine", "ahead of time", "both ahead"],
)
def test_the_number_to_publish(stored, last, expected):
    """TDB-06, D19: the database's word, unless it may have been set back."""
    assert sequence_to_publish(stored, last, NOW) == expected


@given(st.integers(0, 2**40), st.none() | st.builds(Published, st.integers(0, 2**40), st.integers(0, 2**33)))
def test_it_is_never_below_what_is_known(stored, last):
    """TDB-06."""
    number = sequence_to_publish(stored, last, NOW)
    assert number >= stored
    assert last is None or number >= last.sequence
