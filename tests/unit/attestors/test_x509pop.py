"""x509pop: what proves a node, what it is called afterwards, and which chains and settings are refused (spire_wire 7, 18.2)."""

import hashlib
import time
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import RFC822Name

from attestors.api import Challenge, advance
from attestors.node.x509pop import (
    MAX_PRESENTED_BYTES,
    VerifierPorts,
    VerifierSettings,
    X509PopVerifier,
)
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    Unavailable,
)
from tests.doubles.node_pki import Node, NodePki, write_certificates
from tests.doubles.x509pop_halves import PKI, RSA_KEY, TD, attest, prover, values, verifier
from tests.doubles.x509pop_messages import DIGEST, payload


def sha1(der):
    return hashlib.sha1(der, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    "key", [generate(KeyKind.EC_P256), generate(KeyKind.EC_P384), RSA_KEY], ids=["p256", "p384", "rsa"]
)
def test_both_halves_agree(tmp_path, key):
    """Agent path, selectors and re-attestation of features 18.2, for each kind of key."""
    node = PKI.node(key=key)
    verdict = attest(verifier(tmp_path), prover(tmp_path, node))
    assert verdict.agent_path == f"/spire/agent/x509pop/{sha1(node.leaf)}"
    assert verdict.may_reattest
    serial = node.certificate.serial_number
    serial_hex = serial.to_bytes((serial.bit_length() + 7) // 8).hex()
    assert values(verdict) == {"subject:cn:node1", f"ca:fingerprint:{sha1(PKI.root.der)}", f"serialnumber:{serial_hex}"}


def test_intermediates_lead_to_the_root_and_become_selectors(tmp_path):
    ca = PKI.intermediate(PKI.intermediate(name="A"), name="B")
    node = PKI.node(ca=ca)
    assert len(node.intermediates) == 2
    verdict = attest(verifier(tmp_path), prover(tmp_path, node))
    wanted = {f"ca:fingerprint:{sha1(der)}" for der in (*node.intermediates, PKI.root.der)}
    assert wanted == {value for value in values(verdict) if value.startswith("ca:")}


def test_san_selectors_come_from_names_of_this_trust_domain(tmp_path):
    uris = (
        "x509pop://example.org/rack/7",
        "x509pop://example.org/zone/a/b",
        "x509pop://example.org/env/pre%20prod",
        "x509pop://other.org/rack/8",
        "spiffe://example.org/x",
        "x509pop://example.org/rack",
        "x509pop://example.org//v",
        "x509pop://example.org/k/",
        "x509pop://example.org/a%3Ab/c",
    )
    verdict = attest(verifier(tmp_path), prover(tmp_path, PKI.node(uris=uris)))
    assert {value for value in values(verdict) if value.startswith("san:")} == {
        "san:rack:7",
        "san:zone:a/b",
        "san:env:pre prod",
    }


def test_a_template_names_the_agent(tmp_path):
    template = (
        "/x509pop/{{ .TrustDomain }}/{{ .URISanSelectors.rack }}/{{ .Subject.CommonName }}/{{ .SerialNumberHex }}"
    )
    node = PKI.node(uris=("x509pop://example.org/rack/7",))
    verdict = attest(verifier(tmp_path, agent_path_template=template), prover(tmp_path, node))
    serial = next(value for value in values(verdict) if value.startswith("serialnumber:")).partition(":")[2]
    assert verdict.agent_path == f"/spire/agent/x509pop/example.org/7/node1/{serial}"


@pytest.mark.parametrize(
    "spoil",
    [
        {"subject": (("CN", "../../server"),)},
        {"subject": (("CN", "a/b"),)},
        {"subject": (("CN", ".."),)},
        {"subject": ()},
    ],
)
def test_a_common_name_cannot_leave_its_segment(tmp_path, spoil):
    """S32, CVE-2021-27099."""
    template = "/x509pop/{{ .Subject.CommonName }}"
    with pytest.raises(Forbidden, match=r"Subject\.CommonName|dot segment"):
        attest(verifier(tmp_path, agent_path_template=template), prover(tmp_path, PKI.node(**spoil)))


def test_a_name_given_twice_names_no_agent(tmp_path):
    uris = ("x509pop://example.org/rack/7", "x509pop://example.org/rack/8")
    template = "/x509pop/{{ .URISanSelectors.rack }}"
    with pytest.raises(Forbidden, match=r"URISanSelectors\.rack"):
        attest(verifier(tmp_path, agent_path_template=template), prover(tmp_path, PKI.node(uris=uris)))


class TestChain:
    """What is refused before the node is asked anything."""

    def refused(self, folder, node, error=Forbidden, *, extra=(), **settings):
        check = verifier(folder, **settings)
        with pytest.raises(error) as caught:
            advance(check.verify(payload(node.leaf, *node.intermediates, *extra), DIGEST))
        return caught.value.public

    def test_a_stranger(self, tmp_path):
        assert "certificate verification failed" in self.refused(tmp_path, NodePki(name="Other").node())

    def test_a_ca_of_the_same_name_with_another_key(self, tmp_path):
        assert "certificate verification failed" in self.refused(tmp_path, NodePki().node())

    def test_without_its_intermediate(self, tmp_path):
        node = PKI.node(ca=PKI.intermediate())
        self.refused(tmp_path, Node(node.key, node.leaf))

    @pytest.mark.parametrize("usage", [None, frozenset({"key_encipherment"})])
    def test_a_leaf_without_digital_signature(self, tmp_path, usage):
        assert "digital signature" in self.refused(tmp_path, PKI.node(usage=usage))

    def test_a_ca(self, tmp_path):
        both = frozenset({"digital_signature", "key_cert_sign"})
        node = PKI.node(usage=both)
        ca = PKI.intermediate(usage=both)
        self.refused(tmp_path, Node(ca.key, ca.der))
        assert advance(verifier(tmp_path).verify(payload(node.leaf), DIGEST))

    @pytest.mark.parametrize("moved", [timedelta(hours=-3), timedelta(hours=3)])
    def test_expired_or_not_yet_valid(self, tmp_path, moved):
        start = PKI.now + moved
        self.refused(tmp_path, PKI.node(not_before=start, not_after=start + timedelta(hours=1)))

    def test_a_leaf_is_no_ca_for_others(self, tmp_path):
        """A node cannot make nodes: its certificate is not a CA."""
        node = PKI.node("boss")
        fake = NodePki()
        fake.root.der, fake.root.key = node.leaf, node.key
        forged = fake.node("minion")
        self.refused(tmp_path, Node(forged.key, forged.leaf, (node.leaf,)))

    def test_a_path_length_is_kept(self, tmp_path):
        short = PKI.intermediate(name="short", path_length=0)
        self.refused(tmp_path, PKI.node(ca=PKI.intermediate(short, name="below")))

    def test_a_critical_extension_nobody_knows(self, tmp_path):
        from cryptography.x509 import ObjectIdentifier, UnrecognizedExtension

        odd = (UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
        self.refused(tmp_path, PKI.node(extensions=(odd,)))

    def test_an_extra_certificate_gives_no_selector(self, tmp_path):
        """S25: only what stands on the verified path is believed."""
        node, stranger = PKI.node(), NodePki(name="Other").root.der
        verdict = attest(verifier(tmp_path), prover(tmp_path, Node(node.key, node.leaf, (stranger,))))
        assert f"ca:fingerprint:{sha1(stranger)}" not in values(verdict)

    def test_cas_made_without_key_usage_are_believed(self, tmp_path):
        """As `openssl req -x509` makes them."""
        pki = NodePki(usage=None)
        assert attest(verifier(tmp_path, pki), prover(tmp_path, pki.node())).may_reattest


class TestBounds:
    """S28: refused by counts, sizes and kinds of keys, before any signature is checked."""

    def refused(self, check, data):
        began = time.process_time()
        with pytest.raises(InvalidRequest) as caught:
            advance(check.verify(data, DIGEST))
        assert time.process_time() - began < 0.05  # 5 ms is the bar; the machine is shared
        return caught.value.public

    def test_intermediates(self, tmp_path):
        check, leaf = verifier(tmp_path), PKI.node().leaf
        assert "at most 4 intermediates" in self.refused(check, payload(*[leaf] * 6))
        assert "more than" in self.refused(check, payload(*[leaf] * 1000))
        with pytest.raises(Forbidden):
            advance(check.verify(payload(NodePki(name="x").node().leaf, *[leaf] * 4), DIGEST))
        assert "at most 0 intermediates" in self.refused(verifier(tmp_path, max_intermediates=0), payload(leaf, leaf))

    def test_rsa_keys_by_size(self, tmp_path):
        big = PKI.node(key=rsa.generate_private_key(65537, 3072))
        assert "at most 2048 bits" in self.refused(verifier(tmp_path, max_rsa_key_size=2048), payload(big.leaf))
        assert advance(verifier(tmp_path).verify(payload(big.leaf), DIGEST))
        huge = rsa.RSAPublicNumbers(65537, (1 << 16383) + 1).public_key()
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509 import CertificateBuilder

        template = PKI.node().certificate
        built = (
            CertificateBuilder()
            .subject_name(template.subject)
            .issuer_name(template.issuer)
            .public_key(huge)
            .serial_number(7)
            .not_valid_before(template.not_valid_before_utc)
            .not_valid_after(template.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .sign(PKI.root.key, hashes.SHA256())
        )
        self.refused(verifier(tmp_path), payload(built.public_bytes(Encoding.DER)))

    def test_weak_rsa_keys(self, tmp_path):
        weak = PKI.node(key=rsa.generate_private_key(65537, 1024))
        assert "2048 to" in self.refused(verifier(tmp_path), payload(weak.leaf))

    def test_curves(self, tmp_path):
        odd = PKI.node(key=ec.generate_private_key(ec.SECP521R1()))
        assert "secp521r1" in self.refused(verifier(tmp_path), payload(odd.leaf))
        odd = PKI.node(key=ec.generate_private_key(ec.SECP256K1()))
        assert "secp256k1" in self.refused(verifier(tmp_path), payload(odd.leaf))

    def test_a_presented_intermediate_with_a_costly_key(self, tmp_path):
        odd = PKI.intermediate(key=ec.generate_private_key(ec.SECP521R1()))
        self.refused(verifier(tmp_path), payload(PKI.node().leaf, odd.der))

    def test_a_certificate_larger_than_is_read(self, tmp_path):
        self.refused(verifier(tmp_path), payload(b"\x30" * (MAX_PRESENTED_BYTES + 1)))

    def test_more_x509pop_names_than_are_read(self, tmp_path):
        uris = [f"x509pop://example.org/k/{number}" for number in range(101)]
        with pytest.raises(Forbidden, match="more than 100"):
            attest(verifier(tmp_path), prover(tmp_path, PKI.node(uris=uris)))


HOSTILE = {
    "twice": b'{"certificates": [], "certificates": ["MA=="]}',
    "nothing": b"",
    "null": b"null",
    "list": b"[]",
    "no certificates": b"{}",
    "null certificates": b'{"certificates": null}',
    "empty": b'{"certificates": []}',
    "numbers": b'{"certificates": [1]}',
    "empty text": b'{"certificates": [""]}',
    "not base64": b'{"certificates": ["-_-_"]}',
    "base64 with a line break": b'{"certificates": ["MA\\n=="]}',
    "not DER": b'{"certificates": ["MA=="]}',
    "deep": b"[" * 20_000,
    "NaN": b'{"certificates": NaN}',
    "not UTF-8": b'{"certificates": ["\xff"]}',
    "huge number": b'{"certificates": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_unreadable_payload_is_refused(tmp_path, data):
    """S25: duplicate names too."""
    with pytest.raises(InvalidRequest):
        advance(verifier(tmp_path).verify(data, DIGEST))


def test_bytes_after_the_certificate_are_refused(tmp_path):
    """S25: what is parsed is what is verified, to the last byte."""
    with pytest.raises(InvalidRequest):
        advance(verifier(tmp_path).verify(payload(PKI.node().leaf + b"\0"), DIGEST))


class TestSettings:
    def test_one_bundle_setting_is_required(self, tmp_path):
        for settings in ({}, {"ca_bundle_path": "a", "ca_bundle_paths": ["b"]}):
            with pytest.raises(ConfigError, match="ca_bundle_path"):
                VerifierSettings(**settings)

    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"mode": "spiffe"}, "mode"),
            ({"ca_bundle_paths": "abc"}, "ca_bundle_paths"),
            ({"ca_bundle_paths": [1]}, "ca_bundle_paths"),
            ({"max_intermediates": 5}, "max_intermediates"),
            ({"max_intermediates": -1}, "max_intermediates"),
            ({"max_rsa_key_size": 16384}, "max_rsa_key_size"),
            ({"max_rsa_key_size": 1024}, "max_rsa_key_size"),
        ],
    )
    def test_bounds(self, settings, key):
        with pytest.raises(ConfigError, match=f"attestors.x509pop.{key}"):
            VerifierSettings(**{"ca_bundle_path": "" if "ca_bundle_paths" in settings else "x", **settings})

    def test_several_bundles(self, tmp_path):
        other = NodePki(name="Other", now=PKI.now)
        paths = [str(PKI.bundle(tmp_path)), str(write_certificates(tmp_path / "other.pem", other.root.der))]
        check = X509PopVerifier(VerifierSettings(ca_bundle_paths=paths), VerifierPorts(TD, lambda: PKI.now))
        for pki in (PKI, other):
            assert isinstance(advance(check.verify(payload(pki.node().leaf), DIGEST)), Challenge)

    def test_a_bundle_that_cannot_be_used_stops_the_start(self, tmp_path):
        for text in (b"", b"no PEM"):
            (tmp_path / "bad.pem").write_bytes(text)
            with pytest.raises(ConfigError, match=r"bad\.pem"):
                verifier(tmp_path, ca_bundle_path=str(tmp_path / "bad.pem"))
        with pytest.raises(ConfigError, match=r"missing\.pem"):
            verifier(tmp_path, ca_bundle_path=str(tmp_path / "missing.pem"))
        leaf = write_certificates(tmp_path / "leaf.pem", PKI.node().leaf)
        with pytest.raises(ConfigError, match="not a CA"):
            verifier(tmp_path, ca_bundle_path=str(leaf))

    def test_a_template_of_another_attestor_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="join_token"):
            verifier(tmp_path, agent_path_template="/join_token/{{ .Fingerprint }}")

    def test_the_bundle_is_read_again_when_it_changes(self, tmp_path):
        check, other = verifier(tmp_path), NodePki(name="Other", now=PKI.now)
        leaf = other.node().leaf
        with pytest.raises(Forbidden):
            advance(check.verify(payload(leaf), DIGEST))
        path = PKI.bundle(tmp_path, other.root.der)
        assert isinstance(advance(check.verify(payload(leaf), DIGEST)), Challenge)
        path.unlink()
        with pytest.raises(Unavailable):
            advance(check.verify(payload(leaf), DIGEST))


def test_other_kinds_of_names_are_no_selectors(tmp_path):
    node = PKI.node(other_names=(RFC822Name("a@example.org"),), dns=("node1.example.org",))
    assert not any(value.startswith("san:") for value in values(attest(verifier(tmp_path), prover(tmp_path, node))))
