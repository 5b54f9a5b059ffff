"""`logger get|set|reset`: how much a running daemon logs. The same commands for the server and for the agent.

Both speak a Logger service of the same shape (spire_wire sections 5.7 and 6.5); the messages are found through its
descriptor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from spiffe_core.terminal.flags import Command, command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import output_flag, print_json

_LEVELS: Final = ("panic", "fatal", "error", "warn", "warning", "info", "debug", "trace")
Ask = Callable[[str, Any, dict[str, Any]], Any]
"""Call a method with a message; the third argument holds the values of the flags that say where the daemon is."""


def logger_group(program: str, daemon: str, service: ServiceDescriptor, where: Callable[[Any], Any], ask: Ask) -> Group:
    """The group of commands for one daemon; `where` adds the flags that say where it is."""

    def show(method: str, output: str, place: dict[str, Any], **fields: Any) -> None:
        request = GetMessageClass(service.methods_by_name[method].input_type)(**fields)
        answer = ask(method, request, place)
        if output == "json":
            print_json(answer)
            return
        names = answer.DESCRIPTOR.fields_by_name["current_level"].enum_type.values_by_number
        current, launch = (_shown(names[level].name) for level in (answer.current_level, answer.launch_level))
        click.echo(f"Logger Level : {current}\nLaunch Level : {launch}\n")

    @command("get", example=f"{program} logger get")
    @where
    @output_flag
    def get(*, output: str, **place: Any) -> None:
        """Print the level of the log, and the level it was started with."""
        show("GetLogger", output, place)

    @command("set", example=f"{program} logger set -level debug")
    @flag("--level", required=True, type=click.Choice(_LEVELS, case_sensitive=False), help="From panic to trace.")
    @where
    @output_flag
    def set_level(*, output: str, level: str, **place: Any) -> None:
        """Turn the level of the log, until it is turned again or the daemon is started anew."""
        name = "WARN" if level.lower() == "warning" else level.upper()
        field: Any = service.methods_by_name["SetLogLevel"].input_type.fields_by_name["new_level"]
        show("SetLogLevel", output, place, new_level=field.enum_type.values_by_name[name].number)

    @command("reset", example=f"{program} logger reset")
    @where
    @output_flag
    def reset(*, output: str, **place: Any) -> None:
        """Turn the log back to the level it was started with."""
        show("ResetLogLevel", output, place)

    group = Group("logger", help=f"The level of the {daemon}'s log.")
    commands: tuple[Command, ...] = (get, set_level, reset)
    for each in commands:
        group.add_command(each)
    return group


def _shown(level: str) -> str:
    """A level in SPIRE's words, which say "warning" here."""
    return "warning" if level == "WARN" else level.lower()
