"""When a certificate from an ACME authority is renewed, and how patiently that is tried again. Pure numbers."""

from __future__ import annotations

from datetime import datetime, timedelta

_RENEWED = 2 / 3
_SPREAD = 1 / 30
"""Of the certificate's life: servers that got theirs together do not all renew at once."""
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 6 * 3_600.0
_PAUSE_SPREAD = 0.25


def renewal_due(not_before: datetime, not_after: datetime, jitter: float) -> datetime:
    """At two thirds of the certificate's life, a little sooner or later by `jitter` in [-1, 1], drawn once for each."""
    life: timedelta = not_after - not_before
    return not_before + life * (_RENEWED + _SPREAD * jitter)


def pause_after(failures: int, jitter: float) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, from a minute to six hours."""
    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_SECONDS)
    return pause * (1 + _PAUSE_SPREAD * jitter)
