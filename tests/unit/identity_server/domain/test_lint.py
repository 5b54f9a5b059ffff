"""Each lint rule finds the fault it is named for (S39). The spoiled certificates are made by an independent builder."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity_server.domain.issuance import parent_of
from identity_server.domain.lint import MAX_CERTIFICATE_BYTES, LintFailed, contents, elements, lint
from identity_server.domain.profiles import Plan, Profile, plan_leaf, subject_name
from spiffe_core.crypto.keys import KeyKind, generate, spki_der, subject_key_id
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import CA_USAGE, SpiffeTestCA, certify

T0 = datetime(2030, 1, 1, tzinfo=UTC)
NOW = int(T0.timestamp())
TD = TrustDomain("example.org")
ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
AUTHORITY = SpiffeTestCA("example.org", name="1", now=T0)
PARENT = parent_of(AUTHORITY.der)
KEY = generate(KeyKind.EC_P256)
RSA = generate(KeyKind.RSA_2048)
OTHER_ID = b"\x01" * 20


def leaf(**spoil: Any) -> tuple[bytes, Plan]:
    """A leaf made elsewhere, and the plan it should follow (its serial is the certificate's)."""
    key = spoil.pop("key", KEY)
    profile: dict[str, Any] = {
        "uris": ("spiffe://example.org/web",),
        "dns": ("a.example.org",),
        "subject": (("C", "US"), ("O", "SPIRE"), ("CN", "a.example.org")),
    }
    der = certify(key, signer=AUTHORITY.key, issuer=AUTHORITY.certificate, now=T0, **{**profile, **spoil})
    serial = x509.load_der_x509_certificate(der).serial_number
    plan = plan_leaf(
        Profile.WORKLOAD,
        PARENT,
        SpiffeId(TD, "/web"),
        key.public_key(),
        ttl=3_600,
        now=NOW,
        serial=serial,
        dns_names=("a.example.org",),
    )
    return der, plan


def authority(**spoil: Any) -> tuple[bytes, Plan]:
    der = SpiffeTestCA("example.org", name="1", now=T0, key=KEY, **spoil).der
    parsed = x509.load_der_x509_certificate(der)
    plan = Plan(
        profile=Profile.CA,
        spiffe_id=TD.id,
        public_key=KEY.public_key(),
        spki=spki_der(KEY.public_key()),
        key_id=subject_key_id(KEY.public_key()),
        subject=parsed.subject,
        dns_names=(),
        serial=parsed.serial_number,
        not_before=NOW - 10,
        not_after=NOW + 86_400,
        parent=None,
    )
    return der, plan


def rules(der: bytes, plan: Plan, algorithm: bytes = ECDSA_SHA256) -> set[str]:
    return {finding.rule for finding in lint(der, plan, algorithm)}


def test_a_good_leaf_and_a_good_authority_pass() -> None:
    assert (set(), set()) == (rules(*leaf()), rules(*authority()))


LEAF = frozenset({"digital_signature"})
LEAF_FAULTS = {
    "X509-01 no URI": ({"uris": ()}, "X509-01"),
    "X509-01 two URIs": ({"uris": ("spiffe://example.org/web", "spiffe://example.org/b")}, "X509-01"),
    "X509-01 another URI scheme beside it": ({"uris": ("spiffe://example.org/web", "https://x.test")}, "X509-01"),
    "X509-01 no names at all": ({"uris": (), "dns": ()}, "X509-01"),
    "X509-34 another workload's id": ({"uris": ("spiffe://example.org/other",)}, "X509-34"),
    "X509-34 another trust domain's id": ({"uris": ("spiffe://other.test/web",)}, "X509-34"),
    "X509-03 a missing DNS name": ({"dns": ()}, "X509-03"),
    "X509-03 a surplus DNS name": ({"dns": ("a.example.org", "b.example.org")}, "X509-03"),
    "X509-03 an e-mail address": ({"other_names": (x509.RFC822Name("a@example.org"),)}, "X509-03"),
    "X509-05 critical with a subject": ({"san_critical": True}, "X509-05"),
    "X509-15 cA true": ({"ca": True}, "X509-15"),
    "X509-15 no basic constraints": ({"ca": None}, "X509-15"),
    "X509-18 no key usage": ({"usage": None}, "X509-18"),
    "X509-19 key usage not critical": ({"usage_critical": False}, "X509-19"),
    "X509-22 no digitalSignature": ({"usage": frozenset({"key_agreement"})}, "X509-22/-23/-24"),
    "X509-23 an EC key that enciphers": ({"usage": LEAF | {"key_encipherment"}}, "X509-22/-23/-24"),
    "X509-23 an RSA key that does not": ({"key": RSA, "usage": LEAF}, "X509-22/-23/-24"),
    "X509-24 keyCertSign": ({"usage": LEAF | {"key_cert_sign"}}, "X509-22/-23/-24"),
    "X509-24 cRLSign": ({"usage": LEAF | {"crl_sign"}}, "X509-22/-23/-24"),
    "X509-26 no purposes": ({"eku": None}, "X509-26"),
    "X509-28 server only": ({"eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "X509-28"),
    "X509-28 a third purpose": (
        {"eku": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING)},
        "X509-28",
    ),
    "RFC 5280 4.2 an unplanned extension": ({"extensions": ((x509.OCSPNoCheck(), False),)}, "RFC5280-4.2"),
    "X509-16 name constraints": (
        {"constraints": x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None)},
        "RFC5280-4.2",
    ),
    "RFC 5280 4.2 no key ids": ({"key_ids": False}, "RFC5280-4.2"),
    "RFC 5280 4.2 another authority's key id": ({"authority_key_id": OTHER_ID}, "RFC5280-4.2"),
    "RFC 5280 4.1 another subject": ({"subject": (("C", "US"), ("O", "SPIRE"))}, "RFC5280-4.1"),
    "RFC 5280 4.1 another issuer": ({"issuer_name": subject_name()}, "RFC5280-4.1"),
    "RFC 5280 4.1 SHA-384 from a P-256 key": ({"algorithm": hashes.SHA384()}, "RFC5280-4.1"),
    "S37 one second longer": ({"ttl": timedelta(seconds=3_601)}, "S37"),
    "S37 one second shorter": ({"ttl": timedelta(seconds=3_599)}, "S37"),
    "S37 an earlier start": ({"not_before": T0 - timedelta(seconds=11)}, "S37"),
}


@pytest.mark.parametrize("name", LEAF_FAULTS)
def test_a_spoiled_leaf_is_not_signed(name: str) -> None:
    spoil, rule = LEAF_FAULTS[name]
    assert rule in rules(*leaf(**spoil))


CA_FAULTS = {
    "X509-01 no URI": ({"uris": ()}, "X509-01"),
    "X509-09 a path": ({"uris": ("spiffe://example.org/ca",)}, "X509-34"),
    "X509-14 cA false": ({"ca": False}, "X509-14"),
    "X509-14 a path length": ({"path_length": 0}, "X509-14"),
    "X509-14 no basic constraints": ({"ca": None}, "X509-14"),
    "X509-18 no key usage": ({"usage": None}, "X509-18"),
    "X509-19 key usage not critical": ({"usage_critical": False}, "X509-19"),
    "X509-20 no keyCertSign": ({"usage": frozenset({"crl_sign"})}, "X509-20/-25"),
    "X509-25 digitalSignature": ({"usage": CA_USAGE | {"digital_signature"}}, "X509-20/-25"),
    "X509-29 purposes": ({"eku": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)}, "X509-29"),
    "X509-05 critical names": ({"san_critical": True}, "X509-05"),
    "RFC 5280 4.2 an authority key id": (
        {"extensions": ((x509.AuthorityKeyIdentifier(OTHER_ID, None, None), False),)},
        "RFC5280-4.2",
    ),
}


