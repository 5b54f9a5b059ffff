"""R42: a wrong answer of the server is refused, each in its own words."""

from datetime import timedelta

import pytest

from node_agent.domain.issued import SoundAuthorities, check_issued
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.crypto.keys import KeyKind, generate, to_pkcs8
from spiffe_core.errors import IdentityError, InvalidCertificate, Reason, VerificationFailed
from tests.authority import SpiffeTestCA
from tests.builders import TD, sid
from tests.doubles.clock import START

CA = SpiffeTestCA("example.org", now=START)
STRANGER = SpiffeTestCA("example.org", now=START)
KEY = generate(KeyKind.EC_P256)
WEB = sid("/web")


def check(chain, *, key=KEY, wanted=WEB, now=START, bundle=None):
    return check_issued(
        chain,
        key=to_pkcs8(key),
        expected=lambda found: found == wanted,
        expected_text=str(wanted),
        bundle=bundle or CA.bundle(),
        now=now,
    )


def test_a_good_answer_is_taken_with_what_it_depends_on():
    issued = check(CA.issue(WEB, key=KEY).chain)
    assert issued.svid.spiffe_id == WEB
    assert issued.anchor == CA.der
    assert issued.authority_ids == {X509Authority(CA.der).key_id}


def test_an_intermediate_is_among_what_it_depends_on():
    below = CA.intermediate()
    issued = check(below.issue(WEB, key=KEY).chain)
    assert issued.authority_ids == {X509Authority(CA.der).key_id, X509Authority(below.der).key_id}


WRONG = {
    "another key": (lambda: CA.issue(WEB).chain, None),
    "another ID": (lambda: CA.issue(sid("/admin"), key=KEY).chain, Reason.UNEXPECTED_ID),
    "another trust domain": (
        lambda: SpiffeTestCA("evil.test", now=START).issue("spiffe://evil.test/web", key=KEY).chain,
        Reason.UNEXPECTED_ID,
    ),
    "ended": (lambda: CA.issue(WEB, key=KEY, not_after=START).chain, Reason.EXPIRED),
    "far in the future": (
        lambda: CA.issue(WEB, key=KEY, not_before=START + timedelta(minutes=6)).chain,
        Reason.NOT_YET_VALID,
    ),
    "an authority nobody knows": (lambda: STRANGER.issue(WEB, key=KEY).chain, None),
    "a CA certificate": (lambda: CA.issue(WEB, key=KEY, ca=True).chain, None),
    "no chain": (lambda: (), None),
    "garbage": (lambda: (b"garbage",), None),
    "two SPIFFE IDs": (lambda: CA.issue(WEB, key=KEY, uris=(str(WEB), f"{WEB}2")).chain, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_refused(name):
    make, reason = WRONG[name]
    with pytest.raises(IdentityError) as caught:
        check(make())
    assert isinstance(caught.value, VerificationFailed | InvalidCertificate)
    if reason is not None:
        assert caught.value.reason is reason


def test_the_reason_names_the_clocks_when_they_differ_by_hours():
    """R19: a clock two hours off gets a clear word."""
    chain = CA.issue(WEB, key=KEY).chain
    with pytest.raises(VerificationFailed, match="check both clocks"):
        check(chain, now=START + timedelta(hours=2))
    with pytest.raises(VerificationFailed, match="check both clocks"):
        check(chain, now=START - timedelta(hours=2))


@pytest.mark.parametrize("minutes", [-5, 5])
def test_clocks_five_minutes_apart_work(minutes):
    """R19."""
    assert check(CA.issue(WEB, key=KEY).chain, now=START + timedelta(minutes=minutes))


def test_what_depends_on_a_tainted_or_removed_authority_is_not_sound():
    issued = check(CA.issue(WEB, key=KEY).chain)
    key_id = X509Authority(CA.der).key_id
    both = CA.bundle(STRANGER)
    assert SoundAuthorities.of(both).carry(issued.anchor, issued.authority_ids)
    assert not SoundAuthorities.of(both.with_x509_tainted(key_id)).carry(issued.anchor, issued.authority_ids)
    assert not SoundAuthorities.of(both.without_x509_authority(key_id)).carry(issued.anchor, issued.authority_ids)


def test_a_tainted_upstream_authority_condemns_what_its_intermediates_signed():
    below = CA.intermediate()
    issued = check(below.issue(WEB, key=KEY).chain)
    bundle = TrustBundle(TD, (X509Authority(CA.der), X509Authority(STRANGER.der)))
    tainted = bundle.with_x509_tainted(X509Authority(CA.der).key_id)
    assert not SoundAuthorities.of(tainted).carry(issued.anchor, issued.authority_ids)
