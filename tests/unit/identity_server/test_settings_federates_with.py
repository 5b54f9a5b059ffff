"""[federation.federates_with] with SPIRE's key names, and what the bundle client may reach."""

from datetime import timedelta

import pytest

from identity_server.domain.federation import EndpointProfile, FederationRelationship
from identity_server.settings import from_mapping
from identity_server.settings_federates_with import static_relationships
from spiffe_core.errors import ConfigError
from spiffe_core.spiffe_id import SpiffeId, TrustDomain

URL = "https://fed.test:8443/"
SPIFFE = {"https_spiffe": {"endpoint_spiffe_id": "spiffe://fed.test/spire/server"}}


def peer(url=URL, profile=SPIFFE):
    return {"bundle_endpoint_url": url, "bundle_endpoint_profile": profile}


def make(**federation):
    return from_mapping({"trust_domain": "example.org", "federation": federation}, source="f").federation


def refused(**federation):
    with pytest.raises(ConfigError) as caught:
        make(**federation)
    return caught.value.public


def test_both_profiles_are_read():
    """spire_features section 4.3, FED-13, FED-16."""
    found = make(federates_with={"fed.test": peer(), "web.test": peer("https://web.test/b", {"https_web": {}})})
    assert static_relationships(found.federates_with) == (
        FederationRelationship(
            TrustDomain("fed.test"),
            URL,
            EndpointProfile.HTTPS_SPIFFE,
            SpiffeId(TrustDomain("fed.test"), "/spire/server"),
        ),
        FederationRelationship(TrustDomain("web.test"), "https://web.test/b", EndpointProfile.HTTPS_WEB),
    )


@pytest.mark.parametrize(
    ("name", "table", "rule"),
    [
        ("fed.test", {"bundle_endpoint_profile": SPIFFE}, "bundle_endpoint_url"),
        ("fed.test", {"bundle_endpoint_url": URL}, "bundle_endpoint_profile"),
        ("fed.test", peer(profile={}), "give one table"),
        ("fed.test", peer(profile={"https_web": {}, **SPIFFE}), "give one table"),
        ("fed.test", peer(profile={"https_spiffe": {}}), "endpoint_spiffe_id"),
        ("fed.test", peer(profile={"https_spiffe": {"endpoint_spiffe_id": "fed.test"}}), "endpoint_spiffe_id"),
        ("fed.test", peer("http://fed.test/"), "https scheme"),
        ("fed.test", peer("https://u:p@fed.test/"), "user info"),
        ("fed.test", peer("/relative"), "https scheme"),
        ("fed.test", peer("file:///etc/passwd"), "https scheme"),
        ("Fed.test", peer(), "fed.test"),
        ("spiffe://fed.test", peer(), "write the trust domain as"),
        ("example.org", peer(), "own trust domain"),
    ],
)
def test_what_is_no_relationship_is_refused_by_name(name, table, rule):
    """N-F-01, N-F-02, N-F-03, N-F-20: a configuration error before anything is opened."""
    assert rule in refused(federates_with={name: table})


def test_the_client_reaches_public_addresses_only_unless_networks_are_listed():
    """S60: the default; a network that is none names its rule."""
    assert make().bundle_client.policy.refusal("10.0.0.1") == "is a private address"
    assert make(bundle_client={"allowed_networks": ["10.0.0.0/8"]}).bundle_client.policy.refusal("10.0.0.1") == ""
    assert "is not a network" in refused(bundle_client={"allowed_networks": ["10.0.0.1/8"]})


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ({"ca_file": "relative.pem"}, "absolute"),
        ({"max_redirects": 11}, "max_redirects"),
        ({"max_redirects": -1}, "max_redirects"),
        ({"min_interval": "2d"}, "at most 1 day"),
        ({"min_interval": "0s"}, "min_interval"),
    ],
)
def test_bounds_of_the_client(table, rule):
    assert rule in refused(bundle_client=table)
    assert make().bundle_client.min_interval == timedelta(minutes=1)


@pytest.mark.parametrize("url", ["http://example.org/", "example.org", "https://u@example.org/"])
def test_our_own_address_is_one_that_others_can_fetch_from(url):
    assert "public_url" in refused(public_url=url)
