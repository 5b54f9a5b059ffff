"""How a command ends: what happened in one line, what to do next in another, exit code 0 or 1."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from spiffe_core.errors import IdentityError


class Failure(Exception):  # the sentence "a command raises Failure" is what callers read
    """A command could not do what it was asked. `advice` is what the person at the keyboard can do next.

    `final` is False when the same command may succeed a moment later without anybody doing anything.
    """

    def __init__(self, what: str, advice: str = "", *, final: bool = True) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.final = final


def run(command: click.Command, arguments: Sequence[str] | None, program: str) -> NoReturn:
    """Run a command line and leave the process: the only caller of `sys.exit`."""
    code = 1
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _invoke(command, words, program)
        sys.stdout.flush()
    except BrokenPipeError:  # `identity-server entry show | head`: nobody reads on, and that is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _invoke(command: click.Command, words: list[str], program: str) -> int:
    try:
        with command.make_context(program, words) as context:
            outcome = command.invoke(context)
            return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 1
    except (click.ClickException, Failure, IdentityError) as error:
        what, advice = _said(error, program)
        return _report(what, advice, words)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 1


def _said(error: click.ClickException | Failure | IdentityError, program: str) -> tuple[str, str]:
    if isinstance(error, Failure):
        return error.what, error.advice
    if isinstance(error, IdentityError):
        return error.public, ""
    if isinstance(error, click.UsageError):
        return error.format_message(), f"see {error.ctx.command_path if error.ctx else program} --help"
    return error.format_message(), ""


def wants_json(words: Sequence[str]) -> bool:
    """Whether the arguments ask for JSON, seen without parsing them: a command may fail before it has."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    return any(
        word.lstrip("-") == "output=json" or (word.lstrip("-") == "output" and after == "json")
        for word, after in pairs
        if word.startswith("-")
    )


def _report(what: str, advice: str, words: Sequence[str]) -> int:
    if wants_json(words):
        text = f"{what}; {advice}" if advice else what
        click.echo(json.dumps({"error": text}, separators=(",", ":"), ensure_ascii=False))
        return 1
    click.echo(f"Error: {what}", err=True)
    if advice:
        click.echo(f"       {advice}", err=True)
    return 1
