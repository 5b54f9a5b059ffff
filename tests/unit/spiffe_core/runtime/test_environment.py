"""Environment variables in a settings file: `--expand-env`, SPIRE's -expandEnv (spire_features section 7.1)."""

import tomllib

import pytest

from spiffe_core.errors import ConfigError
from spiffe_core.runtime.environment import MAX_VALUE_CHARS, expanded
from spiffe_core.runtime.settings import read_toml

VALUES = {"DOMAIN": "example.org", "PORT": "8081", "_x1": "y", "EMPTY": "", "DOLLAR": "$PORT"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ('trust_domain = "$DOMAIN"', 'trust_domain = "example.org"'),
        ('x = "a.${DOMAIN}:${PORT}b"', 'x = "a.example.org:8081b"'),
        ("bind_port = $PORT", "bind_port = 8081"),
        ('x = "${_x1}$EMPTY"', 'x = "y"'),
        ('x = "$DOLLAR"', 'x = "$PORT"'),
        ('x = "$ $5 ${} ${5} $-"', 'x = "$ $5 ${} ${5} $-"'),
        ("  # $NOT_SET\na = 1", "  # $NOT_SET\na = 1"),
    ],
)
def test_variables_are_filled_in_once_and_nothing_else(text, made):
    assert expanded(text, VALUES, "c.toml") == made


@pytest.mark.parametrize("value", ['a"b', "a'b", "a\\b", "a\nb = 1", "\x1b", "a" * (MAX_VALUE_CHARS + 1)])
def test_a_value_that_could_become_another_setting_is_refused_and_not_shown(value):
    with pytest.raises(ConfigError, match="line 2: the environment variable SECRET cannot stand") as refused:
        expanded('a = 1\nb = "${SECRET}"', {"SECRET": value}, "c.toml")
    assert value not in str(refused.value)


def test_a_variable_that_is_not_set_is_named_with_its_line(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('a = 1\n\nb = "$MISSING"\n')
    with pytest.raises(ConfigError, match=r"c\.toml: line 3: the environment variable MISSING is not set"):
        read_toml(file, {})


def test_without_the_flag_dollars_are_text(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('b = "$DOMAIN"\n')
    assert read_toml(file) == {"b": "$DOMAIN"}
    assert read_toml(file, VALUES) == tomllib.loads('b = "example.org"')
