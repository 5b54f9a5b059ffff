"""What a daemon says about itself: health pages, metrics, and a line in the log whenever a trouble comes or goes.

One object for both daemons. `report` is made by the daemon from facts; it is called on the loop and on the threads of
the HTTP listeners, so it reads finished values only (immutable states, numbers) and waits for nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Protocol

from spiffe_core.clock import Clock
from spiffe_core.health import Report
from spiffe_core.runtime.metrics import CONTENT_TYPE, Metrics, Reading, Stopwatch
from spiffe_core.runtime.pages import Page, Pages
from spiffe_core.runtime.settings import HealthCheckSection, TelemetrySection
from spiffe_core.runtime.systemd import SystemdNotifier
from spiffe_core.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class MonitorSettings(Protocol):
    """What a configuration says of probes and scrapers."""

    @property
    def health_checks(self) -> HealthCheckSection:
        """Where probes ask."""
        ...

    @property
    def telemetry(self) -> TelemetrySection:
        """Who collects numbers."""
        ...


class Connections(Protocol):
    """The front door, as far as it is counted."""

    @property
    def open_connections(self) -> int:
        """How many are open."""
        ...

    @property
    def refused(self) -> Mapping[str, int]:
        """How many were turned away, by reason."""
        ...


def gauges(
    metrics: Metrics, trust_domain: str, door: Connections, readings: Mapping[str, Callable[[], Reading]]
) -> None:
    """Have a daemon's numbers read when the page is made: its own, and those that both daemons have."""
    started = (("trust_domain_id", trust_domain), ("version", version("muniment")))
    both: dict[str, Callable[[], Reading]] = {
        "started": lambda: [(started, 1.0)],
        "connections": lambda: door.open_connections,
        "connections_refused": lambda: [((("reason", why),), n) for why, n in dict(door.refused).items()],
    }
    for name, read in {**both, **readings}.items():
        metrics.gauge(name, read)


class Monitor:
    """Open it when the daemon lets callers in, close it last: probes shall see the end as well."""

    def __init__(
        self,
        report: Callable[[Watchdog], Report],
        clock: Clock,
        settings: MonitorSettings,
        metrics: Metrics | None,
    ) -> None:
        self._report = report
        self._clock = clock
        self._health_checks = settings.health_checks
        self._telemetry = settings.telemetry
        self._listeners: list[Pages] = []
        self._known: dict[str, str] = {}
        self.metrics = metrics
        self.systemd = SystemdNotifier(os.environ, clock.monotonic)
        self.watchdog = Watchdog(clock.monotonic, alive=self.systemd.alive)
        self.health_address: tuple[str, int] | None = None
        self.metrics_address: tuple[str, int] | None = None
        if metrics is not None:
            began = clock.monotonic()
            metrics.gauge("uptime_in_ms", lambda: (clock.monotonic() - began) * 1000.0)
            metrics.gauge("event_loop_lag_seconds", lambda: self.watchdog.lag)
            metrics.gauge("health", self._conditions)

    def report(self) -> Report:
        """How the daemon is now."""
        return self._report(self.watchdog)

    def stopwatch(self, name: str) -> Stopwatch:
        """For a block that is counted and timed under this name."""
        return Stopwatch(self.metrics, self._clock.monotonic, name)

    def open(self) -> None:
        """Watch the running loop and let probes and scrapers in.

        Raises:
            ConfigError: an address cannot be bound.
        """
        self.watchdog.start()
        checks = self._health_checks
        if checks.listener_enabled:
            pages = {checks.live_path: self._live, checks.ready_path: self._ready}
            self.health_address = self._listen(pages, checks.bind_address, checks.bind_port, "health_checks.bind_port")
        prometheus = self._telemetry.prometheus
        if prometheus is not None and self.metrics is not None:
            page = {"/metrics": self._metrics_page}
            self.metrics_address = self._listen(page, prometheus.host, prometheus.port, "telemetry.prometheus.port")

    def close(self) -> None:
        """Stop watching and listening. May be called twice."""
        self.watchdog.close()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def watch(self) -> None:
        """Log each trouble once when it comes and once when it has gone. Lives until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """One look at the report."""
        troubles = self.report().troubles
        for part, text in troubles.items():
            if part not in self._known:
                log.warning("health: %s: %s", part, text)
        for part in self._known:
            if part not in troubles:
                log.info("health: %s: is well again", part)
        self._known = troubles

    def _listen(self, pages: dict[str, Callable[[], Page]], host: str, port: int, field: str) -> tuple[str, int]:
        listener = Pages(pages)
        self._listeners.append(listener)
        address = listener.listen(host, port, field=field)
        log.info("answering %s on http://%s:%d", " and ".join(pages), *address)
        return address

    def _live(self) -> Page:
        report = self.report()
        return Page(json.dumps(report.document()).encode(), ok=report.live)

    def _ready(self) -> Page:
        report = self.report()
        return Page(json.dumps(report.document()).encode(), ok=report.ready)

    def _metrics_page(self) -> Page:
        assert self.metrics is not None
        return Page(self.metrics.page(), CONTENT_TYPE)

    def _conditions(self) -> list[tuple[tuple[tuple[str, str], ...], float]]:
        """One gauge for each part: 1 while it is well, 0.5 degraded, 0 otherwise."""
        marks = {"ok": 1.0, "degraded": 0.5}
        return [((("part", part.name),), marks.get(part.condition.value, 0.0)) for part in self.report().parts]
