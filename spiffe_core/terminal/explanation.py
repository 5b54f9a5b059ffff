"""How an explanation is shown to people."""

from __future__ import annotations

from typing import Any, Final

import click

from spiffe_core.terminal.printing import clean

_MARKS: Final = {1: "ok", 2: "NO", 3: "--"}
"""By the number of muniment.agent.explain.v1.Step.Outcome."""


_UNKNOWN: Final = (
    "`entry update` resets what it is not given, and this node does not know the entry's TTLs, DNS names and expiry:\n"
    "`identity-server entry show -entryID ID` has them."
)


def print_explanation(answer: Any, *, by_agent: bool = False) -> None:
    """The root cause, the chain, and what would mend it; an agent does not know all that an entry has."""
    click.echo(f"{clean(answer.code)}: {clean(answer.cause)}\n")
    _print_steps(answer)
    for one in answer.containers:
        kind = "init container" if one.init else "container"
        process = f", process {one.process}" if one.process else ""
        click.echo(f"\n{kind} {clean(one.name)}{process}: {clean(one.explanation.code)}")
        click.echo(f"   {clean(one.explanation.cause)}")
        _print_steps(one.explanation)
        click.echo(f"   To mend it: {clean(one.explanation.fix)}")
    fixes = [answer.fix, *(one.explanation.fix for one in answer.containers)]
    if by_agent and any(" entry update " in one for one in fixes):
        click.echo(f"\n{_UNKNOWN}")
    click.echo(f"\nTo mend it: {clean(answer.fix)}")


def _print_steps(answer: Any) -> None:
    for number, step in enumerate(answer.steps, 1):
        click.echo(f"{number}. [{_MARKS.get(step.outcome, '??')}] {clean(step.name)}: {clean(step.text)}")
        for line in step.details:
            indent = len(line) - len(line.lstrip())
            click.echo(f"        {' ' * indent}{clean(line.lstrip())}")
