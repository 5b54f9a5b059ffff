"""The command `node-agent`.

    daemon_commands.py   run, validate, healthcheck
    api.py               api fetch x509, api watch: the Workload API as a workload sees it
    api_tokens.py        the same for JWT- and WIT-SVIDs
    files.py             files: identities as files
    admin.py             debug, logger: the running agent, over its admin socket

Modules are imported when their command is called. Flags and output follow SPIRE's `spire-agent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from spiffe_core.terminal.failures import run
from spiffe_core.terminal.groups import Group

_HERE = "node_agent.cli"


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # with the parser of e-mail that it brings, a quarter of `--help`

        click.echo(version("muniment"))
        ctx.exit()


@click.group(
    "node-agent",
    cls=Group,
    lazy={
        "run": (f"{_HERE}.daemon_commands:run_command", "Run the agent until it is told to stop"),
        "validate": (f"{_HERE}.daemon_commands:validate_command", "Check a configuration and print what it means"),
        "healthcheck": (f"{_HERE}.daemon_commands:healthcheck_command", "Ask the running agent whether it is well"),
        "api": (f"{_HERE}.api:group", "Ask the Workload API, as a workload would"),
        "explain": (f"{_HERE}.explain:explain", "Tell why a workload gets its identities, or none"),
        "files": (f"{_HERE}.files:files_command", "Write identities into files and keep them current"),
        "debug": (f"{_HERE}.admin:debug", "What the agent is and what it holds"),
        "logger": (f"{_HERE}.admin:logger", "The level of the agent's log"),
    },
)
@click.option(
    "--version",
    "-version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def root() -> None:
    """The node agent: it serves SPIFFE identities to the workloads of one machine."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with exit code 0 or 1."""
    run(root, arguments, "node-agent")
