"""The agent's settings: defaults, and errors that name key and rule."""

import json
from datetime import timedelta

import pytest

from node_agent.settings import AgentSettings, from_mapping, load
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.places import agent_admin_socket
from spiffe_core.runtime.settings import Section, resolved

SMALL = {"trust_domain": "example.org", "insecure_bootstrap": True}
BY_AGENT = {"insecure_bootstrap": False, "trust_bundle_spiffe_workload_api": "unix:///up/agent.sock"}
BY_URL = {"insecure_bootstrap": False, "trust_bundle_url": "https://a.test/b"}


def test_a_trust_domain_and_a_way_to_trust_are_enough():
    settings = from_mapping(SMALL)
    assert str(settings.trust_domain) == "example.org"
    assert settings.servers == [("127.0.0.1", 8081)]
    assert settings.sync_interval == timedelta(seconds=5)
    assert settings.attestors == {"unix": {}}


def test_the_example_names_every_key_and_is_valid(repository_root):
    """Configuration examples are true."""
    path = repository_root / "deploy/config/agent.toml"
    settings = load(path)
    assert settings.warnings() == ()
    text = path.read_text()
    for name, info in AgentSettings.model_fields.items():
        if name in {"join_token", "attestors", "telemetry", "tracing"}:
            continue
        if name in {"broker", "availability_target", "files_config"}:  # off without them: shown as comments
            assert f"\n# {name} =" in text or f"\n# [{name}]" in text, name
            assert getattr(settings, name) is None
            continue
        if isinstance(info.default, Section):
            assert f"\n[{name}]" in text, name
            for key in type(info.default).model_fields:
                assert f"\n{key} =" in text, f"{name}.{key}"
            assert getattr(settings, name) == info.default
            continue
        assert f"\n{name} =" in text, name
        example_only = {"trust_bundle_path", "join_token_file", "admin_socket_path"}
        if not info.is_required() and info.default_factory is None and name not in example_only:
            assert getattr(settings, name) == info.default, name


