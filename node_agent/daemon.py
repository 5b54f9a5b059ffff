"""`node-agent run`: the process around an agent — signals, loops, limits, and an ordered end (architecture A7)."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import NoReturn

from node_agent.bootstrap import VERSION, build
from node_agent.settings import AgentSettings
from spiffe_core import daemon
from spiffe_core.runtime.logs import LogOutput
from spiffe_core.runtime.process import connections_that_fit
from spiffe_core.runtime.supervise import Supervisor

log = logging.getLogger(__name__)


def run(settings: AgentSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Gives the process's exit code: 0 after an orderly end, 1 if it could not start or run.
    """
    return daemon.run(settings, lambda output: _serve(_with_room(settings), output), program="node-agent", what="agent")


def run_and_exit(settings: AgentSettings) -> NoReturn:
    """`run`, then leave without waiting for threads that hang in the kernel."""
    daemon.leave(run(settings))


def _with_room(settings: AgentSettings) -> AgentSettings:
    """The settings with as many connections as there is room for, if nobody chose their number."""
    limits = settings.limits
    room = connections_that_fit(limits.connections, chosen="connections" in limits.model_fields_set)
    return settings.model_copy(update={"limits": limits.model_copy(update={"connections": room})})


async def _serve(settings: AgentSettings, output: LogOutput) -> int:
    stop = daemon.told_to_stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, output.reopen)
    agent = build(settings)
    try:
        await agent.open()
        _announce(settings, serves=agent.serves_workloads)
        agent.monitor.systemd.ready(f"serving workloads of {settings.trust_domain}")
        async with Supervisor() as tasks:
            agent.start(tasks)
            await stop.wait()
            log.info("stopping")
            agent.monitor.systemd.stopping()
            await agent.drain()
            tasks.stop()
    finally:
        await agent.close()
    log.info("stopped")
    return 0


def _announce(settings: AgentSettings, *, serves: bool) -> None:
    log.info(
        "serving workloads of %s on %s, server %s (%s)",
        settings.trust_domain,
        f"unix://{settings.socket_path}" if serves else "no socket: the Workload API and SDS are disabled",
        ", ".join(f"{host}:{port}" for host, port in settings.servers),
        VERSION,
    )
