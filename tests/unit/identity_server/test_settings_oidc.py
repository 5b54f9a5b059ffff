"""The discovery provider's settings: SPIRE's keys, exactly one source, and names that go together (spire_features 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from identity_server.settings_oidc import from_mapping, host_and_port, load
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.settings_kinds import KINDS, OIDC

SOURCE: dict[str, Any] = {"server_api": {"address": "/run/spire/api.sock"}}
FILES = {"cert_file_path": "/a.pem", "key_file_path": "/a.key"}
LISTENER = {"listen_socket_path": "/run/oidc.sock"}


def test_the_defaults_are_safe_and_fit_clouds() -> None:
    found = from_mapping({"domains": ["oidc.example.org"], **LISTENER, **SOURCE})
    assert (found.set_key_use, found.allow_insecure_scheme, found.trust_forwarded_host) == (True, False, False)
    assert found.keep_keys.total_seconds() == 86_400
    assert found.poll_interval.total_seconds() == 5
    assert found.names().issuers()["oidc.example.org"].text == "https://oidc.example.org"
    assert found.warnings() == ()


def test_an_issuer_names_its_own_domain() -> None:
    found = from_mapping({"jwt_issuer": "https://oidc.example.org/td", **SOURCE})
    assert [str(domain) for domain in found.names().domains] == ["oidc.example.org"]
    assert found.names().prefix == "/td"


@pytest.mark.parametrize("address", ["/run/spire/api.sock", "unix:///run/spire/api.sock", "unix:/run/spire/api.sock"])
def test_the_admin_socket_is_written_as_spire_writes_it(address: str) -> None:
    found = from_mapping({"domains": ["a.test"], "server_api": {"address": address}})
    assert found.server_api is not None
    assert str(found.server_api.address) == "/run/spire/api.sock"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({**SOURCE}, "domains: name the hosts"),
        ({"domains": ["a.test"]}, "exactly one of"),
        ({"domains": ["a.test"], **SOURCE, "file": {"path": "/b.json"}}, "exactly one of"),
        ({"domains": ["a.test", "A.test"], **SOURCE}, "each domain once"),
        ({"domains": ["https://a.test"], **SOURCE}, "domains: "),
        ({"domains": ["a.test"] * 65, **SOURCE}, "64"),
        ({"jwt_issuer": "http://a.test", **SOURCE}, 'must begin with "https://"'),
        ({"domains": ["a.test"], "jwks_uri": "ftp://a.test", **SOURCE}, "jwks_uri"),
        ({"domains": ["a.test"], "server_path_prefix": "x", **SOURCE}, "server_path_prefix"),
        ({"domains": ["a.test"], "insecure_addr": "8080", **SOURCE}, "host:port"),
        ({"domains": ["a.test"], "insecure_addr": "::1:8080", **SOURCE}, "brackets"),
        ({"domains": ["a.test"], "insecure_addr": "127.0.0.1:70000", **SOURCE}, "host:port"),
        ({"domains": ["a.test"], "listen_socket_path": "oidc.sock", **SOURCE}, "absolute"),
        ({"domains": ["a.test"], "server_api": {"address": "10.0.0.1:8081"}}, "absolute"),
        ({"domains": ["a.test"], "workload_api": {"socket_path": "/a.sock"}}, "trust_domain: is required"),
        ({"domains": ["a.test"], "workload_api": {"trust_domain": "A B"}}, "trust_domain"),
        ({"domains": ["a.test"], "file": {"path": "/b", "poll_interval": "1h"}}, '"1s" to "10m"'),
        ({"domains": ["a.test"], "keep_keys": "8d", **SOURCE}, "keep_keys"),
        ({"domain": ["a.test"], **SOURCE}, "did you mean 'domains'"),
        ({"domains": ["a.test"], "acme": {"addr": ""}, **SOURCE}, "host:port"),
        ({"domains": ["a.test"], "acme": {"domain_name": "*.a.test"}, **SOURCE}, "wildcard"),
        ({"domains": ["127.0.0.1"], "acme": {}, **SOURCE}, "acme.domain_name"),
        ({"domains": ["a.test"], "acme": {}, "serving_cert_file": FILES, **SOURCE}, "give one table"),
        ({"trust_domain": "a.test", "data_dir": "/x", "ca": {}}, "identity-server file"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key_and_the_rule(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_mapping(document)
    assert said in refused.value.public


def test_every_key_of_the_file_is_known_as_one_of_this_kind() -> None:
    assert set(type(from_mapping({"domains": ["a.test"], **SOURCE})).model_fields) == KINDS[OIDC]


def test_plain_http_where_others_can_reach_it_is_warned_of() -> None:
    open_to_all = from_mapping({"domains": ["a.test"], "insecure_addr": ":8080", **SOURCE})
    assert ["insecure_addr" in one for one in open_to_all.warnings()] == [True]
    local = from_mapping({"domains": ["a.test"], "insecure_addr": "127.0.0.1:8080", **SOURCE})
    assert local.warnings() == ()
    told = from_mapping({"domains": ["a.test"], "allow_insecure_scheme": True, **SOURCE})
    assert "http" in told.warnings()[0]
    assert told.names().issuers()["a.test"].text == "http://a.test"


def test_an_address_has_a_host_and_a_port() -> None:
    assert host_and_port(":8080") == ("0.0.0.0", 8080)
    assert host_and_port("127.0.0.1:0") == ("127.0.0.1", 0)
    assert host_and_port("[::1]:443") == ("::1", 443)


def test_the_example_file_loads_and_holds_the_defaults() -> None:
    shown = load(Path(__file__).parents[3] / "deploy/config/oidc.toml")
    assert shown.server_api is not None
    wanted = {
        "jwt_issuer": "https://oidc.example.org",
        "listen_socket_path": "/run/muniment-oidc/oidc.sock",
        "server_api": {"address": str(shown.server_api.address)},
    }
    assert shown == from_mapping(wanted)
