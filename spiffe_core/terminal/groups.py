"""Groups of commands, imported when they are called and not before."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

from spiffe_core.terminal.flags import EXIT_CODES


class Group(click.Group):
    """Subcommands by name: `{"entry": ("identity_server.cli.entry:group", "Registration entries")}`.

    `default` is the subcommand that flags without a subcommand are meant for.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, default: str = "", **attrs: Any
    ) -> None:
        attrs.setdefault("context_settings", {"help_option_names": ["-h", "--help", "-help"]})
        super().__init__(*args, **attrs)
        self.lazy = dict(lazy or {})
        self.default = default

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """In the order they were written."""
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import the command's module now."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module, _, attribute = self.lazy[cmd_name][0].partition(":")
            self.commands[cmd_name] = getattr(importlib.import_module(module), attribute)
        return self.commands.get(cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default subcommand in front of flags that are not the group's own."""
        helps = set(self.context_settings.get("help_option_names", ()))
        if self.default and (not args or (args[0].startswith("-") and args[0] not in helps)):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"unknown command {args[0]}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing the lazy ones."""
        rows = [
            (name, self.lazy[name][1] if name in self.lazy else self.commands[name].get_short_help_str(100))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """How to go on, and the exit codes."""
        formatter.write_paragraph()
        formatter.write(f"`{ctx.command_path} COMMAND --help` explains one command and shows an example.\n")
        formatter.write(f"{EXIT_CODES}\n")
