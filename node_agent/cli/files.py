"""`node-agent files`: identities as files that are always current."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from dataclasses import replace
from typing import Any

import click

from spiffe_core.clock import SystemClock
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.logs import setup_logging
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.values import SECONDS


@command(
    "files",
    example="node-agent files --config /etc/muniment/files.toml\n"
    "node-agent files --config /etc/muniment/files.toml --once && exec nginx",
)
@flag("--config", required=True, metavar="FILE", help="What to write where; deploy/config/files.toml is an example.")
@flag("--once", switch=True, help="Write everything one time and leave: for an init container.")
@flag("--timeout", type=SECONDS, default="30s", show_default=True, help="With --once: how long to wait for the agent.")
@flag("--log-format", "logFormat", type=click.Choice(["json", "text"]), default="text", show_default=True)
def files_command(*, config: str, once: bool | None, timeout: float, log_format: str) -> None:
    """Write certificates, keys, bundles and tokens of this process into files, and keep them current.

    Runs until SIGTERM or Ctrl-C. Each set of files is replaced in one step; afterwards a command is run or a signal
    sent.
    """
    from node_agent.file_sets.settings import load

    settings = load(config)
    output = setup_logging("info", None, style=log_format)
    try:
        asyncio.run(_once(settings, timeout) if once else _run(settings))
    finally:
        output.close()


async def _once(settings: Any, seconds: float) -> None:
    from node_agent.cli.endpoint import AGENT
    from node_agent.file_sets.service import FileSets
    from spiffe_core.terminal.connection import check_socket
    from workload_api.address import UnixAddress
    from workload_api.client import WorkloadApiClient

    async with WorkloadApiClient(settings.socket or None) as client:
        try:
            await FileSets(settings, client, SystemClock()).once(seconds)
        except Unavailable:
            if isinstance(client.address, UnixAddress):  # say what is the matter with it, if something is
                check_socket(client.address.path, replace(AGENT, flag="`socket` in the file"))
            raise


async def _run(settings: Any) -> None:
    from node_agent.file_sets.service import FileSets
    from workload_api.client import WorkloadApiClient

    async with WorkloadApiClient(settings.socket or None) as client:
        running = asyncio.ensure_future(FileSets(settings, client, SystemClock()).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        with suppress(asyncio.CancelledError):
            await running
