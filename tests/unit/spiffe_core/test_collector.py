"""What a daemon loads is no garbage, and everything later may be (B1)."""

import gc

import pytest

from spiffe_core.runtime.collector import all_of_it_stays


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_while_loading_and_what_was_loaded_is_never_looked_at_again():
    with all_of_it_stays():
        assert not gc.isenabled()
        loaded = [["a module"]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(one is loaded for one in gc.get_objects())


def test_a_load_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), all_of_it_stays():
        raise ImportError
    assert gc.isenabled()
