"""Flags as Go programs read them, on top of click.

`-socketPath x`, `--socket-path x`, `-socketPath=x`, `-downstream`, `-downstream=false`: one or two dashes, our
kebab-case name or SPIRE's, the value after a space or an equals sign. As in Go a switch takes its value only after an
equals sign, and any other flag takes the next word whatever it looks like (`-hint -x`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_HELP = {"h": "--help", "help": "--help"}
EXIT_CODES = "Exit codes: 0 it worked; 1 it did not, and the reason is on standard error."


class Flag(click.Option):
    """One flag: `Flag(["--spiffe-id"], spire="spiffeID")`. A `switch` is true, false or not given."""

    def __init__(
        self, param_decls: Sequence[str] | None = None, *, spire: str = "", switch: bool = False, **attrs: Any
    ) -> None:
        if switch:
            attrs["type"] = click.BOOL
        super().__init__(param_decls, **attrs)
        self.switch = switch
        self.spire = spire

    @property
    def canonical(self) -> str:
        """The name the flag has in help texts, with its dashes."""
        return self.opts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the flag answers to, without dashes."""
        plain = tuple(option.lstrip("-") for option in self.opts)
        return (*plain, self.spire) if self.spire else plain

    def make_metavar(self, ctx: click.Context) -> str:
        """A switch shows no value."""
        return "" if self.switch else super().make_metavar(ctx)

    def get_help_spec(self, ctx: click.Context) -> str:
        """The flag's own name, then SPIRE's where it differs."""
        own = super().get_help_spec(ctx).rstrip()
        if not self.spire or self.spire in own.split()[0].lstrip("-"):
            return own
        name, _, metavar = own.partition(" ")
        return f"{name}, -{self.spire} {metavar}".rstrip()


def flag(name: str, spire: str = "", **attrs: Any) -> Callable[[F], F]:
    """Decorate a command's function with a Flag."""
    return click.option(name, cls=Flag, spire=spire, **attrs)


def normalise(arguments: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The same arguments in the one form that click parses without guessing: `--name=value`.

    Words after `--` and words that are no flags are left where they are.

    Raises:
        click.UsageError: an unknown flag, with the nearest known one, or a flag without its value.
    """
    result: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest]
        if not word.startswith("-") or word == "-":
            result.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _HELP and not equals and name not in flags:
            result.append(_HELP[name])
            continue
        known = flags.get(name)
        if known is None or word.startswith("---"):
            raise click.UsageError(f"unknown flag {word.partition('=')[0]}{_nearest(name, flags)}")
        if not equals:
            if known.switch:
                value = "true"
            elif rest:
                value = rest.pop(0)
            else:
                raise click.UsageError(f"flag {known.canonical} needs a value")
        result.append(f"{known.canonical}={value}")
    return result


def _nearest(name: str, flags: Mapping[str, Flag]) -> str:
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.6)
    return f"; did you mean {flags[near[0]].canonical}?" if near else ""


class Command(click.Command):
    """A command with Go-style flags and an example in its help."""

    def __init__(self, *args: Any, example: str = "", **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read Go's spellings, then let click do its work."""
        own = {name: option for option in self.params if isinstance(option, Flag) for name in option.names}
        try:
            return super().parse_args(ctx, normalise(args, own))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """The example and the exit codes, unwrapped."""
        if self.example:
            formatter.write_paragraph()
            formatter.write("Example:\n")
            for line in self.example.strip().splitlines():
                formatter.write(f"  {line}\n")
        formatter.write_paragraph()
        formatter.write(f"{EXIT_CODES}\n")


def command(name: str, *, example: str, short_help: str = "") -> Callable[[Callable[..., Any]], Command]:
    """Decorate the function that a command runs; its docstring is the help text."""

    def make(function: Callable[..., Any]) -> Command:
        text = (function.__doc__ or "").strip()
        brief = short_help or text.partition("\n")[0].rstrip(".")
        return click.command(name, cls=Command, example=example, short_help=brief, help=text)(function)

    return make
