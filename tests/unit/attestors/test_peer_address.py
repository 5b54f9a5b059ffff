"""x509pop's `verify_client_ip`: a certificate joins only from an address it names (SPIRE 1.15.2)."""

from ipaddress import ip_address, ip_network

import pytest
from cryptography.x509 import DNSName, IPAddress

from attestors.api import Attested, Challenge, NodeVerifier, PlacedNodeVerifier, advance
from attestors.node.join_token import JoinTokenVerifier
from attestors.node.x509pop import ProverSettings, VerifierPorts, VerifierSettings, X509PopProver, X509PopVerifier
from spiffe_core.errors import ConfigError, Forbidden, Internal, InvalidRequest
from spiffe_core.spiffe_id import TrustDomain
from tests.doubles.node_pki import NodePki
from tests.doubles.x509pop_messages import DIGEST, payload

PKI = NodePki()
NAMES = tuple(IPAddress(ip_address(one)) for one in ("192.0.2.7", "2001:db8::7"))


@pytest.fixture
def verifier(tmp_path):
    def make(**settings):
        settings = {"ca_bundle_path": str(PKI.bundle(tmp_path)), "verify_client_ip": True, **settings}
        return X509PopVerifier(VerifierSettings(**settings), VerifierPorts(TrustDomain("example.org"), lambda: PKI.now))

    return make


@pytest.mark.parametrize("address", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7", "2001:0db8:0:0:0:0:0:7"], ids=str)
def test_any_of_its_addresses_will_do(verifier, tmp_path, address):
    """However the address is written; the dialogue goes on as without the option, to the same verdict."""
    node = PKI.node(other_names=NAMES)
    steps = X509PopProver(ProverSettings(**node.files(tmp_path))).prove()
    dialogue = verifier().verify_from(next(steps), DIGEST, address)
    challenge = advance(dialogue)
    assert isinstance(challenge, Challenge)
    verdict = advance(dialogue, steps.send(challenge.data))
    assert isinstance(verdict, Attested)
    assert verdict.agent_path.startswith("/spire/agent/x509pop/")


def test_a_mapped_address_in_the_certificate_is_the_same_address(verifier):
    """RFC 4291 section 2.5.5.2, as Go compares them."""
    node = PKI.node(other_names=(IPAddress(ip_address("::ffff:192.0.2.7")),))
    assert isinstance(advance(verifier().verify_from(payload(node.leaf), DIGEST, "192.0.2.7")), Challenge)


REFUSED = {
    "another address": (NAMES, "192.0.2.8"),
    "an address of the other family": (NAMES[:1], "2001:db8::7"),
    "no address at all in the certificate": ((), "192.0.2.7"),
    "the address as a DNS name": ((DNSName("192.0.2.7"),), "192.0.2.7"),
    "the IPv6 loopback is not the IPv4 one": ((IPAddress(ip_address("127.0.0.1")),), "::1"),
}


@pytest.mark.parametrize(("names", "address"), REFUSED.values(), ids=REFUSED)
def test_from_elsewhere_it_is_refused_before_the_challenge(verifier, names, address):
    """SPIRE answers PermissionDenied with these words; ours says what to do as well."""
    with pytest.raises(Forbidden, match="does not match any certificate IP SAN") as caught:
        advance(verifier().verify_from(payload(PKI.node(other_names=names).leaf), DIGEST, address))
    assert "verify_client_ip" in caught.value.public


@pytest.mark.parametrize("address", ["", "localhost", "192.0.2.7:1", "fe80::1%eth0%", "pid 1, uid 0"])
def test_who_has_no_address_is_refused(verifier, address):
    """Deny by default: on the admin socket nobody knows where the node is (SPIRE: Internal)."""
    with pytest.raises(Internal):
        advance(verifier().verify_from(payload(PKI.node(other_names=NAMES).leaf), DIGEST, address))
    with pytest.raises(Internal):
        advance(verifier().verify(payload(PKI.node(other_names=NAMES).leaf), DIGEST))


def test_the_certificate_is_believed_before_its_names_are_looked_at(verifier):
    """S25: a stranger's certificate says nothing about addresses; the refusal is the one of the path."""
    stranger = NodePki(name="Other").node(other_names=NAMES)
    with pytest.raises(Forbidden, match="certificate verification failed"):
        advance(verifier().verify_from(payload(stranger.leaf), DIGEST, "192.0.2.7"))


def test_without_the_option_the_address_does_not_matter(verifier):
    """The default, as in SPIRE."""
    leaf = payload(PKI.node().leaf)
    for address in ("", "192.0.2.7"):
        assert isinstance(advance(verifier(verify_client_ip=False).verify_from(leaf, DIGEST, address)), Challenge)
    assert VerifierSettings(ca_bundle_path="x").verify_client_ip is False


def test_the_option_is_true_or_false():
    with pytest.raises(ConfigError, match=r"attestors\.x509pop\.verify_client_ip: must be true or false"):
        VerifierSettings(ca_bundle_path="x", verify_client_ip="yes")


def test_a_network_in_a_certificate_is_no_address(verifier):
    """RFC 5280 section 4.2.1.6: eight octets stand for a range in name constraints only."""
    names = (IPAddress(ip_network("192.0.2.0/24")),)
    with pytest.raises((Forbidden, InvalidRequest)):
        advance(verifier().verify_from(payload(PKI.node(other_names=names).leaf), DIGEST, "192.0.2.7"))


def test_only_verifiers_that_want_the_address_are_told(verifier):
    """Those of other distributions go on as they are."""
    assert isinstance(verifier(), PlacedNodeVerifier)
    assert isinstance(JoinTokenVerifier(), NodeVerifier)
    assert not isinstance(JoinTokenVerifier(), PlacedNodeVerifier)