@pytest.mark.parametrize("name", CA_FAULTS)
def test_a_spoiled_authority_is_not_signed(name: str) -> None:
    spoil, rule = CA_FAULTS[name]
    assert rule in rules(*authority(**spoil))


PLAN_FAULTS = {
    "X509-04 a leaf without a path": ({"spiffe_id": TD.id}, "X509-04"),
    "X509-10 a leaf of another domain": ({"spiffe_id": SpiffeId(TrustDomain("other.test"), "/web")}, "X509-10"),
    "RFC 5280 4.1 another serial": ({"serial": 3}, "RFC5280-4.1"),
    "RFC 5280 4.1 another key": ({"spki": b"x"}, "RFC5280-4.1"),
    "RFC 5280 4.2 another key's id": ({"key_id": OTHER_ID}, "RFC5280-4.2"),
    "S37 after its issuer": ({"parent": replace(PARENT, not_after=NOW)}, "S37"),
    "S37 before it starts": ({"not_after": NOW - 20}, "S37"),
    "N-C-07 the issuer's key": ({"parent": replace(PARENT, spki=spki_der(KEY.public_key()))}, "N-C-07"),
}


@pytest.mark.parametrize("name", PLAN_FAULTS)
def test_a_plan_that_may_not_be_is_found(name: str) -> None:
    change, rule = PLAN_FAULTS[name]
    der, plan = leaf()
    assert rule in rules(der, replace(plan, **change))


