"""What a client believes of an X.509 message: every N-XW case about its content, and the good counterparts."""

import base64
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from spiffe_core.crypto.keys import from_pkcs8
from spiffe_core.errors import IdentityError, InvalidCertificate
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA, tlv
from workload_api.x509_context import split_der, x509_context

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CA = SpiffeTestCA(now=NOW)
OTHER_ROOT = SpiffeTestCA(now=NOW)
FOREIGN = SpiffeTestCA("fed.test", now=NOW)
GOOD = CA.issue("spiffe://example.org/w")


@dataclass(frozen=True)
class Received:
    spiffe_id: str = "spiffe://example.org/w"
    x509_svid: bytes = b"".join(GOOD.chain)
    x509_svid_key: bytes = GOOD.key.reveal()
    bundle: bytes = CA.der
    hint: str = ""


def issued(ca=CA, spiffe_id="spiffe://example.org/w", **spoil):
    made = ca.issue(spiffe_id, **spoil)
    return Received(spiffe_id, b"".join(made.chain), made.key.reveal(), CA.der)


def pem(der, label="CERTIFICATE"):
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


def key_as(form, encryption=None, encoding=Encoding.DER):
    return from_pkcs8(GOOD.key).private_bytes(encoding, form, encryption or NoEncryption())


def test_a_good_message_is_read_whole():
    second = CA.issue("spiffe://example.org/second")
    message = [
        Received(hint="internal"),
        Received("spiffe://example.org/second", b"".join(second.chain), second.key.reveal(), CA.der),
    ]
    context = x509_context(message, {"spiffe://fed.test": FOREIGN.der}, NOW)
    assert [str(svid.spiffe_id) for svid in context.svids] == ["spiffe://example.org/w", "spiffe://example.org/second"]
    assert context.default is context.svids[0]
    assert context.svids[0].chain == GOOD.chain
    assert context.bundles.own.x509_roots == (CA.der,)
    assert context.bundles.get(TrustDomain("fed.test")).x509_roots == (FOREIGN.der,)
    assert context.hinted("internal") is context.svids[0]
    assert context.hinted("external") is None
    assert "private" in repr(context)


def test_intermediates_and_several_roots_are_read():
    """WAPI-18, WAPI-20."""
    made = CA.intermediate().issue("spiffe://example.org/w")
    received = Received(x509_svid=b"".join(made.chain), x509_svid_key=made.key.reveal(), bundle=CA.der + OTHER_ROOT.der)
    context = x509_context([received], {}, NOW)
    assert len(context.default.chain) == 2
    assert len(context.bundles.own.x509_roots) == 2


def test_an_empty_federated_bundle_trusts_nobody():
    context = x509_context([Received()], {"spiffe://fed.test": b""}, NOW)
    assert context.bundles.get(TrustDomain("fed.test")).x509_roots == ()


def test_a_federated_bundle_that_is_absent_is_not_remembered():
    """N-XW-10, WAPI-13: a message is the whole truth."""
    x509_context([Received()], {"spiffe://fed.test": FOREIGN.der}, NOW)
    assert x509_context([Received()], {}, NOW).bundles.get(TrustDomain("fed.test")) is None


def test_of_two_equal_hints_the_first_counts():
    """N-XW-09, WAPI-25."""
    context = x509_context([Received(hint="x"), Received(hint="x"), Received(hint="y")], {}, NOW)
    assert [svid.hint for svid in context.svids] == ["x", "", "y"]


def two_uris():
    return issued(uris=("spiffe://example.org/w", "spiffe://example.org/v"))


def issued_ca():
    made = CA.issue("spiffe://example.org/w", ca=True)
    return replace(Received(), x509_svid=b"".join(made.chain), x509_svid_key=made.key.reveal())


