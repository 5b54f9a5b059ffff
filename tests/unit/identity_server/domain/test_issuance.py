"""Certificates as they are issued, by profile: X509-01 to X509-28, S20, S37, S39, N-C-07 to N-C-14."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from identity_server.domain.issuance import admit, parent_of, prepare, sign
from identity_server.domain.lint import LintFailed, contents, elements
from identity_server.domain.profiles import MAX_SERIAL, Parent, Plan, Profile, plan_ca, plan_leaf, subject_name
from spiffe_core.crypto.keys import KeyKind, PrivateKey, generate
from spiffe_core.errors import CorruptState, InvalidCertificate, InvalidRequest, Kind, Unavailable
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from tests.authority import SpiffeTestCA

TD = TrustDomain("example.org")
NOW = 1_893_456_000
DAY = 86_400
CA_KEYS = {kind: generate(kind) for kind in (KeyKind.EC_P256, KeyKind.EC_P384, KeyKind.RSA_2048)}
CA_KEY = CA_KEYS[KeyKind.EC_P256]
LEAF_KEY = generate(KeyKind.EC_P256).public_key()
RSA_LEAF = rsa.generate_private_key(65537, 2048).public_key()


def make_ca(key: PrivateKey = CA_KEY, **over: Any) -> bytes:
    values: dict[str, Any] = {"lifetime": DAY, "now": NOW, "serial": 77, **over}
    return sign(prepare(plan_ca(TD, key.public_key(), **values)), key)


CA_DER = make_ca()
CA = x509.load_der_x509_certificate(CA_DER)
PARENT = parent_of(CA_DER)


def leaf_plan(
    profile: Profile = Profile.WORKLOAD, path: str = "/web", key: Any = LEAF_KEY, parent: Parent = PARENT, **over: Any
) -> Plan:
    values: dict[str, Any] = {"ttl": 3_600, "now": NOW, "serial": 5, **over}
    return plan_leaf(profile, parent, SpiffeId(parent.trust_domain, path), key, **values)


def issue(*args: Any, **over: Any) -> x509.Certificate:
    return x509.load_der_x509_certificate(sign(prepare(leaf_plan(*args, **over)), CA_KEY))


def extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def usages(certificate: x509.Certificate) -> set[str]:
    usage = extension(certificate, x509.KeyUsage).value
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    )
    return {name for name in names if getattr(usage, name)}


PATHS = {Profile.WORKLOAD: "/web", Profile.AGENT: "/spire/agent/join_token/x", Profile.SERVER: "/spire/server"}


@pytest.mark.parametrize("profile", PATHS)
def test_a_leaf_is_what_the_standard_asks_for(profile: Profile) -> None:
    """X509-01, -04, -15, -18, -19, -22 to -24, -26, -28; spire_features section 14."""
    leaf = issue(profile, PATHS[profile])
    names = extension(leaf, x509.SubjectAlternativeName)
    assert [x509.UniformResourceIdentifier(f"spiffe://example.org{PATHS[profile]}")] == list(names.value)
    assert names.critical is False
    constraints = extension(leaf, x509.BasicConstraints)
    assert (x509.BasicConstraints(ca=False, path_length=None), True) == (constraints.value, constraints.critical)
    assert {"digital_signature"} == usages(leaf)
    assert extension(leaf, x509.KeyUsage).critical
    purposes = extension(leaf, x509.ExtendedKeyUsage)
    assert list(purposes.value) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert x509.SubjectKeyIdentifier.from_public_key(LEAF_KEY) == extension(leaf, x509.SubjectKeyIdentifier).value
    above = extension(leaf, x509.AuthorityKeyIdentifier).value
    assert (PARENT.key_id, None, None) == (
        above.key_identifier,
        above.authority_cert_issuer,
        above.authority_cert_serial_number,
    )
    assert (",".join(part.rfc4514_string() for part in leaf.subject.rdns) == "C=US,O=SPIRE", CA.subject) == (
        True,
        leaf.issuer,
    )
    assert (x509.Version.v3, 5, 6) == (leaf.version, leaf.serial_number, len(leaf.extensions))
    leaf.verify_directly_issued_by(CA)


def test_an_authority_is_what_the_standard_asks_for() -> None:
    """X509-08, -09, -14, -18 to -21, -25, -29; subject with the decimal serial as SPIRE writes it."""
    names = extension(CA, x509.SubjectAlternativeName)
    assert [x509.UniformResourceIdentifier("spiffe://example.org")] == list(names.value)
    constraints = extension(CA, x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, None, True)
    assert ({"key_cert_sign", "crl_sign"}, True) == (usages(CA), extension(CA, x509.KeyUsage).critical)
    assert (
        x509.SubjectKeyIdentifier.from_public_key(CA_KEY.public_key()) == extension(CA, x509.SubjectKeyIdentifier).value
    )
    assert len(CA.extensions) == 4, "no AKI, no EKU"
    assert [(part.rfc4514_attribute_name, part.value) for part in CA.subject] == [
        ("C", "US"),
        ("O", "SPIFFE"),
        ("2.5.4.5", "77"),
    ]
    assert CA.subject == CA.issuer
    CA.verify_directly_issued_by(CA)


@pytest.mark.parametrize("kind", CA_KEYS)
@pytest.mark.parametrize("leaf_key", [LEAF_KEY, RSA_LEAF], ids=["ec-leaf", "rsa-leaf"])
def test_every_kind_of_authority_signs_every_kind_of_leaf(kind: KeyKind, leaf_key: Any) -> None:
    """X509-23, A4: RSA leaves may encipher keys, EC leaves may not. P-384 signs with SHA-384."""
    key = CA_KEYS[kind]
    root = make_ca(key)
    leaf = x509.load_der_x509_certificate(sign(prepare(leaf_plan(key=leaf_key, parent=parent_of(root))), key))
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(root))
    assert ("sha384" if kind is KeyKind.EC_P384 else "sha256") == leaf.signature_hash_algorithm.name  # type: ignore[union-attr]  # always set
    assert ({"digital_signature", "key_encipherment"} if leaf_key is RSA_LEAF else {"digital_signature"}) == usages(
        leaf
    )


@pytest.mark.parametrize(
    ("ttl", "ends"),
    [(1, NOW + 1), (3_600, NOW + 3_600), (DAY - 1, NOW + DAY - 1), (DAY, NOW + DAY), (2**31 - 1, NOW + DAY)],
)
def test_validity_is_exact_and_never_outlives_the_authority(ttl: int, ends: int) -> None:
    """S37, N-C-14."""
    leaf = issue(ttl=ttl)
    assert (NOW - 10, ends) == (int(leaf.not_valid_before_utc.timestamp()), int(leaf.not_valid_after_utc.timestamp()))


def test_a_floor_lengthens_a_leaf_but_not_beyond_its_authority() -> None:
    """R18."""
    assert leaf_plan(at_least_until=NOW + 7_200).not_after == NOW + 7_200
    assert leaf_plan(at_least_until=NOW + 2 * DAY).not_after == NOW + DAY


@pytest.mark.parametrize("late", [0, 1])
def test_an_expired_authority_signs_nothing(late: int) -> None:
    with pytest.raises(Unavailable, match="expired"):
        leaf_plan(now=NOW + DAY + late)


DNS = {
    "one name becomes the common name": (("web.example.org",), "web.example.org"),
    "the first of several does": (("a.example.org", "b.example.org"), "a.example.org"),
    "64 characters fit": (("a" * 60 + ".org",), "a" * 60 + ".org"),
    "65 characters do not": (("a" * 61 + ".org",), None),
}


@pytest.mark.parametrize("name", DNS)
def test_dns_names_follow_the_id(name: str) -> None:
    """X509-03, A4."""
    given, common = DNS[name]
    leaf = issue(dns_names=given)
    names = list(extension(leaf, x509.SubjectAlternativeName).value)
    assert isinstance(names[0], x509.UniformResourceIdentifier)
    assert list(given) == [one.value for one in names[1:]]
    assert [common] * (common is not None) == [
        part.value for part in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]


def test_agents_get_no_common_name() -> None:
    leaf = issue(Profile.AGENT, "/spire/agent/x", dns_names=("web.example.org",))
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME) == []


def test_an_empty_subject_makes_the_names_critical() -> None:
    """X509-05, N-C-13."""
    leaf = issue(subject=x509.Name([]))
    assert extension(leaf, x509.SubjectAlternativeName).critical


def test_a_given_subject_is_used() -> None:
    wanted = subject_name(("DE",), ("Acme", "Ops"), "x")
    assert wanted == issue(subject=wanted).subject


@pytest.mark.parametrize(
    ("profile", "path"),
    [
        (Profile.WORKLOAD, ""),
        (Profile.WORKLOAD, "/spire"),
        (Profile.WORKLOAD, "/spire/server"),
        (Profile.WORKLOAD, "/spire/agent/x"),
        (Profile.AGENT, "/web"),
        (Profile.AGENT, "/spire/agent"),
        (Profile.AGENT, "/spire/server"),
        (Profile.SERVER, "/spire/server/x"),
        (Profile.SERVER, "/spire/agent/x"),
        (Profile.CA, "/web"),
    ],
)
def test_an_id_that_does_not_fit_the_profile_is_refused(profile: Profile, path: str) -> None:
    """S20, X509-04, N-C-09: no profile but its own certifies a reserved path."""
    with pytest.raises(InvalidRequest) as refused:
        leaf_plan(profile, path)
    assert refused.value.field == "spiffe_id"


def test_an_id_of_another_trust_domain_is_refused() -> None:
    """X509-10, N-C-08."""
    with pytest.raises(InvalidRequest, match=r"trust domain example\.org"):
        plan_leaf(
            Profile.WORKLOAD, PARENT, SpiffeId.parse("spiffe://other.test/web"), LEAF_KEY, ttl=9, now=NOW, serial=5
        )


WEAK = {
    "P-224": ec.generate_private_key(ec.SECP224R1()).public_key(),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()).public_key(),
    "RSA 1024": rsa.generate_private_key(65537, 1024).public_key(),
    "exponent 3": rsa.generate_private_key(3, 2048).public_key(),
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_keys_are_never_certified(name: str) -> None:
    """N-C-05, N-C-06: the policy is asked on every issue, whoever checked before."""
    with pytest.raises(InvalidCertificate) as refused:
        leaf_plan(key=WEAK[name])
    assert refused.value.field == "public_key"
    with pytest.raises(InvalidCertificate):
        plan_ca(TD, WEAK[name], lifetime=DAY, now=NOW, serial=5)


@pytest.mark.parametrize(
    "bad",
    [
        {"ttl": 0},
        {"ttl": -1},
        {"serial": 0},
        {"serial": -5},
        {"serial": MAX_SERIAL + 1},
        {"dns_names": ("a.b",) * 1_001},
    ],
)
def test_numbers_out_of_range_are_refused_by_name(bad: dict[str, Any]) -> None:
    """S38, N-C-12, N-C-14."""
    with pytest.raises(InvalidRequest) as refused:
        leaf_plan(**bad)
    assert next(iter(bad)) == refused.value.field


def test_the_largest_serial_has_at_most_twenty_octets_and_stays_positive() -> None:
    """S38, RFC 5280 section 4.1.2.2."""
    leaf = sign(prepare(leaf_plan(serial=MAX_SERIAL)), CA_KEY)
    assert x509.load_der_x509_certificate(leaf).serial_number == MAX_SERIAL
    assert elements(contents(elements(contents(leaf))[0]))[1][:3] == b"\x02\x11\x00"


def test_a_ca_lifetime_is_positive() -> None:
    with pytest.raises(InvalidRequest, match=r"ca\.ttl"):
        make_ca(lifetime=0)


@pytest.mark.parametrize("country", ["USA", "U", "é"])
def test_a_bad_subject_is_named(country: str) -> None:
    with pytest.raises(InvalidRequest, match="subject"):
        subject_name((country,))


def test_the_authoritys_own_key_is_not_certified() -> None:
    """N-C-07: the lint refuses it even if a caller forgot to."""
    with pytest.raises(LintFailed) as failed:
        prepare(leaf_plan(key=CA_KEY.public_key()))
    assert [one.rule for one in failed.value.findings] == ["N-C-07"]
    assert Kind.INTERNAL is failed.value.kind
    assert "N-C-07" not in failed.value.public


def test_a_ticket_buys_one_signature() -> None:
    """S39."""
    ticket = prepare(leaf_plan())
    sign(ticket, CA_KEY)
    with pytest.raises(RuntimeError, match="already used"):
        sign(ticket, CA_KEY)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_ticket_cannot_be_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError, match="copied"):
        duplicate(prepare(leaf_plan()))


class TokenKey:
    """A key that never leaves its token: `public_key` and `sign` only, and it remembers what it signed."""

    def __init__(self, key: Any) -> None:
        self._key = key
        self.signed: list[bytes] = []

    def public_key(self) -> Any:
        return self._key.public_key()

    def sign(self, data: bytes, *algorithm: Any) -> bytes:
        self.signed.append(data)
        return self._key.sign(data, *algorithm)


class EcTokenKey(TokenKey):
    pass


ec.EllipticCurvePrivateKey.register(EcTokenKey)


@pytest.mark.parametrize("kind", CA_KEYS)
def test_a_key_in_a_token_signs_exactly_the_linted_bytes_once(kind: KeyKind) -> None:
    """A12, S39: nothing but the linted TBSCertificate ever reaches the key."""
    key = CA_KEYS[kind]
    root = make_ca(key)
    token: Any = EcTokenKey(key) if isinstance(key, ec.EllipticCurvePrivateKey) else TokenKey(key)
    plan = leaf_plan(parent=parent_of(root))
    ticket = prepare(plan)
    assert token.signed == [], "the lint does not use the key"
    leaf = x509.load_der_x509_certificate(sign(ticket, token))
    assert [leaf.tbs_certificate_bytes] == token.signed
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(root))


def test_what_a_builder_would_make_is_what_we_assemble() -> None:
    """The assembled DER is the only encoding: parsing and printing gives the same bytes, for short and long bodies."""
    for names in ((), tuple(f"host-{number}.example.org" for number in range(400))):
        der = sign(prepare(leaf_plan(dns_names=names)), CA_KEY)
        tbs, algorithm, signature = elements(contents(der))
        assert x509.load_der_x509_certificate(der).tbs_certificate_bytes == tbs
        assert (bytes.fromhex("300a06082a8648ce3d040302"), 0x03) == (algorithm, signature[0])
        CA_KEY.public_key().verify(
            contents(signature)[1:], tbs, ec.ECDSA(x509.load_der_x509_certificate(der).signature_hash_algorithm)
        )  # type: ignore[union-attr, arg-type]  # an EC key


def test_what_would_be_signed_must_be_what_was_linted() -> None:
    """S39: a certificate that passes does not buy a signature on other bytes."""
    plan = leaf_plan()
    der = sign(prepare(plan), CA_KEY)
    with pytest.raises(LintFailed) as failed:
        admit(plan, der, b"something else")
    assert "not what was linted" in str(failed.value.findings[0])


SPOILED_PARENTS = {
    "two URIs": {"uris": ("spiffe://example.org", "https://x.test")},
    "a path": {"uris": ("spiffe://example.org/ca",)},
    "no id": {"uris": (), "dns": ("x.test",)},
    "no key id": {"key_ids": False},
    "not a SPIFFE ID": {"uris": ("spiffe://Example.org",)},
}


@pytest.mark.parametrize("name", SPOILED_PARENTS)
def test_a_certificate_that_is_not_our_authority_is_no_parent(name: str) -> None:
    """X509-09: an authority with a path cannot be loaded."""
    with pytest.raises(CorruptState, match="restore the database"):
        parent_of(SpiffeTestCA("example.org", **SPOILED_PARENTS[name]).der)
    with pytest.raises(CorruptState):
        parent_of(b"garbage")


def test_rsa_signatures_are_pkcs1_v15() -> None:
    """What SPIRE's and Go's verifiers expect of an RSA authority."""
    key = CA_KEYS[KeyKind.RSA_2048]
    certificate = x509.load_der_x509_certificate(make_ca(key))
    assert isinstance(certificate.signature_algorithm_parameters, padding.PKCS1v15)