def test_an_authority_planned_with_a_path_is_found() -> None:
    """X509-09."""
    der, plan = authority(uris=("spiffe://example.org/ca",))
    assert {"X509-09"} == rules(der, replace(plan, spiffe_id=SpiffeId(TD, "/ca")))


def test_the_two_algorithm_identifiers_must_be_the_signers() -> None:
    """RFC 5280 section 4.1.1.2: also when only the outer one differs."""
    der, plan = leaf()
    assert {"RFC5280-4.1"} == rules(der, plan, bytes.fromhex("300a06082a8648ce3d040303"))
    tbs, algorithm, signature = elements(contents(der))
    changed = tbs + algorithm.replace(b"\x04\x03\x02", b"\x04\x03\x03") + signature
    outer = der[:2] + len(changed).to_bytes(2) + changed
    assert {"RFC5280-4.1"} == rules(outer, plan)


@pytest.mark.parametrize(
    "bad",
    [b"", b"\x30", b"\x30\x80\x00\x00", b"\x30\x85\x01\x00\x00\x00\x00", b"\x30\x05ab", b"\x30\x00", b"\x30\x82\x01"],
)
def test_what_cannot_be_parsed_is_not_signed(bad: bytes) -> None:
    assert {"RFC5280-4.1"} == rules(bad, leaf()[1])


def test_a_certificate_without_extensions_is_not_signed() -> None:
    der, plan = leaf(uris=(), dns=(), ca=None, usage=None, eku=None, key_ids=False)
    assert {"RFC5280-4.1", "RFC5280-4.2", "X509-01", "X509-15", "X509-18", "X509-26"} == rules(der, plan)


def test_all_findings_reach_the_log_and_none_the_caller() -> None:
    der, plan = leaf(eku=None, usage_critical=False)
    failed = LintFailed(lint(der, plan, ECDSA_SHA256))
    assert failed.facts["findings"] == [
        "RFC5280-4.2: extensions are missing or surplus",
        "X509-19: key usage is not critical",
        "X509-26: there is no extended key usage",
    ]
    assert "X509" not in failed.public


def test_trailing_bytes_and_size_are_found() -> None:
    der, plan = leaf()
    assert {"RFC5280-4.1"} == rules(der + b"\x00", plan)
    assert {"RFC5280-4.1"} == rules(der + bytes(MAX_CERTIFICATE_BYTES), plan)
