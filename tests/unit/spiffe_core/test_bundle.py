"""Trust bundles and sets of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from spiffe_core.bundle import (
    MAX_AUTHORITIES,
    MAX_INT64,
    MAX_REFRESH_HINT,
    MAX_SEQUENCE,
    BundleSet,
    JwtAuthority,
    TrustBundle,
    WitAuthority,
    X509Authority,
    poll_interval,
    succeed,
)
from spiffe_core.crypto.certificates import read_certificate
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidBundle, InvalidCertificate
from tests.authority import SpiffeTestCA
from tests.builders import OTHER_TD, TD, make_bundle

CA_1, CA_2 = SpiffeTestCA(), SpiffeTestCA()
SPKI_1, SPKI_2 = (spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2))


def key_id(ca: SpiffeTestCA) -> str:
    return X509Authority(ca.der).key_id


def test_an_x509_authority_knows_its_certificate():
    authority = X509Authority(CA_1.der)
    facts = read_certificate(CA_1.der)
    assert authority.certificate == CA_1.certificate
    assert authority.not_after == facts.not_after
    assert facts.subject_key_id is not None
    assert authority.key_id == facts.subject_key_id.hex()
    assert authority == X509Authority(CA_1.der)
    assert hash(authority) == hash(X509Authority(CA_1.der))
    assert authority != X509Authority(CA_1.der, tainted=True)


def test_an_authority_that_is_no_certificate_is_refused():
    with pytest.raises(InvalidCertificate) as refusal:
        X509Authority(b"x")
    assert refusal.value.field == "x509_authorities"


@pytest.mark.parametrize("kind", [JwtAuthority, WitAuthority])
@pytest.mark.parametrize(
    ("over", "error"),
    [
        ({"key_id": ""}, InvalidBundle),
        ({"key_id": "é" * 513}, InvalidBundle),
        ({"expires_at": -1}, InvalidBundle),
        ({"expires_at": MAX_INT64 + 1}, InvalidBundle),
        ({"public_key": b"x"}, InvalidCertificate),
        ({"public_key": spki_der(ec.generate_private_key(ec.SECP256K1()).public_key())}, InvalidCertificate),
    ],
    ids=["no kid", "long kid", "negative expiry", "huge expiry", "garbage", "weak key"],
)
def test_a_token_authority_needs_a_key_id_and_a_good_key(kind, over, error):
    """N-J-13: weak keys never enter a bundle."""
    good = {"key_id": "k", "public_key": SPKI_1, "expires_at": MAX_INT64}
    assert kind(**good).key is not None
    with pytest.raises(error):
        kind(**{**good, **over})


def test_jwt_and_wit_keys_are_never_equal():
    assert JwtAuthority("k", SPKI_1) != WitAuthority("k", SPKI_1)


@pytest.mark.parametrize(
    ("over", "field"),
    [
        ({"sequence": -1}, "sequence"),
        ({"sequence": MAX_SEQUENCE + 1}, "sequence"),
        ({"refresh_hint": -1}, "refresh_hint"),
        ({"refresh_hint": MAX_REFRESH_HINT + 1}, "refresh_hint"),
        ({"x509_authorities": (X509Authority(CA_1.der),) * 2}, "x509_authorities"),
        ({"jwt_authorities": (JwtAuthority("k", SPKI_1), JwtAuthority("k", SPKI_2))}, "jwt_authorities"),
        ({"wit_authorities": (WitAuthority("k", SPKI_1), WitAuthority("k", SPKI_2))}, "wit_authorities"),
        ({"jwt_authorities": (JwtAuthority("k", SPKI_1),) * (MAX_AUTHORITIES + 1)}, "jwt_authorities"),
    ],
)
def test_a_bundle_out_of_bounds_is_refused(over, field):
    assert make_bundle(sequence=MAX_SEQUENCE)
    with pytest.raises(InvalidBundle) as refusal:
        make_bundle(**over)
    assert refusal.value.field == field


def test_an_empty_bundle_says_so():
    assert TrustBundle(TD).is_empty
    assert not make_bundle().is_empty
    assert not TrustBundle(TD, jwt_authorities=(JwtAuthority("k", SPKI_1),)).is_empty
    assert not TrustBundle(TD, wit_authorities=(WitAuthority("k", SPKI_1),)).is_empty


def test_x509_authorities_are_added_tainted_and_removed():
    """TDB-06, TDB-07: every change gives a larger sequence."""
    empty = TrustBundle(TD, sequence=7)
    one = empty.with_x509_authority(CA_1.der)
    two = one.with_x509_authority(CA_2.der)
    marked = two.with_x509_tainted(key_id(CA_1))
    gone = marked.without_x509_authority(key_id(CA_1))
    assert [bundle.sequence for bundle in (empty, one, two, marked, gone)] == [7, 8, 9, 10, 11]
    assert two.x509_roots == (CA_1.der, CA_2.der)
    assert [authority.tainted for authority in marked.x509_authorities] == [True, False]
    assert marked.x509_roots == two.x509_roots
    assert gone.x509_roots == (CA_2.der,)


@pytest.mark.parametrize(
    ("prefix", "kind"), [("jwt", JwtAuthority), ("wit", WitAuthority)], ids=["JWT keys", "WIT keys"]
)
def test_token_authorities_are_added_replaced_tainted_and_removed(prefix, kind):
    empty = TrustBundle(TD)

    def change(bundle, what, argument):
        return getattr(bundle, what.format(prefix))(argument)

    def keys(bundle):
        return getattr(bundle, f"{prefix}_authorities")

    one = change(empty, "with_{}_authority", kind("a", SPKI_1))
    two = change(one, "with_{}_authority", kind("b", SPKI_2))
    replaced = change(two, "with_{}_authority", kind("a", SPKI_1, expires_at=9))
    marked = change(replaced, "with_{}_tainted", "b")
    gone = change(marked, "without_{}_authority", "b")
    assert [bundle.sequence for bundle in (one, two, replaced, marked, gone)] == [1, 2, 3, 4, 5]
    assert keys(replaced) == (kind("a", SPKI_1, expires_at=9), kind("b", SPKI_2))
    assert keys(marked)[1] == kind("b", SPKI_2, tainted=True)
    assert keys(gone) == (kind("a", SPKI_1, expires_at=9),)
    for what, argument in (
        ("with_{}_authority", kind("a", SPKI_1, expires_at=9)),
        ("with_{}_tainted", "unknown"),
        ("without_{}_authority", "unknown"),
    ):
        assert change(gone, what, argument) is gone
    assert change(marked, "with_{}_tainted", "b") is marked


def test_what_changes_nothing_gives_the_same_object():
    bundle = make_bundle(x509_authorities=(X509Authority(CA_1.der, tainted=True),))
    assert bundle.with_x509_authority(CA_1.der) is bundle
    assert bundle.with_x509_tainted(key_id(CA_1)) is bundle
    assert bundle.with_x509_tainted("00") is bundle
    assert bundle.without_x509_authority("00") is bundle
    assert bundle.with_refresh_hint(300) is bundle


def test_a_new_hint_is_a_change():
    """D17."""
    changed = make_bundle(sequence=4).with_refresh_hint(60)
    assert (changed.sequence, changed.refresh_hint) == (5, 60)


def test_the_sequence_does_not_wrap():
    with pytest.raises(InvalidBundle):
        make_bundle(sequence=MAX_SEQUENCE).with_refresh_hint(60)


OWN, FED = make_bundle(), make_bundle(trust_domain="fed.test")


def test_a_set_answers_by_the_exact_name():
    """TDB-01, FED-12: bundles are looked up whole and never pooled."""
    bundles = BundleSet(OWN, {OTHER_TD: FED})
    assert bundles.get(TD) is OWN
    assert bundles.get(OTHER_TD) is FED
    assert bundles.get(replace(TD, name="other.test")) is None
    assert bundles.all() == (OWN, FED)


def test_all_lists_the_own_bundle_first_and_the_rest_by_name():
    others = [make_bundle(trust_domain=name) for name in ("z.test", "a.test")]
    bundles = BundleSet(OWN, {bundle.trust_domain: bundle for bundle in others})
    assert [bundle.trust_domain.name for bundle in bundles.all()] == ["example.org", "a.test", "z.test"]


def test_a_set_does_not_follow_later_changes_of_the_mapping():
    source = {OTHER_TD: FED}
    bundles = BundleSet(OWN, source)
    source.clear()
    assert bundles.get(OTHER_TD) is FED


def test_a_bundle_is_filed_under_its_own_name_only():
    """N-B-35: nobody else's document becomes the own bundle."""
    with pytest.raises(InvalidBundle, match="is filed under"):
        BundleSet(OWN, {OTHER_TD: OWN})
    with pytest.raises(InvalidBundle, match="own trust domain"):
        BundleSet(OWN, {TD: OWN})


