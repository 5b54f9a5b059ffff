"""When the bundle of another trust domain is fetched again, how that went, and where a redirect may lead.

The pace is the bundle's refresh hint (SPIFFE Federation sections 4.1 and 6.2). A fetch that fails is not repeated
before the next one is due, and while it goes on failing the pauses grow, so that a peer that is down is not overrun
when it comes back and costs little until then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import urljoin

from identity_server.domain.federation import check_endpoint_url
from spiffe_core.bundle import MIN_POLL, TrustBundle, poll_interval
from spiffe_core.errors import InvalidRequest, Unavailable

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
JITTER = 0.1
"""A pause is up to this part shorter or longer than its interval."""
MAX_BACK_OFF = 8
"""A pause is at most this many intervals long, however often the fetch failed,"""
LONGEST_BACK_OFF = timedelta(hours=1)
"""nor longer than this, unless the interval is."""
MAX_ERROR = 400


@dataclass(frozen=True, slots=True)
class RefreshState:
    """How the fetches of one bundle went.

    Times are the wall clock's; `error` is the last attempt's, "" if it worked.
    """

    attempted_at: datetime | None = None
    fetched_at: datetime | None = None
    next_at: datetime | None = None
    failures: int = 0
    """Attempts that failed since the last one that worked."""
    error: str = ""
    warnings: tuple[str, ...] = ()

    def worked(self, now: datetime, warnings: tuple[str, ...]) -> RefreshState:
        """After a fetch whose bundle is in force."""
        return RefreshState(attempted_at=now, fetched_at=now, warnings=warnings)

    def failed(self, now: datetime, error: str) -> RefreshState:
        """After a fetch that came to nothing."""
        return replace(self, attempted_at=now, next_at=None, failures=self.failures + 1, error=error[:MAX_ERROR])


def pause_after(bundle: TrustBundle | None, failures: int, jitter: float, floor: timedelta = MIN_POLL) -> timedelta:
    """How long to wait for the next fetch; `jitter` from -1 to 1.

    As long as there is no bundle at all the shortest interval counts, since nobody of that trust domain can be
    verified.
    """
    interval = poll_interval(bundle.refresh_hint, floor) if bundle is not None else floor
    if failures > 1:
        grown = interval * min(2 ** min(failures - 1, MAX_BACK_OFF), MAX_BACK_OFF)
        interval = max(interval, min(grown, LONGEST_BACK_OFF))
    return interval * (1 + JITTER * jitter)


def redirect_target(url: str, location: str) -> str:
    """Where a redirect leads, if a bundle can be fetched there: the rules are those of the URL itself (FED-33).

    Raises:
        Unavailable: it leads nowhere, or to what is no endpoint. What it says is not quoted.
    """
    if not location:
        raise Unavailable("the endpoint redirects without saying where")
    try:
        return check_endpoint_url(urljoin(url, location).partition("#")[0])
    except InvalidRequest as refusal:
        raise Unavailable(f"the endpoint redirects to what is no bundle endpoint: {refusal.public}") from None
    except ValueError:
        raise Unavailable("the endpoint redirects to what is no URL") from None
