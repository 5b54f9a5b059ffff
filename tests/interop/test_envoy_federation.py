"""Mutual TLS across two trust domains through real Envoys, while both change their keys (issue 6)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.doubles.federated_stacks import FederatedStack, federate
from tests.interop.envoy import Backend, Envoy, Load, envoy_binary, link, tls_context
from tests.interop.peers import until

pytestmark = pytest.mark.slow


@pytest.fixture
def pair() -> Iterator[tuple[FederatedStack, FederatedStack]]:
    """Two domains that federated with one line in each direction."""
    envoy_binary()
    with FederatedStack("a.test", sync_interval="200ms") as a, FederatedStack("b.test", sync_interval="200ms") as b:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(FederatedStack.start, (a, b)))
        federate(a, b)
        yield a, b


def activate(stack: FederatedStack, authority_id: str) -> None:
    stack.admin("localauthority", "x509", "activate", "-authorityID", authority_id)


def test_proxies_of_two_domains_talk_through_a_rotation_of_both(
    pair: tuple[FederatedStack, FederatedStack], folder: Path
) -> None:
    """FED-01, FED-12, FED-46: bundles that were fetched reach Envoy by SDS; no request fails while both sides rotate."""
    a, b = pair
    a.register("/front", f"unix:path:{link(folder, 'front')}", ttl=20, federates_with=("b.test",))
    b.register("/back", f"unix:path:{link(folder, 'back')}", ttl=20, federates_with=("a.test",))
    inbound = tls_context("default", "ALL", {"exact": "spiffe://a.test/front"})
    outbound = tls_context("default", "ALL", {"exact": "spiffe://b.test/back"})
    with (
        Backend() as backend,
        Envoy(folder, "back", b.api_socket, backend.port, inbound=inbound) as back,
        Envoy(folder, "front", a.api_socket, back.until_live().port, outbound=outbound) as front,
    ):
        front.until_live()
        assert front.get() == (200, "spiffe://a.test/front")
        with Load(front) as load:
            new = [
                (one, one.admin_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"])
                for one in pair
            ]
            for one, other in ((a, b), (b, a)):
                until(lambda one=one, other=other: len(one.keys_of(other.trust_domain)) == 2, pause=0.2)  # type: ignore[misc]  # bound early
            updates = front.stat("sds.default.update_success")
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(lambda one: activate(*one), new))
            until(lambda: front.stat("sds.default.update_success") > updates, pause=0.2)
        assert load.done > 20
        assert load.failed == []
        b.admin("federation", "delete", "-id", "a.test")
        b.admin("bundle", "delete", "-id", "a.test", "-mode", "dissociate")
        until(lambda: front.get()[0] == 503, pause=0.2)
