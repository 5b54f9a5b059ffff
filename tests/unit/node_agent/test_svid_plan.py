"""Which SVID is fetched next."""

import pytest

from node_agent.domain.svid_plan import LARGEST_BATCH, BatchSize, SvidPlan


def planned(**times):
    plan = SvidPlan()
    for entry_id, at in times.items():
        plan.schedule(entry_id, at)
    return plan


def test_the_longest_due_goes_first_and_what_is_not_due_waits():
    plan = planned(c=3.0, a=1.0, b=2.0, z=99.0)
    assert plan.take(5.0, 10) == ["a", "b", "c"]
    assert plan.next_at() == 99.0


def test_who_is_waited_for_goes_before_background_work():
    plan = planned(a=1.0, b=2.0, c=3.0)
    plan.hurry("c")
    assert plan.take(5.0, 2) == ["c", "a"]


def test_the_waiting_lane_takes_nothing_else():
    plan = planned(a=1.0, b=2.0)
    plan.hurry("b")
    assert plan.take(5.0, 10, waiting_only=True) == ["b"]
    assert plan.take(5.0, 10, waiting_only=True) == []
    assert plan.next_at(waiting_only=True) is None


def test_what_was_taken_is_not_handed_out_twice():
    plan = planned(a=1.0)
    assert plan.take(5.0, 10) == ["a"]
    assert plan.take(5.0, 10) == []
    plan.schedule("a", 10.0)
    assert plan.take(10.0, 10) == ["a"]


def test_an_item_that_fails_backs_off_alone_and_doubles():
    plan = planned(a=1.0, b=1.0)
    plan.take(1.0, 10)
    assert plan.failed("a", 1.0, jitter=0.0) == 1.0
    plan.schedule("b", 2.0)
    assert plan.take(2.0, 10) == ["a", "b"]
    assert plan.failed("a", 2.0, jitter=0.0) == 2.0
    assert [plan.failed("a", 2.0, jitter=0.0) for _ in range(20)][-1] == 25.0


def test_a_backoff_ends_with_the_life_that_is_left():
    plan = planned(a=1.0)
    for _ in range(10):
        plan.take(10_000.0, 1)
        plan.failed("a", 0.0, jitter=0.0)
    assert plan.failed("a", 0.0, jitter=0.0, longest=3.0) == 3.0
    assert plan.failed("a", 0.0, jitter=0.0, longest=-5.0) == 1.0


def test_a_backoff_is_neither_hurried_nor_hastened():
    plan = planned(a=1.0)
    plan.take(1.0, 1)
    plan.failed("a", 1.0, jitter=0.0)
    plan.hurry("a")
    plan.hasten("a", 1.0)
    assert plan.take(1.5, 1) == []
    assert plan.take(2.0, 1) == ["a"]


def test_hasten_makes_something_due_earlier_never_later():
    plan = planned(a=100.0)
    plan.hasten("a", 5.0)
    plan.hasten("a", 50.0)
    plan.hasten("unknown", 1.0)
    assert plan.next_at() == 5.0
    assert "unknown" not in plan


def test_put_back_keeps_the_failures_and_can_be_urgent():
    plan = planned(a=1.0, b=0.5)
    plan.take(1.0, 10)
    plan.put_back("b", 1.0)
    plan.put_back("a", 1.0, waiting=True)
    assert plan.take(1.0, 10) == ["a", "b"]


def test_what_is_dropped_is_never_taken_even_if_it_was_waited_for():
    plan = planned(a=1.0)
    plan.hurry("a")
    plan.drop("a")
    assert (plan.take(5.0, 10), plan.next_at(), len(plan)) == ([], None, 0)
    plan.put_back("a", 1.0)
    assert plan.failed("a", 1.0, jitter=0.0) == 0.0
    assert len(plan) == 0


def test_rescheduling_for_ever_does_not_grow_the_heap():
    plan = planned(a=1.0)
    for number in range(10_000):
        plan.schedule("a", float(number))
    assert len(plan._heap) < 100
    assert plan.next_at() == 9999.0


def test_the_limit_of_a_batch_holds_for_those_who_wait_too():
    plan = planned(**{f"e{n}": 1.0 for n in range(10)})
    for number in range(10):
        plan.hurry(f"e{number}")
    assert len(plan.take(1.0, 3)) == 3
    assert len(plan.take(1.0, 100)) == 7


def test_a_batch_halves_on_failure_and_doubles_on_success():
    batch = BatchSize()
    assert batch.size == LARGEST_BATCH == 500
    for _ in range(20):
        batch.call_failed()
    assert batch.size == 1
    for _ in range(20):
        batch.call_succeeded()
    assert batch.size == 500


@pytest.mark.parametrize("jitter", [-1.0, 0.0, 1.0])
def test_jitter_moves_a_backoff_by_a_tenth(jitter):
    plan = planned(a=1.0)
    assert plan.failed("a", 0.0, jitter=jitter) == pytest.approx(1.0 + 0.1 * jitter)
