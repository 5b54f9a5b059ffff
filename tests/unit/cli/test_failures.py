"""How a command ends: exit code 0 or 1, what happened, what to do next (A13)."""

import json
import os
import subprocess
import sys

import click
import pytest

from spiffe_core.errors import NotFound
from spiffe_core.terminal.failures import Failure, run, wants_json
from spiffe_core.terminal.flags import command, flag
from spiffe_core.terminal.groups import Group
from spiffe_core.terminal.printing import output_flag


@click.group("prog", cls=Group)
def prog():
    """Prog."""


@command("end", example="prog end")
@flag("--how", default="well")
@output_flag
def end(*, how, output):
    """End in some way."""
    if how == "failure":
        raise Failure("it broke", "mend it")
    if how == "identity":
        raise NotFound("no such entry")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "bug":
        raise ZeroDivisionError
    return {"one": 1, "none": None, "well": 0}[how]


prog.add_command(end)


def ended(*words):
    with pytest.raises(SystemExit) as caught:
        run(prog, ["end", *words], "prog")
    return caught.value.code


@pytest.mark.parametrize(
    ("how", "code", "err"),
    [
        ("well", 0, ""),
        ("none", 0, ""),
        ("one", 1, ""),
        ("failure", 1, "Error: it broke\n       mend it\n"),
        ("identity", 1, "Error: no such entry\n"),
        ("interrupt", 1, "interrupted\n"),
    ],
)
def test_exit_codes_and_messages(how, code, err, capsys):
    assert ended("-how", how) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", err)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-how=failure", "-output", "json"], "it broke; mend it"),
        (["-how=identity", "--output=json"], "no such entry"),
        (["--output", "json", "-bad"], "unknown flag -bad; see prog end --help"),
    ],
)
def test_programs_get_the_error_as_json_on_standard_output(words, error, capsys):
    assert ended(*words) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": error}
    assert captured.err == ""


def test_a_wrong_flag_names_the_commands_own_help(capsys):
    assert ended("-bad") == 1
    assert capsys.readouterr().err == "Error: unknown flag -bad\n       see prog end --help\n"


def test_no_command_prints_the_help_and_is_a_failure(capsys):
    with pytest.raises(SystemExit) as caught:
        run(prog, [], "prog")
    assert caught.value.code == 1
    assert "Usage: prog" in capsys.readouterr().err


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(prog, ["end", "-how=bug"], "prog")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], False),
        (["-output", "json"], True),
        (["--output=json"], True),
        (["-output", "pretty"], False),
        (["output", "json"], False),
        (["-output"], False),
    ],
)
def test_json_is_noticed_before_flags_are_parsed(words, answer):
    assert wants_json(words) is answer


def test_a_reader_that_leaves_is_no_error():
    """`identity-server ... | head`."""
    code = (
        "import click\nfrom spiffe_core.terminal.failures import run\n"
        "@click.command()\ndef many():\n    for _ in range(100000): click.echo('x' * 100)\n"
        "run(many, [], 'many')\n"
    )
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, check=False, stdout=closed, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
