"""The identity server's settings: defaults, bounds, and the documented example."""

from datetime import timedelta
from pathlib import Path

import pytest

from identity_server.settings import ServerSettings, from_mapping, load
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.settings import resolved

EXAMPLE = Path(__file__).parents[3] / "deploy" / "config" / "server.toml"

TOKEN = {"module": "/m.so", "token": "t", "pin_file": "/pin"}


def make(**over):
    return from_mapping({"trust_domain": "example.org", **over}, source="server.toml")


def refusal(**over):
    with pytest.raises(ConfigError) as caught:
        make(**over)
    return caught.value.public


def test_only_the_trust_domain_is_required():
    settings = make()
    assert (settings.bind_port, settings.ca.ttl, settings.agent_ttl) == (8081, timedelta(hours=24), timedelta(hours=1))
    assert settings.database_place == settings.data_dir / "datastore.sqlite3"
    assert settings.warnings() == ()
    with pytest.raises(ConfigError, match="trust_domain: is required"):
        from_mapping({})


def test_the_documented_example_is_true():
    """It loads, and shows every key at its default."""
    settings = load(EXAMPLE)
    plain = make(data_dir=str(settings.data_dir), socket_path=str(settings.socket_path), svid={"agent_ttl": "1h"})
    assert resolved(settings) == resolved(plain)
    shown = EXAMPLE.read_text()
    for name in ServerSettings.model_fields:
        assert name in shown


def test_agents_get_the_default_ttl_unless_they_have_their_own():
    assert make(svid={"default_x509_ttl": "30m"}).agent_ttl == timedelta(minutes=30)
    assert make(svid={"agent_ttl": "2h"}).agent_ttl == timedelta(hours=2)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"trust_domain": "spiffe://"}, "server.toml: trust_domain: "),
        ({"bind_address": "localhost"}, "bind_address: must be an IP address"),
        ({"bind_port": 65536}, "bind_port: "),
        ({"socket_path": "admin.sock"}, "socket_path: must be an absolute path"),
        ({"socket_path": "/" + "s" * 107}, "socket_path: is 108 bytes long"),
        ({"data_dir": "here"}, "data_dir: must be an absolute path"),
        ({"log_level": "loud"}, "log_level: "),
        ({"ca": {"key_type": "ec-p521"}}, "ca.key_type: "),
        ({"upstream": {}}, "upstream.kind: is required"),
        ({"upstream": {"kind": "disk"}}, "the table [upstream.disk] is required"),
        ({"upstream": {"kind": "disk", "disk": {"cert_file": "/c"}}}, "upstream.disk.key_file: is required"),
        ({"upstream": {"kind": "disk", "disk": {"cert_file": "c", "key_file": "/k"}}}, "cert_file must be an absolute"),
        ({"ca": {"key_manager": "cloud"}}, "ca.key_manager: "),
        ({"ca": {"key_manager": "pkcs11"}}, "[ca.pkcs11] belong together"),
        ({"ca": {"pkcs11": TOKEN}}, "[ca.pkcs11] belong together"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "slot": 1}}}, "not by both"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "token": ""}}}, "not by both"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "module": "m.so"}}}, "must be an absolute path"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "pin_file": "pin"}}}, "must be an absolute path"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "pin": "1234"}}}, "ca.pkcs11.pin"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "key_label_prefix": "a\n"}}}, "key_label_prefix"),
        ({"ca": {"key_manager": "pkcs11", "pkcs11": {**TOKEN, "key_label_prefix": "../"}}}, "key_label_prefix"),
        ({"ca": {"ttl": "200000h"}}, "at most 20 years"),
        ({"ca": {"ttl": "30m"}}, "must not be longer than ca.ttl (30m)"),
        ({"svid": {"default_x509_ttl": 3600}}, "svid.default_x509_ttl: write a duration as text"),
        ({"database": {"url": "postgres://x"}}, 'database.url: must be "sqlite"'),
        ({"database": {"url": "sqlite:///"}}, "database.url: must be"),
        ({"database": {"url": "mariadb://"}}, "database.url: must be"),
        ({"database": {"tls_cert_file": "/c.pem"}}, "tls_cert_file and tls_key_file belong together"),
        ({"limits": {"connections": 1}}, "limits.connections: "),
    ],
)
def test_a_wrong_value_names_key_and_rule(over, words):
    assert words in refusal(**over)


def test_a_socket_path_of_exactly_the_kernels_limit_is_accepted():
    """S36."""
    path = "/" + "s" * 106
    assert str(make(socket_path=path).socket_path) == path


def test_spires_names_lead_to_ours():
    assert "did you mean 'svid.default_x509_ttl'?" in refusal(default_x509_svid_ttl="1h")
    assert "did you mean 'key_type'?" in refusal(ca={"ca_key_type": "ec-p256"})


def test_a_sqlite_path_can_be_given():
    assert make(database={"url": "sqlite:////var/db/x.sqlite3"}).database_place == Path("/var/db/x.sqlite3")


def test_a_database_server_is_named_by_its_url_without_a_password():
    url = "postgresql://muniment@db.example.org/muniment"
    settings = make(database={"url": url, "password_file": "/etc/muniment/db.password"})
    assert settings.database_place == url
    assert settings.database.shared
    said = refusal(database={"url": "postgresql://muniment:hunter2@db/muniment"})
    assert "database.password_file" in said
    assert "hunter2" not in said


def test_long_svids_under_a_short_authority_are_warned_about():
    """spire_features section 4.1: a sixth of the CA's life."""
    (warning,) = make(ca={"ttl": "2h"}, svid={"default_x509_ttl": "1h", "agent_ttl": "20m"}).warnings()
    assert warning.startswith("svid.default_x509_ttl: 1h is longer than 20m")