WRONG = {
    "trust domain in upper case": ({"trust_domain": "Example.org"}, "trust_domain"),
    "unknown key": ({"trust_bundle": "x"}, "did you mean 'trust_bundle_url'"),
    "two ways to trust": ({"trust_bundle_path": "/b.pem"}, "exclude each other"),
    "a URL and no proof": ({"trust_bundle_url": "https://a.test/b"}, "trust_bundle_url and insecure_bootstrap exclude"),
    "a URL without TLS": ({**BY_URL, "trust_bundle_url": "http://a.test/b"}, "must begin with https://"),
    "a URL of a file": ({**BY_URL, "trust_bundle_url": "file:///b"}, "must begin with https://"),
    "a URL with a password": ({**BY_URL, "trust_bundle_url": "https://u:p@a.test/b"}, "no user"),
    "a URL without a host": ({**BY_URL, "trust_bundle_url": "https:///b"}, "must name a host"),
    "a URL and a file": ({**BY_URL, "trust_bundle_path": "/b.pem"}, "exclude each other"),
    "a Unix socket for nothing": (
        {"insecure_bootstrap": False, "trust_bundle_unix_socket": "/s"},
        "needs trust_bundle_url",
    ),
    "a Unix socket with TLS": ({**BY_URL, "trust_bundle_unix_socket": "/s"}, "must begin with http://"),
    "another agent and no proof": ({**BY_AGENT, "insecure_bootstrap": True}, "exclude each other"),
    "another agent and a URL": ({**BY_AGENT, "trust_bundle_url": "https://a.test/b"}, "exclude each other"),
    "another agent and a file": ({**BY_AGENT, "trust_bundle_path": "/b.pem"}, "exclude each other"),
    "another agent over TCP": (
        {**BY_AGENT, "trust_bundle_spiffe_workload_api": "tcp://127.0.0.1:1"},
        "must be unix://",
    ),
    "another agent by a path": ({**BY_AGENT, "trust_bundle_spiffe_workload_api": "/a.sock"}, "endpoint_socket"),
    "itself": ({**BY_AGENT, "socket_path": "/up/agent.sock"}, "is this agent's own socket"),
    "again without proof": ({"rebootstrap_mode": "auto"}, "exclude each other"),
    "again without a bundle": (
        {"rebootstrap_mode": "auto", "insecure_bootstrap": False},
        "needs trust_bundle_path, trust_bundle_url or trust_bundle_spiffe_workload_api: the bundle to begin again with",
    ),
    "always again with a token": (
        {"rebootstrap_mode": "always", "insecure_bootstrap": False, "trust_bundle_path": "/b.pem"},
        'a join token is good for once: set rebootstrap_mode = "auto"',
    ),
    "again without a delay": ({"rebootstrap_delay": "0s"}, "rebootstrap_delay: must be longer than 0s and at most 30d"),
    "two tokens": ({"join_token_file": "/t", "join_token": "secret-token"}, "exclude each other"),
    "relative data_dir": ({"data_dir": "state"}, "data_dir: must be an absolute path"),
    "relative socket": ({"socket_path": "api.sock"}, "socket_path: must be an absolute path"),
    "socket path too long": ({"socket_path": "/" + "s" * 200}, "Unix socket paths end at 107"),
    "port 0": ({"server_port": 0}, "server_port"),
    "port as text": ({"server_port": "8081"}, "server_port"),
    "address with a path": ({"server_address": "host/path"}, "server_address"),
    "no address": ({"server_address": []}, "server_address: must name between 1 and 32 servers"),
    "an address too few": ({"server_address": "a,,b"}, "server_address: must be a host name"),
    "port of an address": ({"server_address": ["a:0"]}, "server_address: a:0: the port must lie between 1 and 65535"),
    "interval without unit": ({"sync_interval": 5}, "sync_interval"),
    "interval too short": ({"sync_interval": "1ms"}, "between 100ms and 1h"),
    "no attestors": ({"attestors": {}}, "attestors"),
    "unknown bundle format": ({"trust_bundle_format": "der"}, "trust_bundle_format"),
    "pidfd": ({"peer_pidfd": "maybe"}, "peer_pidfd"),
    "limit of zero": ({"limits": {"connections": 0}}, "limits.connections"),
    "unknown limit": ({"limits": {"conections": 5}}, "did you mean 'connections'"),
}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("id.example.org", [("id.example.org", 9)]),
        ("10.0.0.1:8082", [("10.0.0.1", 8082)]),
        ("fd00::1", [("fd00::1", 9)]),
        ("[fd00::1]:8082", [("fd00::1", 8082)]),
        ("a, b:1", [("a", 9), ("b", 1)]),
        (["a", "b:1", "c"], [("a", 9), ("b", 1), ("c", 9)]),
    ],
)
def test_servers_are_one_address_or_several_and_server_port_is_for_those_that_name_none(given, meant):
    """A9; `server_address` with `server_port` as in SPIRE. What `validate` prints can be read again."""
    settings = from_mapping(SMALL | {"server_address": given, "server_port": 9})
    assert settings.servers == meant
    again = resolved(settings)["server_address"]
    assert from_mapping(SMALL | {"server_address": again, "server_port": 9}).servers == meant


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_names_its_key_and_its_rule(name):
    change, expected = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        from_mapping(SMALL | change)
    assert expected in caught.value.public
    assert f"{expected}: {expected}: " not in caught.value.public, "each key is said once"
    assert "secret-token" not in caught.value.public


def test_a_join_token_is_in_no_print_of_the_settings():
    settings = from_mapping(SMALL | {"join_token": "secret-token"})
    assert "secret-token" not in repr(settings)
    assert "secret-token" not in json.dumps(resolved(settings))
    assert settings.join_token.get_secret_value() == "secret-token"


def test_insecure_options_are_loud():
    insecure, value = from_mapping(SMALL | {"join_token": "t"}).warnings()
    assert insecure.startswith("INSECURE")
    assert "join_token_file" in value


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('trust_domain = "example.org"\ninsecure_bootstrap = true\nserver_port = 1\n')
    assert load(path, {"server_port": 2, "server_address": None}).server_port == 2


def test_two_agents_on_one_machine_need_no_third_path_to_keep_them_apart():
    """The admin socket follows the data directory of an agent whose Workload API socket is not the usual one."""
    assert from_mapping(SMALL).admin_socket == agent_admin_socket()
    other = from_mapping({**SMALL, "socket_path": "/tmp/other/api.sock", "data_dir": "/tmp/other/data"})
    assert str(other.admin_socket) == "/tmp/other/data/admin.sock"
    with pytest.raises(ConfigError, match="workloads can see"):
        from_mapping({**SMALL, "socket_path": "/tmp/a/api.sock", "admin_socket_path": "/tmp/a/private/admin.sock"})


def test_believing_any_kubelet_is_warned_about():
    (warning,) = from_mapping(
        {
            **SMALL,
            "insecure_bootstrap": False,
            "trust_bundle_path": "/b",
            "attestors": {"k8s": {"skip_kubelet_verification": True}},
        }
    ).warnings()
    assert "skip_kubelet_verification" in warning
