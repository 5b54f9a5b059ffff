"""When an SVID is replaced: half-way, or as late as the downtime to be survived allows (spire_features 16.4)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from spiffe_core.lifetime import renew_at

LEAST_AVAILABILITY: Final = timedelta(hours=24)
LEAST_ROOM: Final = timedelta(hours=12)
"""An SVID that lives no longer than the target and this is replaced half-way instead."""
SPREAD: Final = timedelta(minutes=10)


def renewal_of(issued_at: datetime, not_after: datetime, *, jitter: float, availability: timedelta | None) -> datetime:
    """When to replace an SVID so that it is good for `availability` still, should the server be away then.

    `jitter` in [-1, 1] is drawn once per SVID; it makes the replacement up to `SPREAD` earlier.
    """
    if availability is None or not_after - issued_at - availability <= LEAST_ROOM:
        return renew_at(issued_at, not_after, jitter=jitter)
    return not_after - availability - SPREAD * ((1 + jitter) / 2)
