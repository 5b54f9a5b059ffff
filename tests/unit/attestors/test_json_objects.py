"""Objects of strangers: bounded, each name once (S25)."""

import pytest

from attestors.json_objects import read_object
from spiffe_core.errors import InvalidRequest


def test_an_object_is_read():
    assert read_object(b'{"a": {"b": [1, null]}}', 100, field="payload", what="a test") == {"a": {"b": [1, None]}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 2}', "not the JSON of a test"),
        (b'{"a": {"b": 1, "b": 1}}', "not the JSON of a test"),
        (b'{"a": NaN}', "not the JSON of a test"),
        (b'{"a": "\xff"}', "not the JSON of a test"),
        (b"[" * 90, "not the JSON of a test"),
        (b"", "not the JSON of a test"),
        (b"[1]", "not a JSON object"),
        (b'{"a": "' + b"x" * 100 + b'"}', "more than 100 bytes"),
    ],
    ids=["twice", "twice-inside", "nan", "not-utf8", "nested", "empty", "array", "large"],
)
def test_anything_else_is_refused_by_field_and_rule(data, message):
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_object(data, 100, field="payload", what="a test")
    assert refusal.value.field == "payload"
