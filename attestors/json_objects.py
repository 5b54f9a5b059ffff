"""JSON objects of strangers: bounded, and without a name that stands twice (S25)."""

from __future__ import annotations

import json
from typing import NoReturn

from spiffe_core.errors import InvalidRequest


def read_object(data: bytes, limit: int, *, field: str, what: str) -> dict[str, object]:
    """The object in `data`, which is called `what` in messages.

    Raises:
        InvalidRequest: it is too large, is not JSON of RFC 8259, has a name twice, or is no object.
    """
    if len(data) > limit:
        raise InvalidRequest(f"{field}: has more than {limit} bytes", field=field)
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{field}: is not the JSON of {what}", field=field) from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{field}: is not a JSON object", field=field)
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
