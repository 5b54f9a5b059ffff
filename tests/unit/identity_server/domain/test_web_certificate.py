"""When a web certificate is renewed and how often that is tried."""

from datetime import UTC, datetime, timedelta

import pytest

from identity_server.domain.web_certificate import LONGEST_PAUSE_SECONDS, pause_after, renewal_due

FROM = datetime(2030, 1, 1, tzinfo=UTC)
UNTIL = FROM + timedelta(days=90)


@pytest.mark.parametrize(("jitter", "days"), [(-1, 57), (0, 60), (1, 63)])
def test_a_certificate_is_renewed_at_two_thirds_of_its_life(jitter, days):
    assert abs(renewal_due(FROM, UNTIL, jitter) - FROM - timedelta(days=days)) < timedelta(seconds=1)


def test_pauses_double_up_to_six_hours():
    assert [pause_after(failures, 0.0) for failures in (1, 2, 3)] == [60.0, 120.0, 240.0]
    assert pause_after(10_000, 0.0) == LONGEST_PAUSE_SECONDS
    assert pause_after(1, -1.0) == 45.0
