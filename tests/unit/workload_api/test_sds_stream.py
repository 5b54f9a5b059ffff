"""The two xDS protocols without I/O, and what each name leads to (spire_wire 6.2; integrations 2 to 4)."""

from datetime import timedelta
from itertools import count

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from spiffe_core.clock import SystemClock
from spiffe_core.errors import Exhausted, Internal, InvalidRequest, Unavailable
from spiffe_core.wire._gen.envoy import secret_discovery_pb2 as discovery
from spiffe_core.wire._gen.envoy import secret_pb2
from tests.doubles.scripted_backend import WorkloadCa
from workload_api.backend import WorkloadView
from workload_api.sds_secrets import SECRET_TYPE, SdsNames, Secrets, wants_validator
from workload_api.sds_stream import MAX_NAMES, DeltaStream, WorldStream

NOW = SystemClock().now()
WEB, DB = "spiffe://example.org/web", "spiffe://example.org/db"
OWN, FED = "spiffe://example.org", "spiffe://fed.test"


@pytest.fixture(scope="module")
def ca():
    return WorkloadCa()


@pytest.fixture(scope="module")
def view(ca):
    return ca.view("/web", "/db", federated=(WorkloadCa("fed.test").bundle(),))


def secrets(view, *, validator=True, names=None, now=NOW):
    return Secrets(view, names or SdsNames(), validator=validator, now=now)


def nonces():
    numbers = count(1)
    return lambda: f"n{next(numbers)}"


def world():
    return WorldStream(nonces())


def request(*names, nonce="", **fields):
    return discovery.DiscoveryRequest(resource_names=names, response_nonce=nonce, type_url=SECRET_TYPE, **fields)


def unpacked(response):
    found = []
    for resource in response.resources:
        secret = secret_pb2.Secret()
        assert (resource if hasattr(resource, "Unpack") else resource.resource).Unpack(secret)
        found.append(secret)
    return found


def domains(secret):
    """Trust domain to PEM of a validation context with the SPIFFE validator."""
    config = secret_pb2.SPIFFECertValidatorConfig()
    extension = secret.validation_context.custom_validator_config
    assert extension.name == "envoy.tls.cert_validator.spiffe"
    assert extension.typed_config.Unpack(config)
    return {one.name: one.trust_bundle.inline_bytes for one in config.trust_domains}


class TestNames:
    @pytest.mark.parametrize("name", ["default", WEB])
    def test_an_identity_is_its_chain_and_its_key(self, ca, name):
        view = ca.view("/web", "/db")
        found = secrets(view).get(name)
        leaf = x509.load_pem_x509_certificate(found.tls_certificate.certificate_chain.inline_bytes)
        key = load_pem_private_key(found.tls_certificate.private_key.inline_bytes, None)
        assert leaf.public_key() == key.public_key()
        assert found.name == name
        assert found.tls_certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----\n")

    @pytest.mark.parametrize(
        ("name", "trusted"),
        [
            (OWN, ["example.org"]),
            (FED, ["fed.test"]),
            ("ROOTCA", ["example.org"]),
            ("ALL", ["example.org", "fed.test"]),
        ],
    )
    def test_a_bundle_is_a_validator_that_keeps_trust_domains_apart(self, view, name, trusted):
        found = domains(secrets(view).get(name))
        assert list(found) == trusted  # sorted by name
        assert all(len(x509.load_pem_x509_certificates(pem)) == 1 for pem in found.values())

    def test_a_proxy_without_the_validator_gets_a_plain_list_and_never_all_domains_in_one(self, view):
        plain = secrets(view, validator=False)
        assert plain.get("ROOTCA").validation_context.trusted_ca.inline_bytes.startswith(b"-----BEGIN CERTIFICATE")
        with pytest.raises(Internal, match="cannot tell trust domains apart"):
            plain.get("ALL")

    @pytest.mark.parametrize("name", ["", "spiffe://example.org/other", "spiffe://other.test", "rootca", "/web"])
    def test_anything_else_leads_to_nothing(self, view, name):
        assert secrets(view).get(name) is None

    def test_the_operator_names_them(self, view):
        """Istio federates behind ROOTCA (integrations 4a)."""
        names = SdsNames(default_svid="mine", default_bundle="own", default_all_bundles="ROOTCA")
        found = secrets(view, names=names)
        assert found.get("mine").HasField("tls_certificate")
        assert set(domains(found.get("ROOTCA"))) == {"example.org", "fed.test"}
        assert found.get("default") is None

    def test_no_names_mean_everything_under_its_full_name(self, view):
        assert [secret.name for secret in secrets(view).every()] == [WEB, DB, OWN, FED]

    def test_without_an_identity_there_is_the_own_bundle_at_most(self, ca, view):
        bare = WorkloadView((), ca.bundle(), view.federated)
        assert [secret.name for secret in secrets(bare).every()] == [OWN]

    def test_nothing_expired_is_handed_out(self, ca):
        """N-A-26."""
        mixed = WorkloadView((ca.identity("/old", seconds=60), ca.identity("/web", seconds=3600)), ca.bundle())
        later = SystemClock().now() + timedelta(seconds=120)
        found = secrets(mixed, now=later)
        assert found.get("spiffe://example.org/old") is None
        assert (
            found.get("default") == found.get(WEB)
            or found.get("default").tls_certificate == found.get(WEB).tls_certificate
        )
        with pytest.raises(Unavailable):
            secrets(mixed, now=later + timedelta(hours=2))


