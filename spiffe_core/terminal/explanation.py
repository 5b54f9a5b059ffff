"""How an explanation is shown to people."""

from __future__ import annotations

from typing import Any, Final

import click

from spiffe_core.terminal.printing import clean

_MARKS: Final = {1: "ok", 2: "NO", 3: "--"}
"""By the number of muniment.agent.explain.v1.Step.Outcome."""


def print_explanation(answer: Any) -> None:
    """The root cause, the chain, and what would mend it."""
    click.echo(f"{clean(answer.code)}: {clean(answer.cause)}\n")
    for number, step in enumerate(answer.steps, 1):
        click.echo(f"{number}. [{_MARKS.get(step.outcome, '??')}] {clean(step.name)}: {clean(step.text)}")
        for line in step.details:
            indent = len(line) - len(line.lstrip())
            click.echo(f"        {' ' * indent}{clean(line.lstrip())}")
    click.echo(f"\nTo mend it: {clean(answer.fix)}")
