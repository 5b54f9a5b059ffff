"""Pre-encoded bodies are the builder's, byte for byte, and none that says anything else gets a ticket (issue: S39)."""

import secrets
from dataclasses import replace

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_server.domain.body import Bodies, Body, fits
from identity_server.domain.issuance import der_element, parent_of, prepare, sign
from identity_server.domain.lint import LintFailed, contents, elements, lint
from identity_server.domain.profiles import LEAF_SUBJECT, Profile, plan_leaf, subject_name
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, subject_key_id
from spiffe_core.spiffe_id import SpiffeId
from spiffe_core.x509_verify import verify_x509_svid
from tests.authority import SpiffeTestCA, trusting

CA = SpiffeTestCA("example.org")
PARENT = parent_of(CA.der)
NOW = int(CA.now.timestamp())
KEYS = [generate(KeyKind.EC_P256).public_key() for _ in range(3)]
PATHS = st.from_regex(r"(/[a-zA-Z0-9._-]{1,30}){1,8}", fullmatch=True).filter(
    lambda path: not path.startswith("/spire") and all(part not in {".", ".."} for part in path.split("/"))
)


def plan_for(path="/web", *, key=KEYS[0], ttl=3600, serial=12345, now=NOW, **more):
    spiffe_id = SpiffeId(CA.trust_domain, path)
    return plan_leaf(Profile.WORKLOAD, PARENT, spiffe_id, key, ttl=ttl, now=now, serial=serial, **more)


def learnt():
    plan = plan_for()
    return Body.learn(plan, prepare(plan).redeem())


BODY = learnt()


@given(PATHS, st.integers(1, 2**128 - 1), st.integers(1, 24 * 3600), st.sampled_from(KEYS), st.integers(-(10**8), 3000))
@settings(deadline=None)
def test_a_body_is_what_the_builder_encodes_and_passes_the_full_lint(path, serial, ttl, key, shift):
    """Serials of every length, every second, every key and path: one encoding."""
    plan = plan_for(path, key=key, ttl=ttl, serial=serial, now=NOW + shift)
    slow, fast = prepare(plan).redeem(), BODY.prepare(plan).redeem()
    assert slow == fast
    der = der_element(0x30, fast + elements(contents(fast))[2] + bytes.fromhex("03020000"))
    assert lint(der, plan, elements(contents(fast))[2]) == ()


@pytest.mark.parametrize("length", [127, 128, 255, 256, 2000])
def test_long_names_and_their_length_bytes(length):
    """ID-17: up to 2,048 bytes end to end."""
    plan = plan_for("/" + "x" * (length - 1))
    assert BODY.prepare(plan).redeem() == prepare(plan).redeem()


def test_what_is_signed_verifies_against_the_bundle():
    bodies = Bodies()
    for number in range(3):
        plan = plan_for(f"/w/{number}", serial=secrets.randbits(127) + 1)
        leaf = sign(bodies.prepare(plan), CA.key)
        found = verify_x509_svid([leaf], trusting(CA.bundle()), now=CA.now)
        assert str(found.spiffe_id) == f"spiffe://example.org/w/{number}"
        assert x509.load_der_x509_certificate(leaf).serial_number == plan.serial


