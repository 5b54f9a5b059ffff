"""Spans of a call, for whoever collects traces: one for the call itself, one for each step that is worth a look.

Nothing of OpenTelemetry is imported unless `[tracing]` is configured (the extra `muniment[otel]`). Without it `span`
costs one look at a context variable. Attributes are names from fixed sets, numbers and the request id: no SPIFFE IDs,
no tokens, no texts of errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, Protocol

Spans = Callable[[str], AbstractContextManager[Any]]
SPANS: ContextVar[Spans | None] = ContextVar("spans", default=None)
"""What makes spans within the present call; None when it is not traced."""
TRACEPARENT: Final = "traceparent"
"""The metadata key of W3C Trace Context (section 3.2)."""
_NOTHING: Final = nullcontext()


class Tracing(Protocol):
    """Traces calls."""

    def begin(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str
    ) -> Callable[[str, int], None]:
        """A call of `/package.Service/Method` begins; what is returned is told its status, as a word and a number."""
        ...

    def close(self) -> None:
        """Send what is left, waiting a bounded time. May be called twice."""
        ...


def span(name: str) -> AbstractContextManager[Any]:
    """A step of the present call."""
    make = SPANS.get()
    return _NOTHING if make is None else make(name)
