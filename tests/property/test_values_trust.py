"""Laws of trust: bundles only move forward, documents read back, what we issue verifies and what is spoiled does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiffe_core.bundle import BundleSet, JwtAuthority, TrustBundle, WitAuthority, X509Authority, succeed
from spiffe_core.bundle_document import (
    dump_bundle,
    dump_bundle_map,
    dump_bundle_pem,
    load_bundle,
    load_bundle_map,
    load_bundle_pem,
)
from spiffe_core.crypto.csr import build_csr, parse_csr
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import InvalidBundle, InvalidCsr, InvalidRequest, VerificationFailed
from spiffe_core.lifetime import Lifetime, renew_at
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, trusting
from tests.builders import TD

NOW = datetime(2030, 6, 1, tzinfo=UTC)
CAS = [SpiffeTestCA(now=NOW) for _ in range(3)]
SPKIS = [spki_der(generate(KeyKind.EC_P256).public_key()) for _ in range(3)]
CHAIN_CA = CAS[0].intermediate()
TRUSTED = trusting(CAS[0].bundle())
SVID = CHAIN_CA.issue(dns=("web.example.org",))
CSR_KEY = generate(KeyKind.EC_P256)
CSR = build_csr(CSR_KEY, spiffe_id=SpiffeId(TD, "/web"))

x509_lists = st.lists(st.sampled_from(CAS), unique=True).map(lambda cas: tuple(X509Authority(ca.der) for ca in cas))
kids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
jwt_lists = st.lists(st.tuples(kids, st.sampled_from(SPKIS)), max_size=3, unique_by=lambda pair: pair[0])


@st.composite
def bundles(draw):
    jwt = draw(jwt_lists)
    taken = {kid for kid, _ in jwt}
    wit = [pair for pair in draw(jwt_lists) if pair[0] not in taken]
    return TrustBundle(
        TD,
        draw(x509_lists),
        tuple(JwtAuthority(*pair) for pair in jwt),
        tuple(WitAuthority(*pair) for pair in wit),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, 2**31 - 1)),
    )


@given(bundles())
def test_documents_read_back_as_written(bundle):
    loaded = load_bundle(dump_bundle(bundle), TD)
    assert loaded.bundle == bundle
    assert bool(loaded.warnings) == bundle.is_empty


@given(bundles())
def test_maps_read_back_as_written_without_hints(bundle):
    other = TrustBundle(TrustDomain("fed.test"), sequence=bundle.sequence)
    loaded = load_bundle_map(dump_bundle_map([bundle, other]))
    assert loaded[TD].bundle == replace(bundle, refresh_hint=0)
    assert loaded[other.trust_domain].bundle == other


@given(bundles().filter(lambda bundle: bundle.x509_authorities))
def test_pem_reads_back_as_written(bundle):
    assert load_bundle_pem(dump_bundle_pem(bundle), TD).bundle.x509_authorities == bundle.x509_authorities


@given(bundles(), st.data())
def test_a_spoiled_document_is_refused_or_read_as_something_sound(bundle, data):
    """S29: whatever happens to the bytes, the loader answers with a bundle or an InvalidBundle and nothing else."""
    text = bytearray(dump_bundle(bundle))
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] = data.draw(st.integers(0, 255))
    try:
        loaded = load_bundle(bytes(text), TD)
    except InvalidBundle:
        return
    # One byte cannot change a certificate's key and the JWK's parameters alike: no key gets in that was not there.
    known = {spki_der(ca.key.public_key()) for ca in CAS}
    assert {spki_der(authority.certificate.public_key()) for authority in loaded.bundle.x509_authorities} <= known


@given(st.binary(max_size=200))
def test_any_bytes_are_a_bundle_or_refused(data):
    """S29."""
    for read in (lambda: load_bundle(data, TD), lambda: load_bundle_map(data), lambda: load_bundle_pem(data, TD)):
        try:
            read()
        except InvalidRequest:
            continue


def key_of(index: int) -> str:
    return X509Authority(CAS[index].der).key_id


indices = st.integers(0, 2)
commands = st.one_of(
    st.tuples(st.just("with_x509_authority"), indices.map(lambda n: CAS[n].der)),
    st.tuples(st.sampled_from(["without_x509_authority", "with_x509_tainted"]), indices.map(key_of)),
    st.tuples(st.just("with_jwt_authority"), indices.map(lambda n: JwtAuthority(f"k{n}", SPKIS[0]))),
    st.tuples(st.sampled_from(["without_jwt_authority", "with_jwt_tainted"]), indices.map("k{}".format)),
    st.tuples(st.just("with_refresh_hint"), st.sampled_from([0, 60, 300])),
)


@given(st.lists(commands, max_size=15))
def test_the_sequence_never_decreases_and_moves_exactly_with_the_content(history):
    """TDB-06, TDB-07."""
    bundle = TrustBundle(TD)
    for method, argument in history:
        changed = getattr(bundle, method)(argument)
        same = replace(changed, sequence=bundle.sequence) == bundle
        assert changed.sequence == bundle.sequence + (not same)
        assert (changed is bundle) == same
        bundle = changed


@given(st.lists(bundles(), min_size=1, max_size=6))
def test_fetched_bundles_never_move_the_sequence_back(fetched):
    """FED-09."""
    stored = TrustBundle(TD)
    for bundle in fetched:
        outcome = succeed(stored, bundle)
        assert outcome.bundle.sequence >= stored.sequence
        assert outcome.bundle is stored or outcome.bundle.x509_authorities == bundle.x509_authorities
        stored = outcome.bundle


@given(st.lists(st.sampled_from(["a.test", "b.test", "example.org"]), max_size=6))
def test_a_set_answers_each_domain_with_its_own_bundle(names):
    bundles = BundleSet(TrustBundle(TD))
    for sequence, name in enumerate(names):
        bundles = bundles.with_bundle(TrustBundle(TrustDomain(name), sequence=sequence))
    for bundle in bundles.all():
        assert bundles.get(bundle.trust_domain) is bundle
    assert {bundle.trust_domain.name for bundle in bundles.all()} == {*names, "example.org"}


paths = st.from_regex(r"(/[a-zA-Z0-9_-]{1,20}){1,5}", fullmatch=True)


@settings(max_examples=40)
@given(paths, st.sampled_from([CAS[0], CHAIN_CA]), st.sampled_from(["client", "server", None]))
def test_what_the_authority_issues_is_verified(path, ca, purpose):
    spiffe_id = SpiffeId(TD, path)
    issued = ca.issue(spiffe_id)
    verified = verify_x509_svid(issued.chain, TRUSTED, now=NOW, purpose=purpose)
    assert verified.spiffe_id == spiffe_id == issued.svid.spiffe_id
    assert verified.anchor_der == CAS[0].der


@settings(max_examples=300)
@given(st.integers(0, len(SVID.chain) - 1), st.data())
def test_a_chain_with_one_spoiled_byte_is_refused(which, data):
    """N-X-05, S29: every byte of every certificate counts."""
    assert verify_x509_svid(SVID.chain, TRUSTED, now=NOW)
    der = bytearray(SVID.chain[which])
    position = data.draw(st.integers(0, len(der) - 1))
    der[position] ^= data.draw(st.integers(1, 255))
    chain = [bytes(der) if index == which else one for index, one in enumerate(SVID.chain)]
    with pytest.raises(VerificationFailed):
        verify_x509_svid(chain, TRUSTED, now=NOW)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_are_refused_as_a_chain(chain):
    """S29."""
    with pytest.raises(VerificationFailed):
        verify_x509_svid(chain, TRUSTED, now=NOW)


@settings(max_examples=300)
@given(st.data())
def test_a_request_with_one_spoiled_byte_is_refused(data):
    """N-C-03, S29."""
    assert parse_csr(CSR)
    der = bytearray(CSR)
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidCsr):
        parse_csr(bytes(der))


@given(st.integers(1, 10**8), st.floats(-1, 1))
def test_renewal_lies_between_45_and_55_percent_of_the_lifetime(seconds, jitter):
    life = Lifetime(NOW, NOW + timedelta(seconds=seconds))
    when = renew_at(life.start, life.end, jitter=jitter)
    share = (when - life.start) / life.duration
    assert 0.4499 <= share <= 0.5501 or when == NOW + timedelta(seconds=1)
