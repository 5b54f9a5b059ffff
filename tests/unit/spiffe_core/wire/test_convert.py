"""Messages to values and back: every bad field is refused by name and rule (issue 2, "Bad input"; spire_features 15.1)."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from spiffe_core.bundle import JwtAuthority, TrustBundle, WitAuthority, X509Authority
from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import InvalidBundle, InvalidCertificate, InvalidEntry, InvalidId, InvalidSelector
from spiffe_core.selectors import Selector
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2 as entry_api
from spiffe_core.wire._gen.spire.api.types import bundle_pb2, entry_pb2, selector_pb2, spiffeid_pb2, x509svid_pb2

TD = TrustDomain("example.org")


def message(**over):
    fields = {
        "id": "e1",
        "spiffe_id": {"trust_domain": "example.org", "path": "/web"},
        "parent_id": {"trust_domain": "example.org", "path": "/spire/agent/join_token/x"},
        "selectors": [{"type": "unix", "value": "uid:1000"}],
    }
    return entry_pb2.Entry(**{**fields, **over})


def entry(**over):
    return convert.entry_from_proto(message(**over), trust_domain=TD)


FULL = RegistrationEntry(
    id="full",
    spiffe_id=SpiffeId.parse("spiffe://example.org/web"),
    parent_id=SpiffeId.parse("spiffe://example.org/node"),
    selectors=frozenset({Selector("unix", "uid:1"), Selector("unix", "gid:2")}),
    x509_svid_ttl=60,
    jwt_svid_ttl=30,
    federates_with=(TrustDomain("a.test"), TrustDomain("b.test")),
    admin=True,
    downstream=True,
    expires_at=99,
    dns_names=("web", "*.web.test"),
    revision_number=3,
    store_svid=True,
    hint="internal",
    created_at=77,
    jwt_svid_include_jti=True,
)


def test_a_full_entry_survives_both_ways():
    assert convert.entry_from_proto(convert.entry_to_proto(FULL), trust_domain=TD) == FULL


def test_additional_attributes_are_absent_when_all_are_off():
    assert not convert.entry_to_proto(entry()).HasField("additional_attributes")
    assert convert.entry_to_proto(FULL).additional_attributes.jwt_svid_include_jti


def test_equal_entries_have_equal_bytes_whatever_the_order_of_selectors():
    two = [{"type": "b", "value": "1"}, {"type": "a", "value": "2"}]
    encoded = {convert.entry_to_proto(entry(selectors=order)).SerializeToString() for order in (two, two[::-1])}
    assert len(encoded) == 1


def test_new_id_is_used_only_when_the_message_has_none():
    assert convert.entry_from_proto(message(id=""), trust_domain=TD, new_id="n").id == "n"
    assert convert.entry_from_proto(message(), trust_domain=TD, new_id="n").id == "e1"


def test_federates_with_may_be_given_as_ids_and_comes_back_bare():
    """spire_wire section 4, notes."""
    assert list(convert.entry_to_proto(entry(federates_with=["spiffe://a.test"])).federates_with) == ["a.test"]


@pytest.mark.parametrize(
    ("over", "field", "rule"),
    [
        ({"id": "a b"}, "id", "characters"),
        ({"id": "x" * 256}, "id", "255"),
        ({"id": ""}, "id", "characters"),
        ({"spiffe_id": None}, "spiffe_id", "missing"),
        ({"spiffe_id": {"path": "/x"}}, "spiffe_id.trust_domain", "missing"),
        ({"spiffe_id": {"trust_domain": "example.org"}}, "spiffe_id", "path"),
        ({"spiffe_id": {"trust_domain": "example.org", "path": "x"}}, "spiffe_id.path", "slash"),
        ({"spiffe_id": {"trust_domain": "example.org", "path": "/a//b"}}, "spiffe_id", "empty segment"),
        ({"spiffe_id": {"trust_domain": "example.org", "path": "/" + "a" * 2048}}, "spiffe_id", "2048"),
        ({"spiffe_id": {"trust_domain": "Example.org", "path": "/x"}}, "spiffe_id.trust_domain", "example.org"),
        ({"spiffe_id": {"trust_domain": "other.org", "path": "/x"}}, "spiffe_id", "not a member"),
        ({"spiffe_id": {"trust_domain": "example.org", "path": "/spire/server"}}, "spiffe_id", "reserved"),
        ({"spiffe_id": {"trust_domain": "example.org/web", "path": ""}}, "spiffe_id.trust_domain", "path"),
        ({"parent_id": None}, "parent_id", "missing"),
        ({"parent_id": {"trust_domain": "example.org"}}, "parent_id", "path"),
        ({"parent_id": {"trust_domain": "other.org", "path": "/x"}}, "parent_id", "not a member"),
        ({"selectors": []}, "selectors", "at least one"),
        ({"selectors": [{"type": "", "value": "x"}]}, "selectors[0]", "type"),
        ({"selectors": [{"type": "unix", "value": "1"}, {"type": "a:b", "value": "x"}]}, "selectors[1]", "':'"),
        ({"selectors": [{"type": "unix", "value": ""}]}, "selectors[0]", "value"),
        ({"selectors": [{"type": "t" * 129, "value": "x"}]}, "selectors[0]", "128"),
        ({"selectors": [{"type": "t", "value": "x" * 8193}]}, "selectors[0]", "8192"),
        ({"selectors": [{"type": "t", "value": str(n)} for n in range(101)]}, "selectors", "100"),
        ({"x509_svid_ttl": -1}, "x509_svid_ttl", "between 0"),
        ({"jwt_svid_ttl": -1}, "jwt_svid_ttl", "between 0"),
        ({"expires_at": -1}, "expires_at", "between 0"),
        ({"revision_number": -1}, "revision_number", "between 0"),
        ({"created_at": -1}, "created_at", "between 0"),
        ({"hint": "h" * 1025}, "hint", "1024"),
        ({"federates_with": ["Bad"]}, "federates_with[0]", "upper case"),
        ({"federates_with": ["a.test", ""]}, "federates_with[1]", "missing"),
        ({"federates_with": ["a"] * 501}, "federates_with", "500"),
        ({"dns_names": ["-bad-"]}, "dns_names", "-bad-"),
        ({"dns_names": ["a"] * 501}, "dns_names", "500"),
        (
            {"store_svid": True, "additional_attributes": {"disable_x509_svid_prefetch": True}},
            "disable_x509_svid_prefetch",
            "store_svid",
        ),
        (
            {"store_svid": True, "selectors": [{"type": "a", "value": "1"}, {"type": "b", "value": "1"}]},
            "selectors",
            "one type",
        ),
    ],
)
def test_a_bad_entry_is_refused_naming_field_and_rule(over, field, rule):
    """S28 in spirit: bounded, typed refusals for missing, oversize and malformed values of every field."""
    with pytest.raises(InvalidEntry) as caught:
        entry(**over)
    assert caught.value.field == field
    assert field.split("[")[0] in caught.value.public
    assert rule in caught.value.public


@pytest.mark.parametrize("field", ["federates_with", "dns_names"])
def test_counts_are_checked_before_any_element_is_read(field):
    """A list of bad elements that is too long is refused for its length: nothing was looped over."""
    with pytest.raises(InvalidEntry, match=f"^{field}: at most 500 are allowed, got 501$"):
        entry(**{field: ["NOT VALID"] * 501})


def test_oversize_selector_lists_are_refused_before_they_are_read():
    bad = [selector_pb2.Selector(type="a:b") for _ in range(1001)]
    with pytest.raises(InvalidSelector, match=r"^by_selectors: at most 1000 are allowed, got 1001$"):
        convert.selectors_from_proto(bad, field="by_selectors")


def test_no_selectors_are_fine_outside_entries():
    assert convert.selectors_from_proto([]) == frozenset()


class TestMasks:
    def test_no_mask_gives_an_equal_copy(self):
        whole = convert.entry_to_proto(FULL)
        copy = convert.mask_entry(whole, None)
        assert copy == whole
        assert copy is not whole

    def test_an_empty_mask_leaves_the_id(self):
        assert convert.mask_entry(convert.entry_to_proto(FULL), entry_pb2.EntryMask()) == entry_pb2.Entry(id="full")

    def test_admin_is_not_copied_into_downstream(self):
        """S22: the mix-up of SPIRE #6636."""
        whole = message(admin=True)
        masked = convert.mask_entry(whole, entry_pb2.EntryMask(downstream=True))
        assert masked == entry_pb2.Entry(id="e1")

    def test_masking_never_changes_the_original(self):
        whole = convert.entry_to_proto(FULL)
        before = whole.SerializeToString()
        masked = convert.mask_entry(whole, entry_pb2.EntryMask(selectors=True))
        masked.selectors.add(type="x", value="y")
        assert whole.SerializeToString() == before

    def test_mask_of_tells_absent_from_empty(self):
        kind = entry_pb2.EntryMask
        absent = entry_api.GetEntryRequest(id="x")
        empty = entry_api.GetEntryRequest(id="x", output_mask=kind())
        assert convert.mask_of(absent, "output_mask", kind) is None
        assert convert.mask_of(empty, "output_mask", kind) == kind()


