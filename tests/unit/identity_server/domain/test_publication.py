"""What of the bundle is published, and what may be replaced by it (TDB-06, TDB-07, WIT-36)."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.domain.publication import (
    LONGEST_PAUSE,
    BundleFormat,
    Present,
    may_write,
    pause_after,
    publication_of,
)
from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority
from spiffe_core.bundle_document import load_bundle, load_bundle_pem
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA

TD = TrustDomain("example.org")


@pytest.fixture(scope="module")
def bundle():
    spki = [spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(2)]
    plain = SpiffeTestCA("example.org").bundle(sequence=7)
    return replace(
        plain,
        jwt_authorities=(JwtAuthority("token-key", spki[0]),),
        wit_authorities=(WitAuthority("wit-key", spki[1]),),
        refresh_hint=300,
    )


def test_the_spiffe_format_is_the_standards_document_with_the_hint_of_the_place(bundle):
    """Sequence and keys are those of the bundle; a hint of its own replaces the bundle's."""
    ours = publication_of(bundle, BundleFormat.SPIFFE, 60)
    assert load_bundle(ours.content, TD).bundle == replace(bundle, refresh_hint=60)
    assert load_bundle(publication_of(bundle, BundleFormat.SPIFFE).content, TD).bundle == bundle


def test_the_jwks_format_has_x509_and_jwt_keys_and_nothing_of_spiffes_own(bundle):
    """As SPIRE writes it. WIT keys are left out: without `use` they could be taken for JWT keys."""
    document = json.loads(publication_of(bundle, BundleFormat.JWKS).content)
    assert set(document) == {"keys"}
    assert [sorted(key) for key in document["keys"]] == [
        ["crv", "kty", "x", "x5c", "y"],
        ["crv", "kid", "kty", "x", "y"],
    ]
    assert document["keys"][1]["kid"] == "token-key"


def test_the_pem_format_holds_the_x509_authorities(bundle):
    """And nothing else."""
    ours = publication_of(bundle, BundleFormat.PEM)
    assert load_bundle_pem(ours.content, TD).bundle.x509_authorities == bundle.x509_authorities


SITUATIONS = {
    "nothing is there": (None, True),
    "an older one of ours": (Present("x", 6, "example.org"), True),
    "the same sequence with other content": (Present("x", 7, "example.org"), True),
    "something that cannot tell": (Present("x"), True),
    "a newer one": (Present("x", 8, "example.org"), PreconditionFailed),
    "a newer one that does not say of whom": (Present("x", 8), PreconditionFailed),
    "another trust domain's": (Present("x", 1, "other.org"), PreconditionFailed),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_older_bundle_never_replaces_a_newer_one_nor_anybody_elses(name, bundle):
    """TDB-06: the sequence in a place never goes back, whichever server of the domain publishes."""
    there, expected = SITUATIONS[name]
    ours = publication_of(bundle, BundleFormat.PEM)
    if expected is PreconditionFailed:
        with pytest.raises(PreconditionFailed, match="left as it is"):
            may_write(ours, there, "the place")
    else:
        assert may_write(ours, there, "the place") is expected


def test_what_is_there_already_is_not_written_again(bundle):
    """The content counts."""
    ours = publication_of(bundle, BundleFormat.SPIFFE)
    assert not may_write(ours, Present(ours.digest, 7, "example.org"), "the place")


@given(st.integers(min_value=1, max_value=10_000), st.floats(min_value=-1, max_value=1))
def test_pauses_grow_and_stay_bounded(failures, jitter):
    """From one second to five minutes, a fifth more or less."""
    pause = pause_after(failures, jitter)
    assert 0.8 <= pause <= LONGEST_PAUSE * 1.2
    assert pause_after(failures, 0) <= pause_after(failures + 1, 0)


def test_an_empty_bundle_makes_an_empty_document():
    """It is for whoever calls not to publish it."""
    assert load_bundle(publication_of(TrustBundle(TD), BundleFormat.SPIFFE).content, TD).bundle.is_empty
