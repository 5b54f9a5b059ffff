"""Revocation lists: where they are checked, who stands in one is not believed (N-X-38); they never make anybody believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from spiffe_core.bundle import BundleSet
from spiffe_core.crypto.revocation import MAX_LIST_BYTES, MAX_LISTS, RevocationList, revocation_lists
from spiffe_core.errors import InvalidBundle, Reason, VerificationFailed
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, revoking, trusting

NOW = datetime(2030, 6, 1, 12, 0, tzinfo=UTC)
ROOT = SpiffeTestCA(name="root", now=NOW)
MIDDLE = ROOT.intermediate(name="middle")
NAMESAKE = SpiffeTestCA(name="root", now=NOW)  # the same name, another key
NO_LISTS = SpiffeTestCA(name="no lists", now=NOW, usage=frozenset({"key_cert_sign"}))
BUNDLES = trusting(ROOT.bundle(NO_LISTS))
SVID, OTHER, BELOW, OF_NO_LISTS = ROOT.issue(), ROOT.issue(), MIDDLE.issue(), NO_LISTS.issue()


def verify(chain, *lists):
    return verify_x509_svid(chain, BUNDLES, now=NOW, revocations=revocation_lists(lists))


def test_who_stands_in_the_list_is_refused_where_lists_are_checked():
    """N-X-38: the neighbour of the same authority is believed, and without lists so is the one listed."""
    listed = revoking(ROOT, SVID.leaf)
    assert verify(OTHER.chain, listed)
    assert verify(SVID.chain)
    with pytest.raises(VerificationFailed, match="revocation list") as refusal:
        verify(SVID.chain, listed)
    assert refusal.value.reason is Reason.REVOKED
    assert verify(OTHER.chain, listed)


def test_an_intermediate_can_be_listed_too():
    """RFC 5280 section 6.1.3: every certificate on the path but the anchor."""
    assert verify(BELOW.chain, revoking(ROOT, SVID.leaf))
    with pytest.raises(VerificationFailed) as refusal:
        verify(BELOW.chain, revoking(ROOT, MIDDLE.certificate))
    assert refusal.value.reason is Reason.REVOKED
    with pytest.raises(VerificationFailed):
        verify(BELOW.chain, revoking(MIDDLE, BELOW.leaf))


def test_one_list_among_several_is_enough():
    with pytest.raises(VerificationFailed):
        verify(SVID.chain, revoking(MIDDLE, BELOW.leaf), revoking(ROOT), revoking(ROOT, OTHER.leaf, SVID.leaf))


def test_a_list_that_is_overdue_still_refuses():
    """Who was revoked stays revoked until the list says otherwise."""
    old = revoking(ROOT, SVID.leaf, issued=NOW - timedelta(days=9))
    with pytest.raises(VerificationFailed):
        verify(SVID.chain, old)


CHANGE_NOTHING = {
    "an empty list": revoking(ROOT),
    "a list of another authority": revoking(MIDDLE, SVID.leaf),
    "a list signed by a stranger of the same name": revoking(NAMESAKE, SVID.leaf),
    "a list with a weak signature": revoking(ROOT, SVID.leaf, algorithm=hashes.SHA224()),
}


@pytest.mark.parametrize("lists", CHANGE_NOTHING.values(), ids=CHANGE_NOTHING)
def test_a_list_that_is_not_the_issuers_changes_nothing(lists):
    assert verify(SVID.chain, lists)


def test_an_authority_that_may_not_sign_lists_revokes_nothing():
    """RFC 5280 section 6.3.3 (f); X509-21 leaves it to the authority whether it may."""
    assert verify(OF_NO_LISTS.chain, revoking(NO_LISTS, OF_NO_LISTS.leaf))


def critical(extension):
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ROOT.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
        .add_extension(extension, critical=True)
    )
    return builder.sign(ROOT.key, hashes.SHA256()).public_bytes(Encoding.DER)


GOOD = revoking(ROOT)
NAME = GOOD.index(b"\x06\x03\x55\x04") + 5
"""The type of the first attribute of the issuer's name."""
UNREADABLE = {
    "empty": b"",
    "PEM": b"-----BEGIN X509 CRL-----\n",
    "a certificate": ROOT.der,
    "truncated": GOOD[:-1],
    "followed by more": GOOD + b"\x00",
    "oversize": b"\x30" * (MAX_LIST_BYTES + 1),
    "S29 an issuer without a readable name": GOOD[:NAME] + b"\x00" + GOOD[NAME + 1 :],
    "a delta": critical(x509.DeltaCRLIndicator(1)),
    "about others' certificates": critical(
        x509.IssuingDistributionPoint(None, None, False, False, None, True, False)  # its signature
    ),
}


@pytest.mark.parametrize("der", UNREADABLE.values(), ids=UNREADABLE)
def test_a_list_that_is_not_understood_is_refused_with_its_place(der):
    with pytest.raises(InvalidBundle) as refusal:
        revocation_lists([GOOD, der])
    assert refusal.value.field == "crl[1]"


def test_the_number_of_lists_is_bounded():
    assert len(revocation_lists([GOOD] * MAX_LISTS)) == MAX_LISTS
    with pytest.raises(InvalidBundle, match="at most"):
        revocation_lists([GOOD] * (MAX_LISTS + 1))


def test_lists_stay_with_bundles_that_change():
    """A trust domain that comes or goes takes no list with it."""
    fed = SpiffeTestCA("fed.test", now=NOW)
    held = BundleSet(ROOT.bundle(), revocations=(RevocationList(GOOD),))
    assert held.with_bundle(fed.bundle()).revocations == held.revocations
    assert held.with_bundle(fed.bundle()).without(fed.trust_domain) == held
    assert held.with_bundle(ROOT.bundle(NAMESAKE)).revocations == held.revocations
    assert held != BundleSet(ROOT.bundle())
