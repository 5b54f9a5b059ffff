"""TOML to typed settings: every mistake names file, key, rule and the nearest valid key."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BeforeValidator, Field

from spiffe_core.errors import ConfigError
from spiffe_core.runtime.places import agent_socket, run_directory, server_socket, state_directory
from spiffe_core.runtime.settings import (
    Duration,
    FilePath,
    Lifespan,
    Section,
    Texts,
    as_tuple,
    build_settings,
    format_duration,
    load_settings,
    parse_duration,
    parsed_by,
    resolved,
)
from spiffe_core.spiffe_id import TrustDomain


class Inner(Section):
    ttl: Lifespan = timedelta(hours=24)
    names: Texts = ()


class Outer(Section):
    trust_domain: Annotated[TrustDomain, parsed_by(TrustDomain.parse)]
    port: int = Field(default=8081, ge=0, le=65535)
    pause: Duration = timedelta(seconds=5)
    place: FilePath = Path("/tmp")
    on: bool = False
    ca: Inner = Inner()


def write(tmp_path, text):
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


def refused(tmp_path, text, **overrides):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(Outer, path, overrides)
    return caught.value.public.replace(str(path), "FILE")


@pytest.mark.parametrize(
    "value", ["5", "true", "1.5", '["a"]', "{ a = 1 }"], ids=["whole", "truth", "part", "array", "table"]
)
def test_a_value_that_should_be_text_and_is_not_is_refused_in_words_of_the_file(tmp_path, value):
    assert refused(tmp_path, f"trust_domain = {value}") == "FILE: trust_domain: write it as text, in quotation marks"


def test_a_file_and_flags_become_one_frozen_tree(tmp_path):
    path = write(tmp_path, 'trust_domain = "example.org"\nport = 1\n[ca]\nttl = "1h30m"\nnames = ["a", "b"]\n')
    settings = load_settings(Outer, path, {"port": 2, "ca.ttl": "2h", "on": None})
    assert settings.trust_domain == TrustDomain("example.org")
    assert (settings.port, settings.ca.ttl, settings.ca.names) == (2, timedelta(hours=2), ("a", "b"))
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 3


def test_an_unknown_key_is_an_error_with_the_nearest_one(tmp_path):
    assert refused(tmp_path, 'trust_domain = "a"\nprot = 1') == "FILE: prot: unknown key; did you mean 'port'?"
    assert (
        refused(tmp_path, 'trust_domain = "a"\n[ca]\nttll = "1h"') == "FILE: ca.ttll: unknown key; did you mean 'ttl'?"
    )


def test_a_key_in_the_wrong_table_is_led_to_its_place(tmp_path):
    assert refused(tmp_path, 'trust_domain = "a"\nttl = "1h"') == "FILE: ttl: unknown key; did you mean 'ca.ttl'?"


def test_a_key_like_no_other_gets_the_list(tmp_path):
    assert "valid keys here are: ca, on, pause, place, port, trust_domain" in refused(
        tmp_path, 'trust_domain = "a"\nzzzzzz = 1'
    )


def test_every_mistake_is_told_at_once(tmp_path):
    text = refused(tmp_path, 'prot = 1\nport = 70000\npause = 5\non = "yes"')
    assert sorted(line.split(":")[1].strip() for line in text.splitlines()) == [
        "on",
        "pause",
        "port",
        "prot",
        "trust_domain",
    ]


class Row(Section):
    names: Texts = ()


class Rows(Section):
    rows: Annotated[tuple[Row, ...], BeforeValidator(as_tuple)] = Field(default=(), alias="row")
    names: Texts = ()
    words: dict[str, str] = Field(default_factory=dict)
    share: float = 0.5
    on: bool = False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('names = "a b"', 'names: write an array, for example ["a", "b"]'),
        ('names = ["a", 7]', "names.1: write it as text, in quotation marks"),
        ("words = 5", "words: write a table"),
        ('share = "0.5"', "share: write a number, without quotation marks"),
        ("on = []", "on: write true or false, without quotation marks"),
        ("[[row]]\nnams = []", "row.0.nams: unknown key; did you mean 'names'?"),
        ("[[rows]]", "rows: unknown key; did you mean 'row'?"),
        ("[[row]]\nwrds = []", "row.0.wrds: unknown key; did you mean 'words'?"),
    ],
)
def test_kinds_and_keys_are_called_what_the_file_calls_them(tmp_path, text, words):
    """Neither pydantic's words for types nor Python's names of fields stand in any TOML file."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(Rows, path, {})
    said = caught.value.public.replace(str(path), "FILE")
    assert said == f"FILE: {words}"


