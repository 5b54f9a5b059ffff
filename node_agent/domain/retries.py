"""How long an agent waits before it tries again.

No wait between two attempts that may work is longer than LONGEST_RETRY, so that an agent is back within a minute of the
end of its trouble.
"""

from __future__ import annotations

FIRST_RETRY = 5.0
"""Seconds before the second attempt; each further wait is 1.5 times the one before (spire_features section 16.1)."""
LONGEST_RETRY = 25.0
"""Seconds between attempts at most, before jitter. SPIRE waits up to eight minutes."""
LONGEST_HOPELESS = 480.0
"""Seconds between attempts at most with evidence that was refused and is never judged differently."""
SHORTEST_RETRY = 1.0
"""Seconds between attempts at least, however short the SVID's remaining life is."""


def retry_delay(failures: int, jitter: float, *, longest: float = LONGEST_RETRY) -> float:
    """Seconds to wait after the n-th failure in a row, +-10 % by `jitter`."""
    grown = FIRST_RETRY * 1.5 ** min(max(failures - 1, 0), 40)
    return max(SHORTEST_RETRY, min(grown, longest)) * (1 + 0.1 * jitter)
