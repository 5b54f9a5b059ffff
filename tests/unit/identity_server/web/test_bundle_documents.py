"""The documents of the bundle endpoint: what stands in them, and that they are made once."""

import json

import pytest

from identity_server.web.bundle_endpoint import MAP, BundleDocuments
from spiffe_core.bundle import BundleSet, JwtAuthority, TrustBundle, X509Authority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import NotFound, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA

TD, OTHER = TrustDomain("example.org"), TrustDomain("fed.test")
KEY = JwtAuthority("k", spki_der(generate(KeyKind.EC_P256).public_key()))
BUNDLE = TrustBundle(TD, (X509Authority(SpiffeTestCA("example.org").der),), (KEY,), sequence=9, refresh_hint=60)
FOREIGN = TrustBundle(OTHER, (X509Authority(SpiffeTestCA("fed.test").der),), sequence=2)


class Rig:
    def __init__(self, shown="all"):
        self.own, self.bundles = BUNDLE, BundleSet(BUNDLE, {OTHER: FOREIGN})
        self.documents = BundleDocuments(self.given, lambda: self.bundles, shown)

    def given(self):
        if self.own is None:
            raise Unavailable("not yet")
        return self.own

    def find(self, path):
        return self.documents.find({"path": path})


def test_a_document_is_made_once_for_a_bundle():
    """FED-25: the next bundle has the next document."""
    rig = Rig()
    first = rig.find("/")
    assert rig.find("/") is first
    assert rig.documents.of(TD) is first
    assert rig.find(MAP) is rig.find(MAP)
    rig.own = BUNDLE.with_refresh_hint(61)
    assert rig.find("/").etag != first.etag


def test_a_tainted_authority_stays_until_it_is_revoked():
    """TDB-16: the standard has no word for it; leaving it out would break what it signed before its time."""
    rig = Rig()
    before = json.loads(rig.find("/").body)
    rig.own = BUNDLE.with_x509_tainted(BUNDLE.x509_authorities[0].key_id).with_jwt_tainted("k")
    after = json.loads(rig.find("/").body)
    assert after["keys"] == before["keys"]
    assert after["spiffe_sequence"] > before["spiffe_sequence"]
    rig.own = rig.own.without_jwt_authority("k")
    assert len(json.loads(rig.find("/").body)["keys"]) == 1


def test_an_empty_bundle_is_served_as_one():
    """TDB-12, TDB-14."""
    rig = Rig()
    rig.own = TrustBundle(TD, sequence=10)
    assert json.loads(rig.find("/").body) == {"keys": [], "spiffe_sequence": 10}


def test_a_large_sequence_keeps_its_precision():
    """TDB-06, TDB-08."""
    rig = Rig()
    rig.own = TrustBundle(TD, sequence=2**63 - 1)
    assert b'"spiffe_sequence":9223372036854775807' in rig.find("/").body


def test_others_are_shown_only_where_that_is_wanted():
    """TDB-23."""
    assert list(json.loads(Rig().find(MAP).body)["trust_domains"]) == ["example.org", "fed.test"]
    own = Rig("own")
    assert list(json.loads(own.find(MAP).body)["trust_domains"]) == ["example.org"]
    with pytest.raises(NotFound):
        own.documents.of(OTHER)
    assert Rig("off").find(MAP) is None


def test_a_domain_that_is_no_longer_federated_is_gone():
    rig = Rig()
    assert rig.documents.of(OTHER).body
    rig.bundles = BundleSet(BUNDLE)
    with pytest.raises(NotFound):
        rig.documents.of(OTHER)
    assert list(json.loads(rig.find(MAP).body)["trust_domains"]) == ["example.org"]


@pytest.mark.parametrize("path", ["/", MAP])
def test_nothing_is_served_before_there_is_something(path):
    """N-F-27."""
    rig = Rig()
    rig.own = None
    with pytest.raises(Unavailable):
        rig.find(path)
