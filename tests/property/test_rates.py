"""Laws of the rate limiter: never more than the burst plus the rate, whatever the order of calls (architecture A17)."""

from hypothesis import given
from hypothesis import strategies as st

from identity_server.domain.rates import FairQueue, Rate
from spiffe_core.errors import TooFast

STEPS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 10), st.sampled_from(["a", "b"]), st.booleans()), min_size=1, max_size=60
)


@given(steps=STEPS, rate=st.floats(0.5, 50), burst=st.integers(10, 40))
def test_units_served_in_any_window_never_exceed_burst_plus_rate(steps, rate, burst):
    line = FairQueue(Rate(rate, burst), longest_wait=2.0)
    now = 0.0
    served = {"a": [], "b": []}
    for pause, units, key, gone in steps:
        now += pause
        try:
            ticket = line.enter(key, units, now)
        except TooFast:
            continue
        assert 0.0 <= ticket.wait <= 2.0
        line.leave(ticket, now, unused=gone)
        if not gone:
            served[key].append((now + ticket.wait, units))
    for log in served.values():
        log.sort()
        for start, _ in log:
            for end, _ in log:
                if end >= start:
                    total = sum(units for at, units in log if start <= at <= end)
                    assert total <= burst + rate * (end - start) + 1e-6 * len(log) + 1e-6
