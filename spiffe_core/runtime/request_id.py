"""The id of the request being served, so that its log lines and its audit lines can be found together.

It is drawn here and never taken from a caller. It lives in a context variable: what a call awaits and what it hands to
an `Offload` thread see it, other calls do not.
"""

from __future__ import annotations

import secrets
from contextvars import ContextVar

_REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_BYTES = 8


def current_request_id() -> str:
    """The id of the request served by this task or thread; "" outside of requests."""
    return _REQUEST_ID.get()


def begin_request() -> str:
    """Give the present task a new id, and return it."""
    fresh = secrets.token_hex(_BYTES)
    _REQUEST_ID.set(fresh)
    return fresh
