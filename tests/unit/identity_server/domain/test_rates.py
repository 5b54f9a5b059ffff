"""Token buckets in virtual time and the fair queue behind them (architecture A17)."""

import pytest

from identity_server.domain.rates import FairQueue, Rate
from spiffe_core.errors import Exhausted, TooFast


def queue(per_second=10.0, burst=20, wait=2.0, **over):
    return FairQueue(Rate(per_second, burst), longest_wait=wait, **over)


def test_a_burst_passes_at_once_and_the_next_waits_for_one_unit():
    line = queue()
    assert [line.enter("a", 1, 100.0).wait for _ in range(20)] == [0.0] * 20
    assert line.enter("a", 1, 100.0).wait == pytest.approx(0.1)


def test_callers_of_one_key_are_served_in_order_of_arrival_at_the_rate():
    line = queue()
    line.enter("a", 20, 0.0)
    waits = [line.enter("a", 5, 0.0).wait for _ in range(4)]
    assert waits == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_a_small_request_never_overtakes_a_large_one_that_came_first():
    line = queue()
    line.enter("a", 20, 0.0)
    large = line.enter("a", 10, 0.0)
    small = line.enter("a", 1, 0.0)
    assert large.wait < small.wait


def test_who_would_wait_longer_than_allowed_is_refused_and_takes_nothing():
    line = queue(wait=1.0)
    line.enter("a", 20, 0.0)
    line.enter("a", 10, 0.0)
    for _ in range(50):
        with pytest.raises(TooFast) as refused:
            line.enter("a", 5, 0.0)
        assert refused.value.retry_after == pytest.approx(1.5)
    assert line.enter("a", 5, 0.5).wait == pytest.approx(1.0)


def test_a_callers_own_deadline_is_its_patience():
    line = queue()
    line.enter("a", 20, 0.0)
    with pytest.raises(TooFast):
        line.enter("a", 5, 0.0, patience=0.4)
    assert line.enter("a", 5, 0.0, patience=0.6).wait == pytest.approx(0.5)


def test_keys_do_not_touch_each_other():
    line = queue()
    line.enter("a", 20, 0.0)
    assert line.enter("b", 20, 0.0).wait == 0.0


def test_the_bucket_fills_again_and_never_above_the_burst():
    line = queue()
    line.enter("a", 20, 0.0)
    assert line.enter("a", 10, 1.0).wait == 0.0
    assert line.enter("a", 20, 1_000.0).wait == 0.0
    assert line.enter("a", 1, 1_000.0).wait > 0.0


def test_more_than_the_burst_can_never_be_served():
    with pytest.raises(Exhausted, match=r"rate \(21\) exceeds burst size \(20\)") as refused:
        queue().enter("a", 21, 0.0)
    assert not isinstance(refused.value, TooFast)


def test_who_goes_away_while_waiting_gives_back_what_was_taken():
    line = queue()
    line.enter("a", 20, 0.0)
    ticket = line.enter("a", 10, 0.0)
    assert line.waiting == 1
    line.leave(ticket, 0.0, unused=True)
    assert line.waiting == 0
    assert line.enter("a", 10, 0.0).wait == pytest.approx(1.0)


def test_giving_back_to_a_bucket_that_is_full_by_then_forgets_it():
    line = queue()
    line.enter("a", 20, 0.0)
    ticket = line.enter("a", 10, 0.0)
    line.leave(ticket, 100.0, unused=True)
    assert line.keys == 0
    line.leave(line.enter("b", 1, 0.0), 0.0)


def test_a_charge_after_the_fact_is_paid_by_the_same_key():
    line = queue()
    line.enter("a", 1, 0.0)
    line.charge("a", 0, 0.0)
    line.charge("a", 9 * 3, 0.0)
    assert line.enter("a", 1, 0.0).wait == pytest.approx(0.9)
    assert line.enter("b", 1, 0.0).wait == 0.0


def test_a_full_queue_refuses_those_who_hold_more_than_their_share_and_no_one_else():
    line = queue(most_waiting=10)
    for key in ("greedy", "modest"):
        line.enter(key, 20, 0.0)
    tickets = [line.enter("greedy", 1, 0.0) for _ in range(10)]
    with pytest.raises(TooFast):
        line.enter("greedy", 1, 0.0)
    tickets += [line.enter("modest", 1, 0.0) for _ in range(5)]
    with pytest.raises(TooFast):
        line.enter("modest", 1, 0.0)
    for ticket in tickets:
        line.leave(ticket, 5.0)
    assert line.waiting == 0
    assert line.enter("greedy", 1, 5.0).wait == 0.0


def test_the_queue_never_holds_more_than_twice_its_size_whoever_comes():
    line = queue(most_waiting=10, burst=1)
    admitted = 0
    for number in range(100):
        line.enter(f"key {number}", 1, 0.0)
        try:
            line.enter(f"key {number}", 1, 0.0)
            admitted += 1
        except TooFast:
            continue
    assert admitted == line.waiting == 20


def test_the_memory_for_buckets_is_bounded_and_the_oldest_goes_first():
    """S52: a million addresses cost no more than the bound."""
    line = queue(most_keys=100)
    for number in range(10_000):
        line.enter(f"key {number}", 20, 0.0)
    assert line.keys == 100
    assert line.enter("key 0", 20, 0.0).wait == 0.0
    assert line.enter("key 9999", 1, 0.0).wait > 0.0
