"""Who may talk to us: whole values are compared, never prefixes."""

import pytest

from spiffe_core.errors import Reason, VerificationFailed
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from workload_api.tls import any_id, exactly, member_of


def spiffe_id(text):
    return SpiffeId.parse(text)


RULES = {
    "any ID": (any_id(), "spiffe://other.org/x", True),
    "exactly this one": (exactly(spiffe_id("spiffe://a.org/x")), "spiffe://a.org/x", True),
    "one of two": (exactly(spiffe_id("spiffe://a.org/x"), spiffe_id("spiffe://a.org/y")), "spiffe://a.org/y", True),
    "below it": (exactly(spiffe_id("spiffe://a.org/x")), "spiffe://a.org/x/y", False),
    "above it": (exactly(spiffe_id("spiffe://a.org/x/y")), "spiffe://a.org/x", False),
    "another case": (exactly(spiffe_id("spiffe://a.org/x")), "spiffe://a.org/X", False),
    "the same path elsewhere": (exactly(spiffe_id("spiffe://a.org/x")), "spiffe://b.org/x", False),
    "of the domain": (member_of(TrustDomain("a.org")), "spiffe://a.org/anything", True),
    "of a subdomain": (member_of(TrustDomain("a.org")), "spiffe://x.a.org/anything", False),
    "of a longer name": (member_of(TrustDomain("a.org")), "spiffe://a.org.evil/anything", False),
}


@pytest.mark.parametrize("case", RULES)
def test_rule(case):
    authorise, peer, allowed = RULES[case]
    if allowed:
        assert authorise(spiffe_id(peer)) is None
        return
    with pytest.raises(VerificationFailed) as refusal:
        authorise(spiffe_id(peer))
    assert refusal.value.reason is Reason.UNEXPECTED_ID
    assert peer not in refusal.value.public, "the peer is told nothing; the log is"
    assert refusal.value.facts["peer"] == peer


def test_a_rule_that_allows_nobody_is_a_mistake():
    with pytest.raises(ValueError, match="at least one"):
        exactly()
