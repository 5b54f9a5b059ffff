"""`identity-server logger`: how much the running server logs."""

from __future__ import annotations

from typing import Any, Final

import click

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import output_flag, print_json
from spiffe_core.wire._gen.spire.api.server.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.types import logger_pb2 as types_pb2

SERVICE: Final = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
_LEVELS: Final = ("panic", "fatal", "error", "warn", "warning", "info", "debug", "trace")


@click.group("logger", cls=Group)
def group() -> None:
    """The level of the server's log."""


def _ask(socket_path: str | None, instance: str | None, output: str, method: str, request: Any) -> None:
    with server_channel(socket_path, instance) as channel:
        answer = Service(channel, SERVICE)(method, request)
    if output == "json":
        print_json(answer)
        return
    click.echo(f"Logger Level : {_name(answer.current_level)}\nLaunch Level : {_name(answer.launch_level)}\n")


def _name(level: types_pb2.LogLevel) -> str:
    """A level in SPIRE's words, which say "warning" here."""
    name = types_pb2.LogLevel.Name(level).lower()
    return "warning" if name == "warn" else name


@command("get", example="identity-server logger get")
@server_flags
@output_flag
def get(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Print the level of the log, and the level it was started with."""
    _ask(socket_path, instance, output, "GetLogger", logger_pb2.GetLoggerRequest())


@command("set", example="identity-server logger set -level debug")
@flag("--level", required=True, type=click.Choice(_LEVELS, case_sensitive=False), help="From panic to trace.")
@server_flags
@output_flag
def set_level(*, socket_path: str | None, instance: str | None, output: str, level: str) -> None:
    """Turn the level of the log, until it is turned again or the server is started anew."""
    name = "WARN" if level.lower() == "warning" else level.upper()
    _ask(socket_path, instance, output, "SetLogLevel", logger_pb2.SetLogLevelRequest(new_level=name))


@command("reset", example="identity-server logger reset")
@server_flags
@output_flag
def reset(*, socket_path: str | None, instance: str | None, output: str) -> None:
    """Turn the log back to the level it was started with."""
    _ask(socket_path, instance, output, "ResetLogLevel", logger_pb2.ResetLogLevelRequest())


for _command in (get, set_level, reset):
    group.add_command(_command)
