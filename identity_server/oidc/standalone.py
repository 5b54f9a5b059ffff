"""`identity-server oidc`: a discovery provider beside the server, which holds no key and needs no database."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import NoReturn

from identity_server.oidc.endpoints import discovery_endpoints
from identity_server.oidc.held_keys import HeldKeys
from identity_server.oidc.sources import follow_for_good, keep_asking, source_of
from identity_server.settings_oidc import NO_LISTENER, OidcSettings
from identity_server.web.endpoints import WebEndpoints
from identity_server.web.listener import CONNECTIONS, WebLimits
from spiffe_core import daemon
from spiffe_core.clock import Clock, SystemClock
from spiffe_core.errors import ConfigError
from spiffe_core.health import Report, loop_part
from spiffe_core.runtime.logs import LogOutput
from spiffe_core.runtime.metrics import Metrics
from spiffe_core.runtime.monitor import Monitor
from spiffe_core.runtime.places import state_directory
from spiffe_core.runtime.process import connections_that_fit
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

METRICS = "muniment_oidc"
"""What its numbers begin with; SPIRE's provider has none."""
ACME_FOLDER = "oidc-acme"
"""Below the directory for state, if `acme.cache_dir` is not set."""


class Standalone:
    """Source, listeners and health of one provider. `open`, then `start` its loops, then `close`."""

    def __init__(self, settings: OidcSettings, clock: Clock, limits: WebLimits) -> None:
        """Put it together.

        Raises:
            ConfigError: no listener is named, or a certificate cannot be read.
        """
        if not settings.listens:
            raise ConfigError(NO_LISTENER, field="listen_socket_path")
        self._settings, self._clock = settings, clock
        provider = settings.names()
        self.held = HeldKeys(provider, clock, keep=settings.keep_keys.total_seconds())
        acme_folder = state_directory() / ACME_FOLDER
        self.metrics = Metrics(METRICS) if settings.telemetry.prometheus is not None else None
        made = discovery_endpoints(
            settings, provider, self.held.current, clock, limits, acme_folder, answered=self._counter()
        )
        self.web = WebEndpoints(made)
        self.source = source_of(settings)
        self.monitor = Monitor(self._report, clock, settings, self.metrics)

    def _counter(self) -> Callable[[str, int], None] | None:
        """Who counts answers, and what is read of the keys; None where nobody collects numbers."""
        metrics = self.metrics
        if metrics is None:
            return None
        metrics.gauge("keys", lambda: float(self.held.count))
        metrics.gauge("keys_confirmed_seconds", lambda: self.held.age)
        return lambda document, status: metrics.add("requests", document=document, status=str(status))

    def _report(self, watchdog: Watchdog) -> Report:
        return Report((self.held.part(), loop_part(watchdog.lag, blocked=watchdog.blocked)))

    def open(self) -> None:
        """Let verifiers and probes in.

        Raises:
            ConfigError: an address cannot be bound.
        """
        self.monitor.open()
        self.web.open()

    def start(self, tasks: Supervisor) -> None:
        """The loops: ask, follow, keep certificates current, look after health."""
        pause = self._settings.poll_interval.total_seconds()
        tasks.start(keep_asking(self.source, self.held, self._clock, pause), "ask")
        tasks.start(follow_for_good(self.source, self.held), "follow")
        tasks.start(self.web.keep(), "endpoints")
        tasks.start(self.monitor.watch(), "health")

    async def close(self) -> None:
        """Nobody new, what is under way is answered, then the source."""
        self.web.stop()
        await self.web.close()
        await self.source.close()
        self.monitor.close()


def run(settings: OidcSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Gives the process's exit code: 0 after an orderly end, 1 if it could not start or run.
    """
    return daemon.run(
        settings, lambda output: _serve(settings, output), program="identity-server", what="discovery provider"
    )


def run_and_exit(settings: OidcSettings) -> NoReturn:
    """`run`, then leave without waiting for threads that hang in the kernel."""
    daemon.leave(run(settings))


async def _serve(settings: OidcSettings, output: LogOutput) -> int:
    limits = WebLimits(connections=connections_that_fit(CONNECTIONS, chosen=False))
    stop = daemon.told_to_stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, output.reopen)
    provider = Standalone(settings, SystemClock(), limits)
    try:
        provider.open()
        issuers = sorted({one.text for one in settings.names().issuers().values()})
        log.info("OIDC discovery for %s", ", ".join(issuers))
        for warning in settings.warnings():
            log.warning("%s", warning)
        provider.monitor.systemd.ready(f"OIDC discovery for {issuers[0]}")
        async with Supervisor() as tasks:
            provider.start(tasks)
            await stop.wait()
            log.info("stopping")
            provider.monitor.systemd.stopping()
            tasks.stop()
    finally:
        await provider.close()
    log.info("stopped")
    return 0
