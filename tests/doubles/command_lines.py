"""Command lines that stand in pages, units, Containerfiles and manifests, held against the real click commands."""

from pathlib import Path

import click

from spiffe_core.terminal.flags import Flag, normalise
from tests.doubles.pages import COMMANDS


def parsed(words, where=""):
    """(command, its flags with values) of a line that the program would take.

    The first word is the program, by any path. Raises AssertionError or click's UsageError for one it would not take.
    """
    command, rest = COMMANDS[Path(words[0]).name], list(words[1:])
    while isinstance(command, click.Group) and rest:
        default = getattr(command, "default", "")
        rest = [default, *rest] if default and rest[0].startswith("-") else rest
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"{where}: no command {rest[0]}"
        command, rest = found, rest[1:]
    flags = {name: flag for flag in command.params if isinstance(flag, Flag) for name in flag.names}
    given = normalise(rest, flags)
    plain = [word for word in given if not word.startswith("--") and word != "-"]
    room = len([one for one in command.params if isinstance(one, click.Argument)])
    assert len(plain) <= room, f"{where}: {plain[room]} is no flag"
    return command.name, dict(word.removeprefix("--").partition("=")[::2] for word in given if word not in plain)