class TestUpdates:
    def test_no_mask_replaces_everything_zero_values_included(self):
        """BatchUpdateEntry with a nil input mask (spire_wire section 5.3)."""
        updated = convert.apply_entry_mask(FULL, message(id="other"), None, trust_domain=TD)
        kept = {"id": "full", "revision_number": 3, "created_at": 77}
        assert updated == entry(**kept)

    def test_a_mask_replaces_only_what_it_names(self):
        mask = entry_pb2.EntryMask(x509_svid_ttl=True, hint=True, dns_names=True)
        updated = convert.apply_entry_mask(FULL, entry_pb2.Entry(x509_svid_ttl=5), mask, trust_domain=TD)
        assert (updated.x509_svid_ttl, updated.hint, updated.dns_names) == (5, "", ())
        assert (updated.spiffe_id, updated.selectors, updated.admin) == (FULL.spiffe_id, FULL.selectors, True)

    def test_clients_never_write_revision_and_creation_time(self):
        mask = entry_pb2.EntryMask(revision_number=True, created_at=True)
        forged = message(revision_number=1000, created_at=1)
        assert convert.apply_entry_mask(FULL, forged, mask, trust_domain=TD) == FULL

    def test_lists_are_replaced_not_appended_to(self):
        mask = entry_pb2.EntryMask(selectors=True)
        updated = convert.apply_entry_mask(FULL, message(), mask, trust_domain=TD)
        assert updated.selectors == {Selector("unix", "uid:1000")}

    def test_attributes_are_cleared_by_a_message_without_them(self):
        mask = entry_pb2.EntryMask(additional_attributes=True)
        assert not convert.apply_entry_mask(FULL, message(), mask, trust_domain=TD).jwt_svid_include_jti

    @pytest.mark.parametrize("field", ["spiffe_id", "parent_id", "selectors"])
    def test_a_field_that_is_named_and_missing_is_refused(self, field):
        with pytest.raises(InvalidEntry) as caught:
            convert.apply_entry_mask(FULL, entry_pb2.Entry(), entry_pb2.EntryMask(**{field: True}), trust_domain=TD)
        assert caught.value.field == field


