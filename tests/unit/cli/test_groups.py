"""Groups import their commands when they are called, and name the nearest when there is none."""

import sys

import click
import pytest

from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group


@click.group("top", cls=Group, lazy={"late": ("this_module_is_made_by_the_test:found", "Comes late")})
def top():
    """Top."""


@click.group("fetch", cls=Group, default="x509")
def fetch():
    """Fetch."""


@command("x509", example="fetch x509")
@flag("--write")
def x509(**given):
    """Fetch X.509."""
    return given


fetch.add_command(x509)


def run(group, *words):
    with group.make_context("top", list(words)) as context:
        return group.invoke(context)


def test_a_lazy_command_is_imported_only_when_it_is_called(tmp_path, monkeypatch, capsys):
    module = tmp_path / "this_module_is_made_by_the_test.py"
    module.write_text("import click\n@click.command()\ndef found(): return 'here'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(click.exceptions.Exit):
        run(top, "--help")
    assert "late  Comes late" in capsys.readouterr().out
    assert module.stem not in sys.modules
    assert run(top, "late") == "here"


@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help_of_a_group(word, capsys):
    with pytest.raises(click.exceptions.Exit):
        run(fetch, word)
    text = capsys.readouterr().out
    assert "x509" in text
    assert "COMMAND --help` explains one command" in text
    assert "Exit codes" in text


@pytest.mark.parametrize(("word", "hint"), [("lat", "did you mean late?"), ("zzz", "commands: late")])
def test_an_unknown_command_names_what_there_is(word, hint):
    with pytest.raises(click.UsageError, match=hint):
        run(top, word)


@pytest.mark.parametrize("words", [[], ["x509"]])
def test_a_group_with_a_default_runs_it(words):
    assert run(fetch, *words) == {"write": None}


def test_flags_go_to_the_default_command():
    assert run(fetch, "-write", "dir") == {"write": "dir"}
