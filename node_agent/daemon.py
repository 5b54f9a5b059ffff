"""Runs the agent: hardening, signals, loops, an ordered end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import signal
import sys

import uvloop

from node_agent.bootstrap import VERSION, Agent, build
from node_agent.settings import AgentSettings
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.logs import LogOutput, setup_logging
from spiffe_core.runtime.supervise import Supervisor

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4


def run(settings: AgentSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after an ordered end, 1 if the agent could not run."""
    try:
        output = setup_logging(settings.log_level, settings.log_file or None, style=settings.log_format)
    except IdentityError as error:
        print(f"node-agent: {error.public}", file=sys.stderr)  # noqa: T201  # there is no log to say it in
        return 1
    try:
        harden()
        return uvloop.run(_serve(settings, output))
    except IdentityError as error:
        log.error("the agent cannot start: %s", error.public, extra={"facts": error.facts})  # noqa: TRY400  # public text
        return 1
    except BaseExceptionGroup as group:
        log.critical("the agent stops: one of its loops failed", exc_info=group)
        return 1
    finally:
        output.close()


def harden() -> None:
    """No core dumps, no memory for other processes of this user, as many descriptors as allowed (S72)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("this process stays readable for debuggers of the same user: prctl failed (%d)", ctypes.get_errno())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: AgentSettings, output: LogOutput) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR2, output.reopen)
    agent = build(settings)
    try:
        await agent.open()
        await _live(agent, stop)
    finally:
        await agent.close()
    log.info("stopped")
    return 0


async def _live(agent: Agent, stop: asyncio.Event) -> None:
    settings = agent.settings
    facts = {
        "version": VERSION,
        "trust_domain": str(settings.trust_domain),
        "socket": f"unix://{settings.socket_path}",
        "server": f"{settings.server_address}:{settings.server_port}",
    }
    log.info("serving the Workload API", extra={"facts": facts})
    async with Supervisor() as tasks:
        agent.start(tasks)
        await stop.wait()
        log.info("stopping")
        await agent.drain()
        tasks.stop()
