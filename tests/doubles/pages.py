"""The pages of the documentation, read as the tests need them."""

import re
from pathlib import Path

import click

from identity_server.cli import root as identity_server_command
from node_agent.cli import root as node_agent_command

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMMANDS = {"identity-server": identity_server_command, "node-agent": node_agent_command}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def section(text, heading):
    """What stands below a heading, down to the next one of its level or above."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text):
    """The cells of each table row whose first cell holds code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def leaves(command, words):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), [*words, name])
    else:
        yield " ".join(words), command


LEAVES = dict(leaf for name, root in COMMANDS.items() for leaf in leaves(root, [name]))