BAD_SVIDS = {
    "N-XW-02 no spiffe_id": lambda: replace(Received(), spiffe_id=""),
    "N-XW-02 no x509_svid": lambda: replace(Received(), x509_svid=b""),
    "N-XW-02 no x509_svid_key": lambda: replace(Received(), x509_svid_key=b""),
    "N-XW-02 no bundle": lambda: replace(Received(), bundle=b""),
    "N-XW-03 PEM": lambda: replace(Received(), x509_svid=pem(GOOD.chain[0])),
    "N-XW-03 truncated": lambda: replace(Received(), x509_svid=GOOD.chain[0][:-1]),
    "N-XW-03 a byte too many": lambda: replace(Received(), x509_svid=GOOD.chain[0] + b"\x00"),
    "N-XW-03 root first": lambda: replace(Received(), x509_svid=CA.der + GOOD.chain[0]),
    "N-XW-03 a second leaf that did not sign the first": lambda: replace(
        Received(), x509_svid=GOOD.chain[0] + CA.issue().chain[0]
    ),
    "N-XW-04 SEC1": lambda: replace(Received(), x509_svid_key=key_as(PrivateFormat.TraditionalOpenSSL)),
    "N-XW-04 PEM": lambda: replace(Received(), x509_svid_key=key_as(PrivateFormat.PKCS8, encoding=Encoding.PEM)),
    "N-XW-04 encrypted": lambda: replace(
        Received(), x509_svid_key=key_as(PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    ),
    "N-XW-04 garbage": lambda: replace(Received(), x509_svid_key=b"\x30\x03abc"),
    "N-XW-05 another key": lambda: replace(Received(), x509_svid_key=CA.issue().key.reveal()),
    "N-XW-06 another path": lambda: replace(Received(), spiffe_id="spiffe://example.org/v"),
    "N-XW-06 a prefix": lambda: replace(Received(), spiffe_id="spiffe://example.org/ww"),
    "N-XW-06 another trust domain": lambda: replace(Received(), spiffe_id="spiffe://other.org/w"),
    "N-XW-06 not a SPIFFE ID": lambda: replace(Received(), spiffe_id="https://example.org/w"),
    "N-XW-07 expired": lambda: issued(not_before=NOW - timedelta(hours=2), not_after=NOW - timedelta(seconds=1)),
    "N-XW-07 not yet valid": lambda: issued(not_before=NOW + timedelta(seconds=60)),
    "N-XW-07 CA": issued_ca,
    "N-XW-07 may sign certificates": lambda: issued(usage=frozenset({"digital_signature", "key_cert_sign"})),
    "N-XW-07 two URI SANs": two_uris,
    "N-XW-07 a URI that is no SPIFFE ID": lambda: issued(uris=("https://example.org/w",)),
    "N-XW-07 of another root": lambda: issued(OTHER_ROOT),
    "N-XW-07 of another domain's root": lambda: replace(issued(FOREIGN), bundle=CA.der),
    "N-XW-08 PEM bundle": lambda: replace(Received(), bundle=pem(CA.der)),
    "N-XW-08 truncated bundle": lambda: replace(Received(), bundle=CA.der[:-1]),
    "the same root twice": lambda: replace(Received(), bundle=CA.der + CA.der),
}


@pytest.mark.parametrize("case", BAD_SVIDS)
def test_a_bad_svid_refuses_the_whole_message(case):
    bad = BAD_SVIDS[case]()
    x509_context([Received()], {}, NOW)
    with pytest.raises(IdentityError) as refusal:
        x509_context([Received(), bad], {}, NOW)
    assert bad.x509_svid_key == b"" or bad.x509_svid_key.hex() not in refusal.value.public


@pytest.mark.parametrize("count", [0, 1001])
def test_the_number_of_svids_is_bounded(count):
    """N-XW-01, WAPI-16."""
    with pytest.raises(IdentityError, match="1 to 1000"):
        x509_context([Received()] * count, {}, NOW)


def test_svids_of_one_domain_agree_on_its_bundle():
    with pytest.raises(IdentityError, match="differs"):
        x509_context([Received(), replace(Received(), bundle=CA.der + OTHER_ROOT.der)], {}, NOW)


BAD_FEDERATED = {
    "N-XW-08 no scheme": {"fed.test": FOREIGN.der},
    "N-XW-08 with a path": {"spiffe://fed.test/x": FOREIGN.der},
    "N-XW-08 upper case": {"spiffe://FED.test": FOREIGN.der},
    "N-XW-08 malformed": {"spiffe://": FOREIGN.der},
    "N-XW-08 empty key": {"": FOREIGN.der},
    "N-XW-08 the own domain": {"spiffe://example.org": CA.der},
    "N-XW-08 the own domain with a foreign root": {"spiffe://example.org": FOREIGN.der},
    "a bundle that is not DER": {"spiffe://fed.test": b"-----BEGIN"},
    "a bundle that is no certificate": {"spiffe://fed.test": b"\x30\x03abc"},
    "one good and one bad": {"spiffe://fed.test": FOREIGN.der, "bad": FOREIGN.der},
}


@pytest.mark.parametrize("case", BAD_FEDERATED)
def test_a_bad_federated_bundle_refuses_the_whole_message(case):
    with pytest.raises(IdentityError):
        x509_context([Received()], BAD_FEDERATED[case], NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"0",
        b"\x30\x01",
        b"\x31\x00",
        b"\x30\x80\x00\x00",
        b"\x30\x81",
        b"\x30\x81\x7f" + b"x" * 127,
        b"\x30\x82\x00\x80" + b"x" * 128,
        b"\x30\x85\x00\x00\x00\x00\x01x",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x00" * 1001,
    ],
)
def test_what_is_not_a_row_of_der_is_refused(data):
    """Indefinite, non-shortest and impossible lengths, and too many elements."""
    with pytest.raises(InvalidCertificate, match="bundle"):
        split_der(data, field="bundle")


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_cutting_is_the_inverse_of_joining(parts):
    elements = tuple(tlv(0x30, part) for part in parts)
    assert split_der(b"".join(elements), field="x") == elements


@given(st.binary(max_size=300))
def test_cutting_loses_nothing(data):
    """S29."""
    try:
        assert b"".join(split_der(data, field="x")) == data
    except InvalidCertificate:
        return