class TestIds:
    @pytest.mark.parametrize("text", ["spiffe://example.org", "spiffe://example.org/a/b"])
    def test_round_trip(self, text):
        spiffe_id = SpiffeId.parse(text)
        assert convert.spiffe_id_from_proto(convert.spiffe_id_to_proto(spiffe_id)) == spiffe_id

    def test_the_field_is_named_by_the_caller(self):
        with pytest.raises(InvalidId, match=r"^agent_id: is missing") as caught:
            convert.spiffe_id_from_proto(spiffeid_pb2.SPIFFEID(), field="agent_id")
        assert caught.value.field == "agent_id"

    def test_the_trust_domain_may_carry_the_scheme(self):
        """SPIRE's parser accepts `spiffe://example.org` in the field as well."""
        given = spiffeid_pb2.SPIFFEID(trust_domain="spiffe://example.org", path="/a")
        assert str(convert.spiffe_id_from_proto(given)) == "spiffe://example.org/a"


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def ca(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, start, start + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def bundle(ca, key):
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TrustBundle(
        TD,
        x509_authorities=(X509Authority(ca, tainted=True),),
        jwt_authorities=(JwtAuthority("kid", spki, expires_at=5, tainted=True),),
        wit_authorities=(WitAuthority("wit", spki),),
        sequence=9,
        refresh_hint=300,
    )


class TestBundles:
    def test_round_trip(self, bundle):
        assert convert.bundle_from_proto(convert.bundle_to_proto(bundle)) == bundle

    def test_the_trust_domain_is_bare_and_always_there(self, bundle):
        assert convert.bundle_to_proto(bundle, bundle_pb2.BundleMask()) == bundle_pb2.Bundle(trust_domain="example.org")

    def test_a_mask_limits_what_is_written_and_what_is_read(self, bundle, ca):
        mask = bundle_pb2.BundleMask(x509_authorities=True)
        expected = bundle_pb2.Bundle(
            trust_domain="example.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=ca, tainted=True)]
        )
        assert convert.bundle_to_proto(bundle, mask) == expected
        read = convert.bundle_from_proto(convert.bundle_to_proto(bundle), mask)
        assert read == TrustBundle(TD, x509_authorities=(X509Authority(ca, tainted=True),))

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"trust_domain": ""}, "trust_domain"),
            ({"trust_domain": "UP"}, "trust_domain"),
            ({"x509_authorities": [{}]}, "x509_authorities[0]"),
            ({"x509_authorities": [{"asn1": b"junk"}]}, "x509_authorities[0]"),
            ({"x509_authorities": [{"asn1": b"0" * 65537}]}, "x509_authorities[0]"),
            ({"x509_authorities": [{}] * 1001}, "x509_authorities"),
            ({"jwt_authorities": [{"public_key": b"x"}]}, "jwt_authorities[0]"),
            ({"jwt_authorities": [{"key_id": "k"}]}, "jwt_authorities[0]"),
            ({"jwt_authorities": [{"key_id": "k", "public_key": b"junk"}]}, "jwt_authorities[0]"),
            ({"jwt_authorities": [{"key_id": "k" * 2000, "public_key": b"junk"}]}, "jwt_authorities[0]"),
            ({"wit_authorities": [{"key_id": "k", "public_key": b"0" * 100_000}]}, "wit_authorities[0]"),
            ({"refresh_hint": -1}, "refresh_hint"),
        ],
    )
    def test_a_bad_bundle_is_refused_naming_the_field(self, fields, field):
        with pytest.raises(InvalidBundle) as caught:
            convert.bundle_from_proto(bundle_pb2.Bundle(**{"trust_domain": "example.org", **fields}))
        assert caught.value.field == field
        assert field in caught.value.public

    def test_a_negative_expiry_is_refused(self, bundle):
        bad = convert.bundle_to_proto(bundle)
        bad.jwt_authorities[0].expires_at = -1
        with pytest.raises(InvalidBundle, match="expires_at"):
            convert.bundle_from_proto(bad)

    def test_one_certificate_each_and_nothing_behind_it(self, ca):
        bad = bundle_pb2.Bundle(trust_domain="example.org", x509_authorities=[{"asn1": ca + ca}])
        with pytest.raises(InvalidBundle) as caught:
            convert.bundle_from_proto(bad)
        assert caught.value.field == "x509_authorities[0]"


class TestSvids:
    def test_to_proto(self):
        message = convert.x509_svid_to_proto([b"leaf", b"ca"], SpiffeId.parse("spiffe://example.org/a"), 12, "h")
        assert message == x509svid_pb2.X509SVID(
            cert_chain=[b"leaf", b"ca"],
            id=spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/a"),
            expires_at=12,
            hint="h",
        )
        assert convert.chain_from_proto(message) == (b"leaf", b"ca")

    @pytest.mark.parametrize(
        ("chain", "field"),
        [
            ([], "svid.cert_chain"),
            ([b""], "svid.cert_chain[0]"),
            ([b"a"] * 11, "svid.cert_chain"),
            ([b"a", b"b" * 65537], "svid.cert_chain[1]"),
        ],
    )
    def test_a_bad_chain_is_refused_naming_the_field(self, chain, field):
        with pytest.raises(InvalidCertificate) as caught:
            convert.chain_from_proto(x509svid_pb2.X509SVID(cert_chain=chain))
        assert caught.value.field == field
