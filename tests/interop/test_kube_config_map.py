"""With a real API server: the rights that docs/publishing.md names suffice to publish the bundle in a ConfigMap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from attestors.kube_config import PodSurroundings
from identity_server.domain.publication import BundleFormat, Outcome, publication_of
from identity_server.publish.config_map import DOMAIN, SEQUENCE, ConfigMapTarget
from identity_server.settings_publish import PublishConfigMapSection
from spiffe_core.bundle_document import load_bundle
from spiffe_core.errors import PreconditionFailed, Unavailable
from spiffe_core.spiffe_id import TrustDomain
from tests.authority import SpiffeTestCA
from tests.doubles.pages import DOCS
from tests.interop.kube_apiserver import ApiServer, kube_binaries, real_api_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("kube-apiserver")]

TD = TrustDomain("example.org")
CA = SpiffeTestCA("example.org")
MAP = "/api/v1/namespaces/muniment/configmaps/trust-bundle"


def documented() -> list[dict[str, Any]]:
    """The role and its binding, as the page prints them."""
    page = (DOCS / "publishing.md").read_text()
    (block,) = [one for one in page.split("```yaml\n")[1:] if "configmaps" in one]
    return list(yaml.safe_load_all(block.partition("```")[0]))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with real_api_server(kube_binaries(), tmp_path_factory.mktemp("kube")) as started:
        started.call("POST", "/api/v1/namespaces", {"metadata": {"name": "muniment"}})
        for name in ("identity-server", "nobody"):
            account = {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": "muniment"},
            }
            assert started.create(account)[0] == 201
        for one in documented():
            assert started.create(one)[0] == 201
        yield started


def target(api: ApiServer, folder: Path, account: str = "identity-server") -> ConfigMapTarget:
    (folder / "token").write_text(api.token(account))
    (folder / "ca.crt").write_bytes(api.ca.read_bytes())
    host, _, port = api.url.removeprefix("https://").partition(":")
    variables = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    section = PublishConfigMapSection(
        namespace="muniment", configmap_name="trust-bundle", configmap_key="bundle.json", format="spiffe"
    )
    return ConfigMapTarget("here", section, PodSurroundings(lambda name: variables[name], folder))


def test_it_is_created_changed_and_never_set_back(api: ApiServer, tmp_path: Path) -> None:
    """TDB-06; other keys stay, and a stranger's account is told which right it lacks."""
    ours = [publication_of(CA.bundle(sequence=number), BundleFormat.SPIFFE) for number in range(4)]
    publisher = target(api, tmp_path)
    assert publisher.put(ours[1]) is Outcome.WRITTEN
    assert publisher.put(ours[1]) is Outcome.UNCHANGED
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trust-bundle"}, "data": {"other": "kept"}}
    _, found = api.call("GET", MAP)
    assert api.call("PUT", MAP, {**found, "data": {**found["data"], **theirs["data"]}})[0] == 200
    assert publisher.put(ours[3]) is Outcome.WRITTEN
    with pytest.raises(PreconditionFailed, match="sequence 3"):
        publisher.put(ours[2])
    _, found = api.call("GET", MAP)
    assert found["data"]["other"] == "kept"
    assert load_bundle(found["data"]["bundle.json"].encode(), TD).bundle.sequence == 3
    assert found["metadata"]["annotations"] == {DOMAIN: "example.org", SEQUENCE: "3"}
    assert {one["manager"] for one in found["metadata"]["managedFields"]} >= {"muniment-identity-server"}
    (tmp_path / "nobody").mkdir()
    with pytest.raises(Unavailable, match="`get` on `configmaps` in the namespace muniment"):
        target(api, tmp_path / "nobody", "nobody").put(ours[3])


def test_a_change_between_look_and_write_is_noticed(api: ApiServer, tmp_path: Path) -> None:
    """The resource version in a merge patch is a precondition for the real one too."""
    publisher = target(api, tmp_path)
    publisher.put(publication_of(CA.bundle(sequence=10), BundleFormat.SPIFFE))
    looked = publisher._found

    def look(*asked: Any) -> Any:
        found = looked(*asked)
        publisher._found = looked  # type: ignore[method-assign]  # once
        target(api, tmp_path).put(publication_of(CA.bundle(sequence=12), BundleFormat.SPIFFE))
        return found

    publisher._found = look  # type: ignore[method-assign]  # somebody is quicker
    with pytest.raises(PreconditionFailed, match="sequence 12"):
        publisher.put(publication_of(CA.bundle(sequence=11), BundleFormat.SPIFFE))