UNUSUAL = {
    "DNS names": lambda: plan_for(dns_names=("web.example.org",)),
    "a subject of its own": lambda: plan_for(subject=subject_name(organization=("Acme",))),
    "an equal subject that is not ours": lambda: plan_for(subject=x509.Name(list(LEAF_SUBJECT))),
    "a P-384 key": lambda: plan_for(key=generate(KeyKind.EC_P384).public_key()),
    "an RSA key": lambda: plan_for(key=generate(KeyKind.RSA_2048).public_key()),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_is_out_of_the_ordinary_goes_through_the_builder(case):
    plan = UNUSUAL[case]()
    assert not fits(plan)
    bodies = Bodies()
    bodies.prepare(plan_for())
    assert bodies.prepare(plan).redeem() == prepare(plan).redeem()


def test_dates_from_2050_on_go_through_the_builder():
    """GeneralizedTime (RFC 5280 section 4.1.2.5)."""
    assert fits(plan_for())
    assert not fits(replace(plan_for(), not_after=2524608000))


def test_another_authority_gets_a_body_of_its_own():
    other = SpiffeTestCA("example.org")
    bodies = Bodies()
    bodies.prepare(plan_for())
    plan = replace(plan_for(), parent=parent_of(other.der))
    assert bodies.prepare(plan).redeem() == prepare(plan).redeem()
    with pytest.raises(LintFailed):
        BODY.prepare(plan)


def spoil(tbs, old, new):
    assert tbs.count(old) >= 1
    return tbs.replace(old, new, 1)


SPOILED = {
    "another key": lambda tbs, _: spoil(tbs, spki_der(KEYS[0]), spki_der(KEYS[1])),
    "another name": lambda tbs, _: spoil(tbs, b"example.org/web", b"example.org/adm"),
    "another domain": lambda tbs, _: spoil(tbs, b"example.org/web", b"example.com/web"),
    "another kind of name": lambda tbs, _: spoil(tbs, b"\x86\x18spiffe", b"\x82\x18spiffe"),
    "a critical bit more": lambda tbs, _: spoil(tbs, bytes.fromhex("300c0603551d13"), bytes.fromhex("300c0603551d14")),
    "another serial": lambda tbs, _: spoil(tbs, bytes.fromhex("02023039"), bytes.fromhex("02023038")),
    "another key id": lambda tbs, _: spoil(tbs, subject_key_id(KEYS[0]), bytes(20)),
    "another authority key id": lambda tbs, _: spoil(tbs, PARENT.key_id, bytes(20)),
    "a CA": lambda tbs, _: spoil(
        tbs, bytes.fromhex("0603551d130101ff04023000"), bytes.fromhex("0603551d130101ff04020101")
    ),
    "keyCertSign": lambda tbs, _: spoil(tbs, bytes.fromhex("03020780"), bytes.fromhex("03020784")),
    "another issuer": lambda tbs, _: spoil(tbs, b"SPIFFE", b"SPIFFF"),
    "another year": lambda tbs, _: spoil(tbs, elements(contents(elements(contents(tbs))[4]))[1][2:4], b"49"),
    "cut off": lambda tbs, _: tbs[:-1],
    "bytes after it": lambda tbs, _: tbs + b"\0",
    "nothing": lambda *_: b"",
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_body_that_says_something_else_is_found_out(case):
    """S39: each fault of an encoder, one at a time; the unspoiled body passes."""
    plan = plan_for()
    tbs = BODY.encode(plan)
    assert list(BODY.lint(tbs, plan)) == []
    assert list(BODY.lint(SPOILED[case](tbs, plan), plan)) != []


@given(st.data())
@settings(deadline=None)
def test_no_flipped_byte_passes(data):
    """Every byte of a body is either constant, planned, or the length of one that is."""
    plan = plan_for()
    tbs = bytearray(BODY.encode(plan))
    at = data.draw(st.integers(0, len(tbs) - 1))
    tbs[at] ^= data.draw(st.integers(1, 255))
    assert list(BODY.lint(bytes(tbs), plan)) != []


@pytest.mark.parametrize("spoiled", [b"\t9", b" 9", b"+9"])
def test_a_date_has_digits_only(spoiled):
    """RFC 5280 section 4.1.2.5.1: what `int` would pass over is no date."""
    tbs = BODY.encode(plan_for())
    at = tbs.index(b"\x17\x0d") + 2
    assert list(BODY.lint(tbs[:at] + spoiled + tbs[at + 2 :], plan_for())) != []


PLANS = {
    "N-C-07 the issuer's own key": lambda plan: replace(plan, spki=PARENT.spki, key_id=PARENT.key_id),
    "S37 outlives its issuer": lambda plan: replace(plan, not_after=PARENT.not_after + 1),
    "S37 ends before it starts": lambda plan: replace(plan, not_after=plan.not_before),
    "X509-04 no path": lambda plan: replace(plan, spiffe_id=CA.trust_domain.id),
    "X509-10 another domain": lambda plan: replace(plan, spiffe_id=SpiffeId.parse("spiffe://fed.test/web")),
    "serial too long": lambda plan: replace(plan, serial=2**128),
    "serial not positive": lambda plan: replace(plan, serial=0),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_breaks_the_profile_gets_no_ticket(case):
    with pytest.raises(LintFailed):
        BODY.prepare(PLANS[case](plan_for()))


@pytest.mark.parametrize("case", SPOILED)
def test_the_shape_of_a_body_finds_every_fault_as_well(case):
    """S39: the one-pass reading accepts the body and none of its spoiled forms."""
    plan = plan_for()
    tbs = BODY.encode(plan)
    assert BODY.shape.says(tbs, plan)
    assert not BODY.shape.says(SPOILED[case](tbs, plan), plan)


@given(st.data())
@settings(deadline=None)
def test_the_shape_accepts_the_planned_body_and_no_other_bytes(data):
    """S39: bytes changed, put in and taken out, anywhere; DER has one encoding of a plan."""
    plan = plan_for(data.draw(PATHS), serial=data.draw(st.integers(1, 2**128 - 1)))
    tbs = BODY.encode(plan)
    assert BODY.shape.says(tbs, plan)
    start = data.draw(st.integers(0, len(tbs)))
    end = data.draw(st.integers(start, min(len(tbs), start + 4)))
    other = tbs[:start] + data.draw(st.binary(max_size=5)) + tbs[end:]
    assert BODY.shape.says(other, plan) == (other == tbs)