NODES = {
    "nothing said": ({}, True),
    "1.18": ({"version": (1, 18)}, True),
    "1.17": ({"version": (1, 17)}, False),
    "0.99": ({"version": (0, 99)}, False),
    "metadata true": ({"metadata": {"disable_spiffe_cert_validation": True}}, False),
    "metadata false": ({"metadata": {"disable_spiffe_cert_validation": False}}, True),
    "metadata text": ({"metadata": {"disable_spiffe_cert_validation": "true"}}, False),
    "metadata other text": ({"metadata": {"disable_spiffe_cert_validation": "no"}}, True),
}


@pytest.mark.parametrize("case", NODES)
def test_who_gets_the_validator(case):
    said, expected = NODES[case]
    node = discovery.Node()
    if "version" in said:
        node.user_agent_build_version.version.major_number, node.user_agent_build_version.version.minor_number = said[
            "version"
        ]
    node.metadata.update(said.get("metadata", {}))
    assert wants_validator(node, SdsNames()) is expected
    assert not wants_validator(node, SdsNames(disable_validator=True))


class TestWorld:
    def test_the_first_request_is_answered_whatever_version_it_names(self, view):
        """The reconnect trap: an old version and no nonce (integrations 2)."""
        stream = world()
        stream.state_changed()
        assert not stream.owed
        stream.request(request("default", version_info="7"))
        assert stream.owed
        response = stream.answer(secrets(view))
        assert (response.version_info, response.nonce, response.type_url) == ("1", "n1", SECRET_TYPE)
        assert [secret.name for secret in unpacked(response)] == ["default"]
        assert not stream.owed

    def test_an_acknowledgement_a_complaint_and_a_stale_request_need_no_answer(self, view):
        stream = world()
        stream.request(request("default"))
        stream.answer(secrets(view))
        stream.request(request("default", nonce="n1", version_info="1"))
        stream.request(request("default", nonce="n1", version_info="", error_detail={"message": "bad"}))
        stream.request(request("other", nonce="stale"))
        stream.request(request("other"))
        assert not stream.owed
        assert stream.names == ("default",)

    def test_changed_names_are_answered_at_once_and_changes_always(self, view):
        stream = world()
        stream.request(request("default"))
        stream.answer(secrets(view))
        stream.request(request("default", "ROOTCA", nonce="n1"))
        assert stream.owed
        assert {secret.name for secret in unpacked(stream.answer(secrets(view)))} == {"default", "ROOTCA"}
        stream.state_changed()
        assert stream.owed
        assert stream.answer(secrets(view)).version_info == "3"

    def test_the_node_is_remembered(self, view):
        stream = world()
        stream.request(request("default", node={"id": "a"}))
        stream.request(request("default"))
        assert stream.node.id == "a"

    def test_names_one_may_not_have_are_refused_all_together(self, view):
        stream = world()
        stream.request(request("default", "spiffe://example.org/other", "nothing"))
        with pytest.raises(InvalidRequest) as refusal:
            stream.answer(secrets(view))
        assert refusal.value.public == (
            'workload is not authorized for the requested identities ["spiffe://example.org/other" "nothing"]'
        )

    @pytest.mark.parametrize("names", [[str(n) for n in range(MAX_NAMES + 1)], ["x" * 5000]])
    def test_requests_are_bounded(self, names):
        with pytest.raises(Exhausted):
            world().request(request(*names))
        with pytest.raises(Exhausted):
            delta().request(subscribe(*names))


