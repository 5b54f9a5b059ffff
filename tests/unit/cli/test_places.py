"""Which socket a command talks to, and which settings its flags become (A13)."""

from pathlib import Path

import pytest

from identity_server.cli.server import admin_socket
from node_agent.cli.endpoint import endpoint
from spiffe_core.errors import InvalidAddress
from spiffe_core.runtime.places import agent_socket, server_socket
from spiffe_core.terminal.configuration import config_file, overrides, print_settings
from spiffe_core.terminal.failures import Failure

SERVER = "SPIRE_SERVER_PRIVATE_SOCKET"
AGENT = "SPIRE_AGENT_PUBLIC_SOCKET"
STANDARD = "SPIFFE_ENDPOINT_SOCKET"


@pytest.mark.parametrize(
    ("flag", "instance", "environ", "expected"),
    [
        (None, None, {}, str(server_socket())),
        (None, None, {SERVER: "/env.sock"}, "/env.sock"),
        ("/flag.sock", None, {SERVER: "/env.sock"}, "/flag.sock"),
        ("unix:///flag.sock", None, {}, "/flag.sock"),
        (None, "b", {f"{SERVER}_TEMPLATE": "/run/%i/api.sock"}, "/run/b/api.sock"),
        ("/flag.sock", "b", {f"{SERVER}_TEMPLATE": "/run/%i/api.sock"}, "/flag.sock"),
    ],
)
def test_the_servers_socket(flag, instance, environ, expected):
    assert admin_socket(flag, instance, environ) == expected


def test_a_relative_socket_is_relative_to_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert admin_socket("a.sock", None, {}) == str(tmp_path / "a.sock")
    assert endpoint("a.sock", None, {}) == str(tmp_path / "a.sock")


@pytest.mark.parametrize("instance", ["../x", "a/b", "", "x" * 65, "a b"])
def test_an_instance_is_a_plain_name(instance):
    """S67: the name cannot lead out of the template's directory."""
    template = "/run/%i/api.sock"
    if instance:
        for resolve, name in ((admin_socket, SERVER), (endpoint, AGENT)):
            with pytest.raises(Failure, match="plain name"):
                resolve(None, instance, {f"{name}_TEMPLATE": template})


@pytest.mark.parametrize("template", [{}, {f"{SERVER}_TEMPLATE": "/run/x"}])
def test_an_instance_needs_a_template(template):
    with pytest.raises(Failure, match="TEMPLATE"):
        admin_socket(None, "a", template)


@pytest.mark.parametrize(
    ("flag", "instance", "environ", "expected"),
    [
        (None, None, {}, str(agent_socket())),
        (None, None, {STANDARD: "unix:///std.sock"}, "/std.sock"),
        (None, None, {STANDARD: "unix:///std.sock", AGENT: "/spire.sock"}, "/spire.sock"),
        (None, None, {AGENT: "unix:///spire.sock"}, "/spire.sock"),
        ("/flag.sock", None, {AGENT: "/spire.sock"}, "/flag.sock"),
        ("unix:///flag.sock", None, {}, "/flag.sock"),
        ("tcp://127.0.0.1:80", None, {}, "127.0.0.1:80"),
        (None, None, {STANDARD: "tcp://[::1]:80"}, "[::1]:80"),
        (None, "b", {f"{AGENT}_TEMPLATE": "/run/%i/api.sock"}, "/run/b/api.sock"),
    ],
)
def test_the_agents_socket(flag, instance, environ, expected):
    """WEP-10: explicit configuration, then the environment."""
    assert endpoint(flag, instance, environ) == expected


@pytest.mark.parametrize("address", ["/run/x.sock", "http://127.0.0.1", "unix:x", "tcp://localhost:80"])
def test_the_standard_variable_holds_a_standard_address(address):
    """N-E-03, N-E-04, N-E-06, N-E-10."""
    with pytest.raises(InvalidAddress):
        endpoint(None, None, {STANDARD: address})


NAMES = {"socket_path": "socket_path", "server_port": "bind_port", "log_level": "log_level", "data_dir": "data_dir"}


def test_flags_become_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {"socket_path": "unix:///a.sock", "server_port": 80, "log_level": "WARN", "data_dir": "d"}
    assert overrides(given, NAMES) == {
        "socket_path": "/a.sock",
        "bind_port": 80,
        "log_level": "warning",
        "data_dir": str(tmp_path / "d"),
    }


def test_flags_that_are_not_given_change_nothing():
    assert overrides(dict.fromkeys(NAMES), NAMES) == {}
    assert overrides({**dict.fromkeys(NAMES), "server_port": 0}, NAMES) == {"bind_port": 0}


def test_a_missing_default_configuration_says_how_to_give_one(tmp_path):
    default = str(tmp_path / "no.toml")
    with pytest.raises(Failure) as caught:
        config_file(default, default, "identity-server")
    assert "--config FILE" in caught.value.advice
    assert config_file("given.toml", default, "identity-server") == Path("given.toml")


def test_settings_are_printed_as_toml_that_reads_back(capsys):
    import tomllib

    tree = {"a": 'x"y\n\u2603', "n": 5, "none": None, "t": {"b": [1, 2], "u": {"c": True}}, "e": {}}
    print_settings(tree, Path("f.toml"), ("careful",), "pretty")
    captured = capsys.readouterr()
    assert captured.err == "warning: careful\n"
    del tree["none"]
    assert tomllib.loads(captured.out) == tree
