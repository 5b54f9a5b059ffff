"""Need 14: a subject that a cloud does not take is known before the cloud says so."""

import pytest

from identity_server.domain.verifier_limits import SUBJECT_LIMITS, too_long_for


@pytest.mark.parametrize("limit", SUBJECT_LIMITS, ids=lambda one: one.verifier)
def test_the_longest_subject_is_taken_and_one_more_is_not(limit):
    """google.subject 127 bytes, AWS 255, Azure 600 characters."""
    subject = "spiffe://example.org/".ljust(limit.longest, "a")
    assert limit not in too_long_for(subject)
    assert limit in too_long_for(subject + "a")


def test_each_limit_says_where_it_stands():
    assert [(one.verifier, one.longest) for one in SUBJECT_LIMITS] == [
        ("Google Cloud", 127),
        ("AWS", 255),
        ("Azure", 600),
    ]
    assert all(one.source for one in SUBJECT_LIMITS)
