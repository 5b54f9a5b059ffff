"""Bundles of many authorities of one name, as several servers and a leak make them (R31, N-X-35)."""

from datetime import UTC, datetime

import pytest

from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import MAX_SIGNATURE_CHECKS, verify_x509_svid
from tests.authority import SpiffeTestCA

TD = TrustDomain("example.org")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
CAS = [SpiffeTestCA("example.org", name="one name", now=NOW) for _ in range(2 * MAX_SIGNATURE_CHECKS)]
BUNDLE = TrustBundle(TD, tuple(X509Authority(ca.der) for ca in CAS))


@pytest.mark.parametrize("number", [0, MAX_SIGNATURE_CHECKS, 2 * MAX_SIGNATURE_CHECKS - 1])
def test_the_one_that_signed_is_found_wherever_it_stands(number):
    svid = CAS[number].issue("spiffe://example.org/w")
    assert verify_x509_svid(svid.chain, lambda _: BUNDLE, now=NOW).anchor_der == CAS[number].der


def test_an_authority_that_is_not_among_them_is_unknown_and_not_too_much_to_try():
    """An agent that is told so reads the bundle anew at once; the wrong reason would leave it waiting."""
    stranger = SpiffeTestCA("example.org", name="one name", now=NOW).issue("spiffe://example.org/w")
    with pytest.raises(VerificationFailed) as caught:
        verify_x509_svid(stranger.chain, lambda _: BUNDLE, now=NOW)
    assert caught.value.reason is Reason.UNKNOWN_AUTHORITY
