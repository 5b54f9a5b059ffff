"""The bundle in a ConfigMap, against an API server of our own over real HTTPS (spire_features 2.6: k8s_configmap)."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from attestors.kube_config import PodSurroundings
from identity_server.domain.publication import BundleFormat, Outcome, publication_of
from identity_server.publish.config_map import DOMAIN, MAX_CONTENT_BYTES, SEQUENCE, ConfigMapTarget
from identity_server.settings_publish import PublishConfigMapSection
from spiffe_core.bundle_document import load_bundle
from spiffe_core.errors import ConfigError, PreconditionFailed, Unavailable
from spiffe_core.runtime.supervise import Supervisor
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from tests.authority import SpiffeTestCA
from tests.databases import url_of
from tests.doubles.kube_api import KubePki
from tests.doubles.kube_cluster import KubeCluster
from tests.doubles.kube_config_maps import RIGHTS, ConfigMapApi
from tests.doubles.live_server import live_server

TD = TrustDomain("example.org")
CA = SpiffeTestCA("example.org")
PLACE = ("spire", "trust-bundle")


def ours(sequence, form=BundleFormat.SPIFFE):
    return publication_of(CA.bundle(sequence=sequence), form)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return KubePki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def api(pki):
    with ConfigMapApi(KubeCluster(), pki) as api:
        yield api


@pytest.fixture
def target(api, tmp_path):
    return in_pod(api, tmp_path)


def in_pod(api, folder, rights=RIGHTS, key="bundle.json"):
    """A target in the pod of a service account with these rights."""
    (folder / "token").write_text(api.caller(rights=rights))
    (folder / "ca.crt").write_bytes(api.pki.ca.read_bytes())
    variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
    return ConfigMapTarget("here", section(configmap_key=key), PodSurroundings(lambda name: variables[name], folder))


def section(**over):
    document = {"namespace": PLACE[0], "configmap_name": PLACE[1], "configmap_key": "bundle.json", "format": "spiffe"}
    return PublishConfigMapSection.model_validate({**document, **over})


def test_the_config_map_is_created_then_changed_and_not_touched_when_it_is_the_same(api, target):
    """The annotations say of whom and how new."""
    assert target.put(ours(1)) is Outcome.WRITTEN
    assert target.put(ours(1)) is Outcome.UNCHANGED
    assert target.put(ours(2)) is Outcome.WRITTEN
    found = api.maps[PLACE]
    assert load_bundle(found["data"]["bundle.json"].encode(), TD).bundle.sequence == 2
    assert found["metadata"]["annotations"] == {DOMAIN: "example.org", SEQUENCE: "2"}
    assert [method for method, _ in api.requests] == ["GET", "POST", "GET", "GET", "PATCH"]


def test_other_keys_and_annotations_of_the_config_map_stay(api, target):
    """As Istio and others keep theirs in the same one."""
    api.put(*PLACE, {"theirs": "x"}, note="y")
    target.put(ours(1))
    assert api.maps[PLACE]["data"]["theirs"] == "x"
    assert api.maps[PLACE]["metadata"]["annotations"]["note"] == "y"


def test_a_newer_one_and_another_trust_domains_are_left_alone(api, target):
    """TDB-06, whatever the format."""
    target.put(ours(5, BundleFormat.PEM))
    before = dict(api.maps)
    with pytest.raises(PreconditionFailed, match="sequence 5"):
        target.put(ours(4, BundleFormat.PEM))
    theirs = SpiffeTestCA("other.org").bundle(sequence=9)
    with pytest.raises(PreconditionFailed, match=r"example\.org"):
        target.put(publication_of(theirs, BundleFormat.PEM))
    assert api.maps == before


def test_whoever_writes_between_our_look_and_our_write_is_looked_at_again(api, target):
    """Two servers at once: the older bundle does not win, whichever came first."""
    target.put(ours(1))
    api.meanwhile.append(lambda: api.put(*PLACE, {"bundle.json": "{}"}, **{DOMAIN: "example.org", SEQUENCE: "9"}))
    with pytest.raises(PreconditionFailed, match="sequence 9"):
        target.put(ours(2))
    del api.maps[PLACE]
    api.meanwhile.append(lambda: api.put(*PLACE, {}, **{SEQUENCE: "not a number"}))
    assert target.put(ours(2)) is Outcome.WRITTEN


def test_it_gives_up_on_a_config_map_that_is_never_still(api, target):
    """And says so."""
    target.put(ours(1))
    api.meanwhile.extend([lambda: api.put(*PLACE, {})] * 10)
    with pytest.raises(Unavailable, match="by others all the time"):
        target.put(ours(2))


def test_the_token_is_read_again_each_time(api, target, tmp_path):
    """The kubelet replaces it every hour."""
    (tmp_path / "token").write_text("no-token-of-ours")
    with pytest.raises(Unavailable, match="refuses us"):
        target.put(ours(1))
    (tmp_path / "token").write_text(api.caller(rights=RIGHTS))
    assert target.put(ours(1)) is Outcome.WRITTEN


@pytest.mark.parametrize("verb", ["get", "create", "patch"])
def test_a_right_that_lacks_is_named(api, tmp_path, verb):
    """With the namespace."""
    if verb == "patch":
        api.put(*PLACE, {})
    target = in_pod(api, tmp_path, RIGHTS - {f"{verb} configmaps"})
    with pytest.raises(Unavailable, match=f"`{verb}` on `configmaps` in the namespace spire"):
        target.put(ours(1))


def test_other_clusters_are_reached_by_their_kubeconfig(api, tmp_path):
    """As k8s_psat does; what cannot be read names the setting."""
    path = tmp_path / "kubeconfig.json"
    api.kubeconfig(path, user={"token": api.caller("publisher", rights=RIGHTS)})
    target = ConfigMapTarget("there", section(kubeconfig_path=str(path)))
    assert target.put(ours(1)) is Outcome.WRITTEN
    path.unlink()
    with pytest.raises(ConfigError, match=r"publish\.k8s_configmap\.there\.kubeconfig_path"):
        target.put(ours(2))


def test_a_bundle_that_no_config_map_holds_is_refused_before_it_is_sent(api, target):
    """1 MiB."""
    big = ours(1).__class__(TD, 1, BundleFormat.SPIFFE, b"x" * (MAX_CONTENT_BYTES + 1))
    with pytest.raises(PreconditionFailed, match="a file or a bucket"):
        target.put(big)
    assert not api.requests


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"[]"), (503, b"no JSON"), (404, b"{}")])
def test_answers_that_say_nothing_are_troubles(api, target, status, body):
    """Never a bug, and never taken for a success."""
    target.put(ours(1))
    api.canned["configmaps/trust-bundle"] = (status, body)
    if status == 404:
        api.canned["configmaps?"] = (422, json.dumps({"message": "invalid"}).encode())
    with pytest.raises(Unavailable):
        target.put(ours(2))


async def test_two_servers_of_one_database_never_set_it_back(api, tmp_path):
    """TDB-06: both publish each change that either makes; what is seen in the place only grows, and ends at the newest."""
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig.json", user={"token": api.caller("publisher", rights=RIGHTS)})
    table = {
        "namespace": PLACE[0],
        "configmap_name": PLACE[1],
        "configmap_key": "bundle.json",
        "format": "spiffe",
        "kubeconfig_path": str(kubeconfig),
    }
    shared = {"database": {"url": url_of("postgresql", tmp_path)}, "publish": {"k8s_configmap": {"here": table}}}
    seen, put = [], api.put

    def keep(namespace, name, data, **annotations):
        seen.append(int(annotations[SEQUENCE]))
        return put(namespace, name, data, **annotations)

    api.put = keep
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(live_server(**shared)) for _ in range(2)]
        tasks = await stack.enter_async_context(Supervisor())
        for one in servers:
            tasks.start(one.server.published.keep(), "endpoints")
            tasks.start(one.server.publishing.keep_up(), "publishing")
        for one in servers:
            await one.local.PrepareX509Authority(pb.PrepareX509AuthorityRequest(), timeout=20)
        async with asyncio.timeout(30):
            while len({*map(known, servers), seen[-1] if seen else 0}) > 1:
                await asyncio.sleep(0.02)
        tasks.stop()
    assert seen == sorted(seen)
    document = load_bundle(api.maps[PLACE]["data"]["bundle.json"].encode(), TD).bundle
    assert (document.sequence, len(document.x509_authorities)) == (seen[-1], 4)


def known(live):
    """The sequence that a server holds, once it told that it published it."""
    told = live.server.publishing.states()[0].sequence
    return told if told == live.state.bundles.own.sequence else -1
