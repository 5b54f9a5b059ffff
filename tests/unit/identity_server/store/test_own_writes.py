"""What the writer leaves for the follower of its process (B9): a way from one position to another, or nothing."""

import pytest

from identity_server.domain.history import Position
from identity_server.store.own_writes import UNREAD, OwnWrites


def at(revision, token=None, epoch=1):
    return Position(epoch, revision, revision * 7 if token is None else token)


@pytest.fixture
def own():
    """Two transactions: 1 to 3, and 3 to 4."""
    made = OwnWrites(most=4)
    made.add(at(1), at(3), {(2, b"a"): "first", (2, b"b"): None})
    made.add(at(3), at(4), {(2, b"a"): UNREAD})
    return made


def test_the_way_is_the_changes_in_order(own):
    assert own.take(at(1), at(4)) == {(2, b"a"): UNREAD, (2, b"b"): None}
    assert own.take(at(1), at(4)) is None, "what was taken is forgotten"


def test_a_part_of_the_way_leaves_the_rest(own):
    assert own.take(at(1), at(3)) == {(2, b"a"): "first", (2, b"b"): None}
    assert own.take(at(3), at(4)) == {(2, b"a"): UNREAD}


@pytest.mark.parametrize(
    ("known", "head"),
    [(at(1, token=9), at(4)), (at(1, epoch=2), at(4)), (at(1), at(4, token=9)), (at(1), at(5)), (at(2), at(4))],
    ids=["other token", "other history", "other head", "another server wrote behind", "another wrote between"],
)
def test_anything_else_is_to_be_read(own, known, head):
    assert own.take(known, head) is None


def test_a_transaction_without_its_beginning_is_no_way(own):
    assert own.take(at(2), at(3)) is None
    assert own.take(at(1), at(3)) is None, "what is not newer than the head is of no use any more"
    assert own.take(at(3), at(4)) == {(2, b"a"): UNREAD}


def test_what_is_kept_is_bounded(own):
    own.add(at(4), at(5), {(2, b"c"): "x"})
    own.add(at(5), at(6), {(2, b"d"): "x"})
    assert own.take(at(1), at(6)) is None, "with the fifth subject the first four went"
    own.add(at(6), at(7), {(2, bytes([number])): "x" for number in range(5)})
    assert own.take(at(6), at(7)) is None, "a transaction of five is never kept"
