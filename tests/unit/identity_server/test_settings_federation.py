"""[federation]: SPIRE's key names, one table or several, one profile each."""

from datetime import timedelta

import pytest

from identity_server.settings import from_mapping
from spiffe_core.errors import ConfigError

FILES = {"cert_file_path": "/c.pem", "key_file_path": "/k.pem"}


def make(*endpoints, **over):
    tables = endpoints[0] if len(endpoints) == 1 else list(endpoints)
    return from_mapping({"trust_domain": "example.org", "federation": {"bundle_endpoint": tables}, **over}, source="f")


def acme(**over):
    return {"profile": {"https_web": {"acme": {"domain_name": "bundle.example.org", **over}}}}


def test_acme_has_the_defaults_of_spire():
    (one,) = make(acme()).federation.bundle_endpoint
    found = one.profile.https_web.acme
    assert (found.directory_url, found.tos_accepted, found.http01) == (
        "https://acme-v02.api.letsencrypt.org/directory",
        False,
        None,
    )


def test_without_a_table_there_is_no_endpoint():
    federation = from_mapping({"trust_domain": "example.org"}).federation
    assert (federation.bundle_endpoint, federation.refresh_hint) == ((), None)


def test_an_empty_table_has_the_defaults_of_spire():
    """FED-14: https_spiffe on port 8443, asked for every five minutes."""
    (one,) = make({}).federation.bundle_endpoint
    assert (one.address, one.port, one.refresh_hint) == ("0.0.0.0", 8443, timedelta(minutes=5))
    assert one.profile.https_spiffe is not None
    assert make({}).warnings() == ()


def test_several_tables_are_several_endpoints():
    web = {"port": 8444, "profile": {"https_web": {"serving_cert_file": FILES}}}
    assert [one.port for one in make({}, web).federation.bundle_endpoint] == [8443, 8444]


def test_a_hint_that_is_long_for_the_authority_is_warned_of():
    """FED-02: a key is published three hints before it signs."""
    (warning,) = make({"refresh_hint": "3h"}).warnings()
    assert "refresh_hint: 3h is long for ca.ttl = 24h" in warning


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ([{"address": "example.org"}], "federation.bundle_endpoint.0.address: must be an IP address"),
        ([{"port": 70_000}], "port: "),
        ([{"refresh_hint": "0s"}], "refresh_hint: must be at least 1s"),
        ([{"profile": {}}], "profile: give one table"),
        ([{"profile": {"https_spiffe": {}, "https_web": {"serving_cert_file": FILES}}}], "profile: give one table"),
        ([{"profile": {"https_web": {"serving_cert_file": {**FILES, "key_file_path": "k"}}}}], "an absolute path"),
        ([{"profile": {"https_web": {}}}], "profile.https_web: give one table: acme or serving_cert_file"),
        ([acme(domain_name="*.example.org")], "acme.domain_name: must not be a wildcard"),
        ([acme(domain_name="a b")], "acme.domain_name: "),
        ([acme(directory_url="http://ca/dir")], "acme.directory_url: must be an https URL"),
        ([acme(directory_url="https://u:p@ca/dir")], "acme.directory_url: must be an https URL"),
        ([acme(directory_url="https://ca:99999/dir")], "acme.directory_url: must be an https URL"),
        ([{}, {"refresh_hint": "1m"}], "give all the same refresh_hint"),
        ([{"adress": "::"}], "did you mean 'address'?"),
    ],
)
def test_what_is_refused(endpoints, words):
    with pytest.raises(ConfigError) as caught:
        make(*endpoints)
    assert words in caught.value.public
