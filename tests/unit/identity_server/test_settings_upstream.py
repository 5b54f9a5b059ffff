"""[upstream.spire] and [upstream.vault]: what is accepted, and what each mistake is told."""

import pytest

from identity_server.settings import from_mapping
from spiffe_core.errors import ConfigError

SPIRE = {"server_address": "identity.example.org", "workload_api_socket": "/run/upstream/api.sock"}
VAULT = {"address": "https://vault.example.org", "token_auth": {"token_file": "/etc/token"}}


def make(kind, table):
    return from_mapping({"trust_domain": "example.org", "upstream": {"kind": kind, kind: table}}, source="server.toml")


def test_a_nested_server_needs_an_address_and_a_socket():
    section = make("spire", SPIRE).upstream.spire
    assert (section.server_port, str(section.workload_api_socket)) == (8081, "/run/upstream/api.sock")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://vault.example.org", ("vault.example.org", 8200)),
        ("https://vault.example.org:443/", ("vault.example.org", 443)),
        ("https://[2001:db8::1]:8200", ("2001:db8::1", 8200)),
    ],
)
def test_the_place_of_vault(address, place):
    assert make("vault", {**VAULT, "address": address}).upstream.vault.place == place


@pytest.mark.parametrize(
    ("kind", "over", "words"),
    [
        ("spire", {"server_address": "a b"}, "server_address: must be a host name"),
        ("spire", {"server_address": "https://x"}, "server_address: must be a host name"),
        ("spire", {"server_port": 0}, "server_port: "),
        ("spire", {"workload_api_socket": "api.sock"}, "workload_api_socket: must be an absolute path"),
        ("spire", {"workload_api_socket": "/" + "s" * 107}, "is 108 bytes long"),
        ("vault", {"address": "http://vault.example.org"}, 'address: must be "https://HOST"'),
        ("vault", {"address": "https://user:pass@vault.example.org"}, 'address: must be "https://HOST"'),
        ("vault", {"address": "https://vault.example.org/v1"}, 'address: must be "https://HOST"'),
        ("vault", {"address": "https://vault.example.org:x"}, 'address: must be "https://HOST"'),
        ("vault", {"address": "https://vault.example.org:0"}, 'address: must be "https://HOST"'),
        ("vault", {"pki_mount": "/pki"}, "pki_mount: must be the path of a mount"),
        ("vault", {"pki_mount": "../sys"}, "pki_mount: must be the path of a mount"),
        ("vault", {"namespace": "a\r\nX-Evil: b"}, "namespace: "),
        ("vault", {"ca_file": "ca.pem"}, "ca_file: must be an absolute path"),
        ("vault", {"token_auth": {"token_file": "token"}}, "token_file: must be an absolute path"),
        ("vault", {"token_auth": {"token": "hvs.x"}}, "token_auth.token: "),
        ("vault", {"kubernetes_auth": {"role": "x"}}, "exactly one of the tables token_auth, approle_auth"),
        ("vault", {"insecure_skip_verify": True, "ca_file": "/ca.pem"}, "insecure_skip_verify ignores ca_file"),
    ],
)
def test_mistakes_name_key_and_rule(kind, over, words):
    """A token in the text of the configuration is one of them."""
    with pytest.raises(ConfigError) as caught:
        make(kind, {**(SPIRE if kind == "spire" else VAULT), **over})
    assert words in caught.value.public
    assert "hvs.x" not in caught.value.public


def test_one_way_to_log_in_is_required():
    with pytest.raises(ConfigError, match="found none"):
        make("vault", {"address": "https://vault.example.org"})


def test_the_insecure_switch_is_warned_of():
    """At each start, and by `validate`."""
    (warning,) = make("vault", {**VAULT, "insecure_skip_verify": True}).warnings()
    assert "whoever answers at https://vault.example.org is believed" in warning
    assert make("vault", VAULT).warnings() == ()
