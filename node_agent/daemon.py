"""`node-agent run`: the process around an agent — signals, loops, limits, and an ordered end (architecture A7)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import NoReturn

import uvloop

from node_agent.bootstrap import VERSION, build
from node_agent.settings import AgentSettings
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.logs import LogOutput, setup_logging
from spiffe_core.runtime.process import connections_that_fit, refuse_dumps
from spiffe_core.runtime.refusal import complain
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.wire.wake_ups import drain_wake_ups

log = logging.getLogger(__name__)


def run(settings: AgentSettings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code: 0 after an orderly end, 1 if it could not start or run."""
    output = None
    try:
        output = setup_logging(settings.log_level, settings.log_file or None, style=settings.log_format)
        refuse_dumps()
        settings = _with_room(settings)
        drain_wake_ups()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, output))
    except IdentityError as error:
        return _complain(error.public, settings, output)
    except BaseExceptionGroup as group:
        log.critical("a loop of the agent died; stopping", exc_info=group)
        return _complain("a loop of the agent died, see the log", settings, output)
    finally:
        if output is not None:
            output.close()


def run_and_exit(settings: AgentSettings) -> NoReturn:
    """`run`, then leave without waiting for threads that hang in the kernel."""
    code = run(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _complain(text: str, settings: AgentSettings, output: LogOutput | None) -> int:
    return complain(
        text,
        output,
        program="node-agent",
        stderr=sys.stderr,
        log_file=settings.log_file,
        log_format=settings.log_format,
        format_chosen="log_format" in settings.model_fields_set,
    )


def _with_room(settings: AgentSettings) -> AgentSettings:
    """The settings with as many connections as there is room for, if nobody chose their number."""
    limits = settings.limits
    room = connections_that_fit(limits.connections, chosen="connections" in limits.model_fields_set)
    return settings.model_copy(update={"limits": limits.model_copy(update={"connections": room})})


async def _serve(settings: AgentSettings, output: LogOutput) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR2, output.reopen)
    agent = build(settings)
    try:
        await agent.open()
        _announce(settings)
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


def _announce(settings: AgentSettings) -> None:
    log.info(
        "serving the Workload API of %s on unix://%s, server %s (%s)",
        settings.trust_domain,
        settings.socket_path,
        ", ".join(f"{host}:{port}" for host, port in settings.servers),
        VERSION,
    )
