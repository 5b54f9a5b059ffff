"""Brokers that name pods: a real agent, a kubelet over real HTTPS (BAPI-09, BAPI-10, BAPI-18, BAPI-20)."""

import asyncio

import pytest

from node_agent.domain.brokers import KUBERNETES
from node_agent.services import referenced
from tests.doubles.broker_client import pods
from tests.doubles.kubelet import Kubelet, pod
from tests.integration.test_broker import (
    DENIED,
    INVALID,
    MISSING,
    NOT_ENTITLED,
    NOT_FOUND,
    REFERENCE,
    allowing,
    ids_of,
    refusal,
    serving,
)
from tests.integration.test_k8s_attestor import UID
from tests.integration.test_k8s_attestor import pki as pki  # noqa: PLC0414  # a fixture

FRONTEND = (("k8s", "ns:shop"), ("k8s", "sa:frontend"))


@pytest.fixture
def kubelet(pki):
    with Kubelet(pki / "kubelet.crt", pki / "kubelet.key") as started:
        started.pods = [pod(UID, {"app": "a" * 64}, labels={"app": "web"})]
        yield started


def attestors(kubelet, pki):
    return {
        "unix": {},
        "k8s": {
            "kubelet_secure_port": kubelet.port,
            "kubelet_ca_path": str(pki / "ca.crt"),
            "token_path": str(pki / "token"),
            "node_name": "localhost",
        },
    }


async def test_a_pod_is_followed_until_it_is_gone(kubelet, pki, monkeypatch):
    """By key, by UID, by both; its end is noticed at the next look; labels that change are too."""
    monkeypatch.setattr(referenced, "RECHECK_SECONDS", 0.1)
    async with serving(allowing(KUBERNETES, tcp=True), attestors=attestors(kubelet, pki)) as endpoint:
        await endpoint.entries({"path": "/frontend", "selectors": FRONTEND})
        await endpoint.entries({"path": "/admin", "selectors": FRONTEND}, admin=True)
        await endpoint.entries({"path": "/canary", "selectors": (("k8s", "pod-label:track:canary"),)})
        us = await endpoint.broker(tcp=True)
        for reference in (pods(namespace="shop", name="web-0"), pods(uid=UID)):
            stream = us.svids(reference)
            assert ids_of(await stream.read()) == ["spiffe://example.org/frontend"]
            stream.cancel()
        stream = us.svids(pods(namespace="shop", name="web-0", uid=UID))
        await stream.read()
        assert ids_of(await us.tokens(pods(uid=UID))) == ["spiffe://example.org/frontend"]
        kubelet.pods = [pod(UID, {"app": "a" * 64}, labels={"track": "canary"})]
        async with asyncio.timeout(20):
            while len((await stream.read()).svids) < 2:
                pass
        kubelet.pods = [pod("another-uid", {"app": "b" * 64})]
        assert await refusal(stream) == (NOT_FOUND, MISSING)


async def test_what_cannot_be_looked_up_is_refused(kubelet, pki):
    """Gone, unknown, of another kind, without an identity; a kubelet that does not answer is Unavailable."""
    async with serving(allowing(KUBERNETES), attestors=attestors(kubelet, pki)) as endpoint:
        us = await endpoint.broker()
        assert await refusal(us.svids(pods(uid=UID))) == (DENIED, NOT_ENTITLED)
        assert await refusal(us.svids(pods(uid="nobody"))) == (NOT_FOUND, MISSING)
        assert await refusal(us.tokens(pods(namespace="shop", name="web-0", uid="stale"))) == (NOT_FOUND, MISSING)
        other = pods(plural="deployments", group="apps", namespace="shop", name="web")
        assert await refusal(us.svids(other)) == (INVALID, REFERENCE)
        assert await refusal(us.svids(pods(name="web-0"))) == (INVALID, REFERENCE)
