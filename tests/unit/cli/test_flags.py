"""Go-style flags (architecture A13): one or two dashes, kebab or SPIRE's names, `=value` also for switches."""

import click
import pytest

from spiffe_core.terminal.flags import Flag, command, flag, normalise
from spiffe_core.terminal.values import SECONDS, WHOLE_SECONDS


@command("do", example="program do -socketPath x")
@flag("--socket-path", "socketPath")
@flag("--spiffe-id", "spiffeID", required=True)
@flag("--selector", multiple=True)
@flag("--downstream", switch=True)
@flag("--ttl", type=WHOLE_SECONDS, default=0)
@flag("--hint")
def do(**given):
    """Do it.

    At length.
    """
    return given


def run(*words):
    with do.make_context("program do", ["-spiffeID", "x", *words]) as context:
        return do.invoke(context)


@pytest.mark.parametrize(
    "words",
    [
        ["-socketPath", "p"],
        ["--socketPath", "p"],
        ["--socket-path", "p"],
        ["-socket-path", "p"],
        ["-socketPath=p"],
        ["--socket-path=p"],
    ],
)
def test_every_spelling_of_a_flag(words):
    assert run(*words)["socket_path"] == "p"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["-downstream"], True),
        (["--downstream"], True),
        (["-downstream=true"], True),
        (["--downstream=1"], True),
        (["-downstream=T"], True),
        (["-downstream=false"], False),
        (["--downstream=0"], False),
    ],
)
def test_switches_are_true_false_or_not_given(words, expected):
    assert run(*words)["downstream"] is expected


def test_a_switch_never_takes_the_next_word():
    """As in Go: `-downstream false` leaves `false` over, and leftovers are refused."""
    with pytest.raises(click.UsageError, match="false"):
        run("-downstream", "false")


def test_a_flag_takes_the_next_word_whatever_it_looks_like():
    assert run("-hint", "-downstream")["hint"] == "-downstream"
    assert run("-hint", "--")["hint"] == "--"


@pytest.mark.parametrize("value", ["", "a=b", "-x", "--", "a b", "\N{SNOWMAN}"])
def test_values_pass_unchanged(value):
    assert run(f"-hint={value}")["hint"] == value
    assert run("-hint", value)["hint"] == value


def test_repeated_flags_keep_their_order():
    given = run("-selector", "unix:uid:1", "--selector=unix:gid:2", "-selector=k8s:ns:a=b")
    assert given["selector"] == ("unix:uid:1", "unix:gid:2", "k8s:ns:a=b")


def test_the_last_of_a_single_flag_wins():
    assert run("-hint", "a", "--hint=b")["hint"] == "b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-selctor", "x"], "unknown flag -selctor; did you mean --selector?"),
        (["--socketpath", "x"], "unknown flag --socketpath; did you mean --socket-path?"),
        (["--zzz"], "unknown flag --zzz"),
        (["--zzz=secret"], "unknown flag --zzz"),
        (["---hint", "x"], "unknown flag ---hint; did you mean --hint?"),
        (["-hint"], "flag --hint needs a value"),
        (["-="], "unknown flag -"),
    ],
)
def test_wrong_flags_are_refused_with_the_nearest_name(words, message):
    with pytest.raises(click.UsageError) as caught:
        run(*words)
    assert caught.value.format_message() == message


@pytest.mark.parametrize("words", [["stray"], ["-hint=x", "stray"], ["--", "stray"], ["-"]])
def test_stray_words_are_refused(words):
    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        run(*words)


def test_a_required_flag_is_named():
    with pytest.raises(click.UsageError) as caught, do.make_context("do", []):
        pass
    assert "--spiffe-id" in caught.value.format_message()


def test_a_bad_boolean_is_refused():
    with pytest.raises(click.BadParameter, match="boolean"):
        run("-downstream=maybe")


@pytest.mark.parametrize("word", ["-h", "--help", "-help", "--h"])
def test_help_in_every_spelling(word, capsys):
    with pytest.raises(click.exceptions.Exit), do.make_context("program do", [word]):
        pass
    text = capsys.readouterr().out
    assert "--socket-path, -socketPath TEXT" in text
    assert "Example:\n  program do -socketPath x\n" in text
    assert "Exit codes: 0" in text
    assert "--downstream\n" in text.replace(" \n", "\n")


def test_a_flag_called_h_wins_over_help():
    option = Flag(["--h"])
    assert normalise(["-h", "x"], {"h": option}) == ["--h=x"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("10m", 600), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("0", 0), ("1000ms", 1)],
)
def test_durations_are_seconds_or_go_notation(text, seconds):
    assert run("-ttl", text)["ttl"] == seconds


@pytest.mark.parametrize("text", ["-1", "1.5s", "500ms", "x", "", "10 m", "2147483648", "1d", "9" * 400, "1h-3m"])
def test_durations_that_do_not_fit_the_wire_are_refused(text):
    with pytest.raises(click.BadParameter):
        run(f"-ttl={text}")


def test_fractions_are_fine_where_the_wire_is_not_concerned():
    assert SECONDS.convert("500ms", None, None) == 0.5
    assert SECONDS.convert(3, None, None) == 3.0