def test_a_set_changes_by_one_bundle_at_a_time():
    alone = BundleSet(OWN)
    both = alone.with_bundle(FED)
    assert both.get(OTHER_TD) is FED
    assert both.with_bundle(FED) is both
    assert both.with_bundle(replace(OWN, sequence=9)).own.sequence == 9
    assert both.without(OTHER_TD) == alone
    assert alone.without(OTHER_TD) is alone
    assert alone.without(TD) is alone


@pytest.mark.parametrize(
    ("fetched", "expected", "warning"),
    [
        (make_bundle(sequence=6), make_bundle(sequence=6), ""),
        (make_bundle(sequence=4, x509_authorities=()), make_bundle(sequence=5), "stays in force"),
        (make_bundle(sequence=5), make_bundle(sequence=5), ""),
        (make_bundle(sequence=5, refresh_hint=1), make_bundle(sequence=5, refresh_hint=1), "same sequence 5"),
        (make_bundle(sequence=0, refresh_hint=1), make_bundle(sequence=5, refresh_hint=1), ""),
    ],
    ids=["newer", "N-B-26 rollback", "the same", "N-B-27 changed content", "FED-10 no sequence"],
)
def test_the_newer_bundle_is_in_force(fetched, expected, warning):
    """FED-09, FED-10."""
    outcome = succeed(make_bundle(sequence=5), fetched)
    assert outcome.bundle == expected
    assert warning in outcome.warning
    assert bool(outcome.warning) == bool(warning)


def test_a_bundle_does_not_succeed_one_of_another_domain():
    with pytest.raises(InvalidBundle):
        succeed(OWN, FED)


@pytest.mark.parametrize(
    ("hint", "seconds"), [(0, 300), (-5, 300), (1, 60), (60, 60), (300, 300), (10**9, 86400), (10**12, 86400)]
)
def test_the_hint_is_kept_within_reason(hint, seconds):
    """N-B-28, TDB-11, TDB-27."""
    assert poll_interval(hint) == timedelta(seconds=seconds)
