"""What a daemon loads is no garbage, and everything later may be (B1)."""

import gc
import weakref

import pytest

from spiffe_core.runtime.collector import YOUNG_OBJECTS, all_of_it_stays


class _Cycle:
    """Refers to itself: only the collector takes it away."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def _thawed():
    usual = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*usual)


def test_nothing_is_collected_while_loading_and_what_was_loaded_is_never_looked_at_again():
    with all_of_it_stays():
        assert not gc.isenabled()
        loaded = [["a module"]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(one is loaded for one in gc.get_objects())


def test_a_batch_in_the_making_is_not_looked_through():
    """B9: 500 entries being made are no garbage; cycles that nothing refers to still go."""
    with all_of_it_stays():
        pass
    seen: list[str] = []

    def note(phase, _info):
        seen.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        batch = [[number] for number in range(5_000)]
        assert not seen
        lost = [weakref.ref(_Cycle()) for _ in range(2 * YOUNG_OBJECTS)]
        assert "stop" in seen
        assert len(batch) == 5_000
    finally:
        gc.callbacks.remove(note)
    assert any(one() is None for one in lost)


def test_a_load_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), all_of_it_stays():
        raise ImportError
    assert gc.isenabled()
