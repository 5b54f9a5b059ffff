"""Counters, timers and gauges under SPIRE's names, and the page that Prometheus reads (spire_features section 9).

The numbers are kept here, cheaply and for any thread; `prometheus_client` is imported only when the page is asked for,
so a daemon without [telemetry.prometheus] never loads it. Counters carry SPIRE's names to the letter, which means
without Prometheus' `_total`; they are therefore typed "untyped". A timer `x` is the summary `x_elapsed_time` in
milliseconds; its quantiles are those of the latest observations, as SPIRE's are of the latest seconds.

Labels come from fixed sets only, never from what a caller sent (S65); `MOST_SERIES` is the bound behind that rule.
Every sample bears `host`, the name of the machine, as SPIRE's do.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spiffe_core.errors import IdentityError, Kind

if TYPE_CHECKING:  # loaded when the page is first asked for
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

MOST_SERIES = 5_000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WINDOW = 256
WINDOW_SECONDS = 60.0
"""Quantiles are those of so many latest observations, none older than this."""
QUANTILES = (0.5, 0.9, 0.99)
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096

_STATUS_WORDS: Final = {
    Kind.INVALID: "InvalidArgument",
    Kind.UNAUTHENTICATED: "Unauthenticated",
    Kind.FORBIDDEN: "PermissionDenied",
    Kind.NOT_FOUND: "NotFound",
    Kind.CONFLICT: "AlreadyExists",
    Kind.PRECONDITION: "FailedPrecondition",
    Kind.EXHAUSTED: "ResourceExhausted",
    Kind.UNAVAILABLE: "Unavailable",
    Kind.UNIMPLEMENTED: "Unimplemented",
    Kind.INTERNAL: "Internal",
}

Labels = tuple[tuple[str, str], ...]
Reading = float | Iterable[tuple[Labels, float]]


@dataclass(slots=True)
class _Summary:
    """What was observed: how often, how much in all, and the latest ones with their times."""

    count: float = 0.0
    total: float = 0.0
    latest: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def observe(self, value: float, now: float) -> None:
        """Add one."""
        self.count += 1.0
        self.total += value
        self.latest.append((now, value))


class Metrics:
    """All numbers of one daemon. `prefix` is SPIRE's: "spire_server" or "spire_agent"."""

    def __init__(
        self,
        prefix: str,
        *,
        most_series: int = MOST_SERIES,
        host: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix = prefix
        self._host = host or socket.gethostname()
        self._monotonic = monotonic
        self._most_series = most_series
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._summaries: dict[tuple[str, Labels], _Summary] = {}
        self._gauges: dict[str, Callable[[], Reading]] = {}
        self._registry: CollectorRegistry | None = None
        self.dropped = 0
        """Numbers that were not kept because there are too many series already."""
        self.gauge("runtime_alloc_bytes", resident_bytes)
        self.gauge("runtime_heap_objects", lambda: float(sys.getallocatedblocks()))

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            if key in self._counters or self._room():
                self._counters[key] = self._counters.get(key, 0.0) + amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Count one call and how long it took: SPIRE's call counter."""
        kept = tuple(sorted(labels.items()))
        with self._lock:
            if self._sampled((f"{name}_elapsed_time", kept), seconds * 1000.0):
                self._counters[name, kept] = self._counters.get((name, kept), 0.0) + 1.0

    def sample(self, name: str, value: float, **labels: str) -> None:
        """Observe a size: SPIRE's sample."""
        with self._lock:
            self._sampled((name, tuple(sorted(labels.items()))), value)

    def gauge(self, name: str, read: Callable[[], Reading]) -> None:
        """A number that is read when the page is made, on another thread than the loop's."""
        self._gauges[name] = read

    def page(self) -> bytes:
        """Everything in Prometheus' text format 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._collector())

    def _sampled(self, key: tuple[str, Labels], value: float) -> bool:
        """Called with the lock held; False if there is no room for the series."""
        summary = self._summaries.get(key)
        if summary is None:
            if not self._room():
                return False
            summary = self._summaries[key] = _Summary()
        summary.observe(value, self._monotonic())
        return True

    def _room(self) -> bool:
        if len(self._counters) + len(self._summaries) < self._most_series:
            return True
        self.dropped += 1
        return False

    def _collector(self) -> CollectorRegistry:
        if self._registry is None:
            from prometheus_client import CollectorRegistry, ProcessCollector

            registry = CollectorRegistry(auto_describe=False)
            ProcessCollector(registry=registry)
            registry.register(_Families(self))
            self._registry = registry
        return self._registry

    def families(self) -> Iterator[Metric]:
        """Every metric with its samples, in order of name."""
        since = self._monotonic() - WINDOW_SECONDS
        with self._lock:
            counters = sorted(self._counters.items())
            summaries = sorted(
                (key, one.count, one.total, [value for at, value in one.latest if at >= since])
                for key, one in self._summaries.items()
            )
        made: dict[str, Metric] = {}
        for (name, labels), value in counters:
            family = self._family(made, name, "Calls or events of this name.", "unknown")
            family.add_sample(family.name, self._labelled(labels), value)
        for (name, labels), count, total, latest in summaries:
            text = "What was observed under this name; times are in milliseconds."
            family, shown = self._family(made, name, text, "summary"), self._labelled(labels)
            latest.sort()
            for quantile in QUANTILES:
                family.add_sample(family.name, {**shown, "quantile": str(quantile)}, _quantile(latest, quantile))
            family.add_sample(f"{family.name}_count", shown, count)
            family.add_sample(f"{family.name}_sum", shown, total)
        for name, read in sorted(self._gauges.items()):
            family = self._family(made, name, "The value when the page was made.", "gauge")
            found = read()
            for labels, value in [((), float(found))] if isinstance(found, int | float) else found:
                family.add_sample(family.name, self._labelled(labels), value)
        yield from made.values()

    def _family(self, made: dict[str, Metric], name: str, text: str, kind: str) -> Metric:
        from prometheus_client.core import Metric

        full = f"{self._prefix}_{name}"
        if full not in made:
            made[full] = Metric(full, text, kind)
        return made[full]

    def _labelled(self, labels: Labels) -> dict[str, str]:
        return {**dict(labels), "host": self._host}


class Stopwatch:
    """Observes how long a block took and how it ended; without metrics it does nothing."""

    def __init__(self, metrics: Metrics | None, monotonic: Callable[[], float], name: str, **labels: str) -> None:
        self._metrics, self._monotonic, self._name, self._labels = metrics, monotonic, name, labels

    def __enter__(self) -> None:
        self._began = self._monotonic()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._metrics is None:
            return
        status = "OK" if error is None else "Unknown"
        if isinstance(error, IdentityError):
            status = status_word(error.kind)
        self._metrics.observe(self._name, self._monotonic() - self._began, status=status, **self._labels)


class _Families:
    """What prometheus_client collects from."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        """All families."""
        return self._metrics.families()


def status_word(kind: Kind) -> str:
    """The `status` label of a failure: gRPC-Go's name of its code, as SPIRE writes it."""
    return _STATUS_WORDS[kind]


def resident_bytes() -> float:
    """The memory this process holds (proc_pid_statm(5)); 0 where it cannot be read."""
    try:
        return float(_STATM.read_text("ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0.0


def _quantile(ordered: Sequence[float], quantile: float) -> float:
    """The smallest observation that is not exceeded by this share of all; nothing was observed: not a number."""
    return ordered[math.ceil(quantile * len(ordered)) - 1] if ordered else math.nan
