"""The id of the request being served and who called, so that its log lines and its audit lines can be found together.

The id is drawn here and never taken from a caller: two callers cannot share one, and none can write into the log. It
travels back in the trailing metadata `muniment-request-id`. Both live in context variables: what a call awaits and what
it hands to an `Offload` thread see them, other calls do not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

TRAILER: Final = "muniment-request-id"
"""The trailing metadata in which a caller finds the id of its call."""

_REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_CALLER: ContextVar[Mapping[str, object] | None] = ContextVar("caller_facts", default=None)
_BYTES = 8
_DRAWN_AT_ONCE = 64
"""One system call draws so many ids: it is most of what an id costs."""
_DRAWN: deque[str] = deque()


def current_request_id() -> str:
    """The id of the request served by this task or thread; "" outside of requests."""
    return _REQUEST_ID.get()


def begin_request() -> str:
    """Give the present task a new id, and return it."""
    try:
        fresh = _DRAWN.pop()
    except IndexError:
        digits = os.urandom(_BYTES * _DRAWN_AT_ONCE).hex()
        fresh, *rest = (digits[start : start + 2 * _BYTES] for start in range(0, len(digits), 2 * _BYTES))
        _DRAWN.extend(rest)
    _REQUEST_ID.set(fresh)
    _CALLER.set(None)
    return fresh


def current_caller_facts() -> Mapping[str, object] | None:
    """Who makes the request served by this task or thread, in words for the audit log; None outside of requests."""
    return _CALLER.get()


def note_caller(facts: Mapping[str, object]) -> None:
    """Remember for the present request who makes it."""
    _CALLER.set(facts)