def test_a_missing_key_says_so(tmp_path):
    assert refused(tmp_path, "") == "FILE: trust_domain: is required"


def test_types_are_not_guessed(tmp_path):
    assert "FILE: port: write a whole number, without quotation marks" in refused(
        tmp_path, 'trust_domain = "a"\nport = "8081"'
    )


def test_our_own_parsers_say_the_rule(tmp_path):
    """N-ID: upper case is refused with its lower-case form (A4 D1)."""
    text = refused(tmp_path, 'trust_domain = "Example.org"')
    assert text.startswith("FILE: trust_domain: ")
    assert "example.org" in text


def test_a_flag_is_named_as_the_command_line(tmp_path):
    assert refused(tmp_path, 'trust_domain = "a"', port=-1).startswith("command line: port: ")


def test_a_table_that_is_no_table_is_an_error(tmp_path):
    assert "must be a table" in refused(tmp_path, 'trust_domain = "a"\nca = 1', **{"ca.ttl": "1h"})


@pytest.mark.parametrize(
    "text",
    [
        'server {\n  trust_domain = "example.org"\n}\n',
        'server = {\n trust_domain = "x"\n}\nplugins {\n KeyManager "disk" {}\n}',
        'plugins {\n  NodeAttestor "join_token" {\n    plugin_data {}\n  }\n}\n',
    ],
)
def test_spires_hcl_is_recognised_and_refused_with_a_pointer(tmp_path, text):
    """A13."""
    message = refused(tmp_path, text)
    assert "HCL" in message
    assert "docs/configuration.md" in message


def test_broken_toml_names_the_line(tmp_path):
    message = refused(tmp_path, "a = [1\nb")
    assert message.startswith("FILE: not valid TOML: ")
    assert "line" in message


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_settings(Outer, tmp_path / "nowhere.toml")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_settings(Outer, tmp_path / "x")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_settings(Outer, tmp_path / "big")


def test_the_resolved_tree_can_be_printed():
    settings = build_settings(Outer, {"trust_domain": "a"}, source="x")
    assert resolved(settings)["ca"] == {"ttl": "24h", "names": []}
    assert resolved(settings)["place"] == "/tmp"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("1h", 3600), ("2d", 172_800), ("1m1ms", 60.001), ("0s", 0)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["", "1", "h", "1h 30m", "-1h", "1.5h", "30m1h", "1h1h", 3600, 1.5, True, "9" * 40 + "h"]
)
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ValueError, match=r"duration|years"):
        parse_duration(value)


@pytest.mark.parametrize("text", ["1h30m", "48h", "1m5s", "250ms", "0s"])
def test_durations_are_printed_as_they_are_read(text):
    assert format_duration(parse_duration(text)) == text


def test_a_lifespan_is_whole_seconds_and_at_least_one(tmp_path):
    assert "must be whole seconds" in refused(tmp_path, 'trust_domain = "a"\n[ca]\nttl = "1s500ms"')
    assert "must be at least 1s" in refused(tmp_path, 'trust_domain = "a"\n[ca]\nttl = "0s"')


def test_places_of_root_and_of_a_user():
    """A13."""
    env = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/s", "HOME": "/home/u"}
    assert server_socket(env, 0) == Path("/run/muniment/server/admin.sock")
    assert state_directory(env, 0) == Path("/var/lib/muniment")
    assert agent_socket(env, 7) == Path("/run/user/7/muniment/agent/api.sock")
    assert state_directory(env, 7) == Path("/s/muniment")
    assert run_directory({"XDG_RUNTIME_DIR": "relative"}, 7) == Path("/tmp/muniment-7")
    assert state_directory({"HOME": "/home/u"}, 7) == Path("/home/u/.local/state/muniment")
