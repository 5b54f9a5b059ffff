"""What a server publishes of its own bundle: the keys of JWT-SVIDs and no others."""

from __future__ import annotations

import json

import pytest

from identity_server.domain.oidc_documents import Authority, Provider
from identity_server.oidc.own_keys import OwnKeys
from spiffe_core.bundle import BundleSet, JwtAuthority, WitAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Unavailable
from tests.builders import make_bundle

JWT, WIT = (spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2))
PROVIDER = Provider((Authority("oidc.example.org"),))


def bundles(*key_ids: str, sequence: int = 1) -> BundleSet:
    own = make_bundle(
        jwt_authorities=tuple(JwtAuthority(name, JWT) for name in key_ids),
        wit_authorities=(WitAuthority("wit", WIT),),
        sequence=sequence,
    )
    foreign = make_bundle(trust_domain="fed.test", jwt_authorities=(JwtAuthority("foreign", WIT),))
    return BundleSet(own, {foreign.trust_domain: foreign})


def test_only_the_own_keys_for_jwt_svids_are_published() -> None:
    """WIT-26, WAPI-37, N-J-38: keys of WIT-SVIDs, of certificates and of other trust domains verify no token of ours."""
    keys = json.loads(OwnKeys(PROVIDER, lambda: bundles("k1", "k2")).current().keys)["keys"]
    assert [key["kid"] for key in keys] == ["k1", "k2"]


def test_documents_are_made_anew_only_when_the_keys_are_others() -> None:
    now = [bundles("k1")]
    own = OwnKeys(PROVIDER, lambda: now[0])
    first = own.current()
    now[0] = bundles("k1", sequence=2)
    assert own.current() is first
    now[0] = bundles("k1", "k2", sequence=3)
    assert own.current().key_ids == ("k1", "k2")


def test_a_tainted_key_stays_until_it_is_revoked() -> None:
    """spire_features 20: tainting moves workloads to other keys; verifiers go on until the key is revoked."""
    tainted = bundles("k1").own.with_jwt_tainted("k1")
    assert OwnKeys(PROVIDER, lambda: BundleSet(tainted)).current().key_ids == ("k1",)
    revoked = tainted.without_jwt_authority("k1")
    assert OwnKeys(PROVIDER, lambda: BundleSet(revoked)).current().key_ids == ()


def test_before_there_is_a_bundle_there_are_no_documents() -> None:
    with pytest.raises(Unavailable):
        OwnKeys(PROVIDER, lambda: None).current()