def delta():
    return DeltaStream(nonces())


def subscribe(*names, gone=(), held=None, nonce=""):
    return discovery.DeltaDiscoveryRequest(
        resource_names_subscribe=names,
        resource_names_unsubscribe=gone,
        initial_resource_versions=held or {},
        response_nonce=nonce,
        type_url=SECRET_TYPE,
    )


class TestDelta:
    def test_each_resource_comes_once_and_again_when_it_changes(self, ca, view):
        stream = delta()
        stream.request(subscribe("default", "ROOTCA"))
        first = stream.answer(secrets(view))
        assert [one.name for one in first.resources] == ["default", "ROOTCA"]
        assert {secret.name for secret in unpacked(first)} == {"default", "ROOTCA"}
        stream.request(subscribe(nonce=first.nonce))
        assert not stream.owed
        stream.state_changed()
        assert stream.answer(secrets(view)) is None
        rotated = WorkloadView((ca.identity("/web"), view.x509_svids[1]), view.bundle, view.federated)
        stream.state_changed()
        assert [one.name for one in stream.answer(secrets(rotated)).resources] == ["default"]

    def test_a_proxy_that_comes_back_is_sent_only_what_differs(self, view):
        first = delta()
        first.request(subscribe("default", "ROOTCA"))
        held = {one.name: one.version for one in first.answer(secrets(view)).resources}
        again = delta()
        again.request(subscribe("default", "ROOTCA", held={**held, "default": "old"}))
        assert [one.name for one in again.answer(secrets(view)).resources] == ["default"]

    def test_what_leads_to_nothing_is_removed_once_and_delivered_when_it_appears(self, ca, view):
        stream = delta()
        stream.request(subscribe("spiffe://example.org/late"))
        response = stream.answer(secrets(view))
        assert (list(response.resources), list(response.removed_resources)) == ([], ["spiffe://example.org/late"])
        stream.state_changed()
        assert stream.answer(secrets(view)) is None
        late = ca.view("/late")
        stream.state_changed()
        assert [one.name for one in stream.answer(secrets(late)).resources] == ["spiffe://example.org/late"]
        stream.state_changed()
        assert list(stream.answer(secrets(view)).removed_resources) == ["spiffe://example.org/late"]

    def test_unsubscribed_names_are_not_mentioned_again(self, ca, view):
        stream = delta()
        stream.request(subscribe("default", WEB))
        stream.answer(secrets(view))
        stream.request(subscribe(gone=["default"]))
        stream.state_changed()
        changed = ca.view("/web")
        response = stream.answer(secrets(changed))
        assert [one.name for one in response.resources] == [WEB]
        assert not response.removed_resources

    def test_names_that_lead_to_nothing_are_forgotten_when_they_are_unsubscribed(self, view):
        """S53: one stream that tries out names must not fill the agent's memory."""
        stream = delta()
        for number in range(10):
            names = [f"spiffe://example.org/{number}/{tail}" for tail in range(100)]
            stream.request(subscribe(*names))
            assert len(stream.answer(secrets(view)).removed_resources) == 100
            stream.request(subscribe(gone=names))
        assert len(stream._told_missing) <= 100

    def test_a_name_asked_for_again_is_sent_again(self, view):
        stream = delta()
        stream.request(subscribe("default"))
        first = stream.answer(secrets(view))
        stream.request(subscribe("default", nonce=first.nonce))
        assert [one.name for one in stream.answer(secrets(view)).resources] == ["default"]

    @pytest.mark.parametrize("names", [(), ("*",)])
    def test_no_names_or_an_asterisk_mean_everything(self, view, names):
        stream = delta()
        stream.request(subscribe(*names))
        assert [one.name for one in stream.answer(secrets(view)).resources] == [WEB, DB, OWN, FED]
