"""Counters, timers and gauges under SPIRE's names, and the page that Prometheus reads (spire_features section 9).

The numbers are kept here, cheaply and for any thread; `prometheus_client` is imported only when the page is asked for,
so a daemon without [telemetry.prometheus] never loads it. Counters carry SPIRE's names to the letter, which means
without Prometheus' `_total`; they are therefore typed "untyped". A timer `x` is the summary `x_elapsed_time` in
milliseconds, without quantiles.

Labels come from fixed sets only, never from what a caller sent (S65); `MOST_SERIES` is the bound behind that rule.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spiffe_core.errors import Kind

if TYPE_CHECKING:  # loaded when the page is first asked for
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

MOST_SERIES = 5_000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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


class Metrics:
    """All numbers of one daemon. `prefix` is SPIRE's: "spire_server" or "spire_agent"."""

    def __init__(self, prefix: str, *, most_series: int = MOST_SERIES) -> None:
        self._prefix = prefix
        self._most_series = most_series
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._timers: dict[tuple[str, Labels], list[float]] = {}
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
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            timer = self._timers.get(key)
            if timer is None:
                if not self._room():
                    return
                timer = self._timers[key] = [0.0, 0.0]
            timer[0] += 1.0
            timer[1] += seconds * 1000.0
            self._counters[key] = self._counters.get(key, 0.0) + 1.0

    def gauge(self, name: str, read: Callable[[], Reading]) -> None:
        """A number that is read when the page is made, on another thread than the loop's."""
        self._gauges[name] = read

    def page(self) -> bytes:
        """Everything in Prometheus' text format 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._collector())

    def _room(self) -> bool:
        if len(self._counters) + len(self._timers) < self._most_series:
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
        with self._lock:
            counters = sorted(self._counters.items())
            timers = sorted((key, tuple(timer)) for key, timer in self._timers.items())
        family: Metric | None = None
        for (name, labels), value in counters:
            full = f"{self._prefix}_{name}"
            if family is None or family.name != full:
                if family is not None:
                    yield family
                family = _family(full, "Calls or events of this name.", "unknown")
            family.add_sample(full, dict(labels), value)
        if family is not None:
            yield family
        family = None
        for (name, labels), (count, total) in timers:
            full = f"{self._prefix}_{name}_elapsed_time"
            if family is None or family.name != full:
                if family is not None:
                    yield family
                family = _family(full, "How long the calls of this name took, in milliseconds.", "summary")
            family.add_sample(f"{full}_count", dict(labels), count)
            family.add_sample(f"{full}_sum", dict(labels), total)
        if family is not None:
            yield family
        for name, read in sorted(self._gauges.items()):
            yield self._gauge_family(name, read)

    def _gauge_family(self, name: str, read: Callable[[], Reading]) -> Metric:
        full = f"{self._prefix}_{name}"
        family = _family(full, "The value when the page was made.", "gauge")
        found = read()
        if isinstance(found, int | float):
            family.add_sample(full, {}, float(found))
        else:
            for labels, value in found:
                family.add_sample(full, dict(labels), value)
        return family


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


def _family(name: str, text: str, kind: str) -> Metric:
    from prometheus_client.core import Metric

    return Metric(name, text, kind)
