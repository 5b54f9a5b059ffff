"""Request ids: drawn here, many at once, each given once."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from spiffe_core.runtime.request_id import begin_request, current_caller_facts, current_request_id, note_caller


def ids(count):
    return [copy_context().run(begin_request) for _ in range(count)]


def test_no_id_is_given_twice_on_any_thread():
    with ThreadPoolExecutor(4) as threads:
        given = [one for some in threads.map(ids, [1_000] * 4) for one in some]
    assert len(set(given)) == len(given)
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in given)


def test_a_request_begins_without_a_caller():
    def begin_again():
        note_caller({"pid": 1})
        first = begin_request()
        return first == current_request_id(), current_caller_facts()

    assert copy_context().run(begin_again) == (True, None)
