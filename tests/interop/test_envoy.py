"""Envoy 1.40 with its certificates from our agent's SDS (integrations 2 to 4): mutual TLS between two real proxies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.interop.envoy import Backend, Envoy, Load, envoy_binary, link, tls_context
from tests.interop.peers import until

pytestmark = pytest.mark.slow

DOMAIN = "spiffe://mesh.test"
TTL = 6
LONG_TTL = 120
"""Seconds an SVID lives here: it is renewed after about three."""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as started:
        yield started


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[LocalStack]:
    envoy_binary()
    with LocalStack("mesh.test", sync_interval="200ms") as started:
        started.start()
        for name in ("server", "client", "istio-server", "delta-server", "delta-client"):
            register(started, folder, name)
        yield started


def register(stack: LocalStack, folder: Path, name: str, ttl: int = TTL) -> str:
    """An entry for the proxy of that name."""
    return stack.register(f"/{name}", f"unix:path:{link(folder, name)}", f"unix:uid:{os.getuid()}", ttl=ttl)


def exact(path: str) -> dict[str, str]:
    return {"exact": f"{DOMAIN}{path}"}


@pytest.fixture(scope="module")
def server(stack: LocalStack, folder: Path, backend: Backend) -> Iterator[Envoy]:
    """A proxy in front of the service, for /client alone, with the names App Mesh uses: the ID and the trust domain."""
    tls = tls_context(f"{DOMAIN}/server", DOMAIN, exact("/client"))
    with Envoy(folder, "server", stack.api_socket, backend.port, inbound=tls) as proxy:
        yield proxy.until_live()


def dialing(stack: LocalStack, folder: Path, name: str, to: Envoy, peer: dict[str, str], **how: object) -> Envoy:
    """A proxy of a client."""
    return Envoy(folder, name, stack.api_socket, to.port, outbound=tls_context("default", "ROOTCA", peer, **how))


def test_two_proxies_talk_mutual_tls_and_see_each_other(stack: LocalStack, folder: Path, server: Envoy) -> None:
    """200 through both; the service behind sees the caller's SPIFFE ID."""
    with dialing(stack, folder, "client", server, exact("/server")) as client:
        client.until_live()
        assert client.get() == (200, f"{DOMAIN}/client")
        assert set(client.secrets()) == {"default", "ROOTCA"}
        context = client.secrets()["ROOTCA"]["validation_context"]["custom_validator_config"]
        assert context["name"] == "envoy.tls.cert_validator.spiffe"


def test_a_wrong_id_is_refused_on_either_side(stack: LocalStack, folder: Path, server: Envoy) -> None:
    """The matcher decides by the URI SAN, with the SPIFFE validator."""
    with dialing(stack, folder, "client", server, exact("/somebody")) as client:
        client.until_live()
        assert client.get()[0] == 503
        assert client.stat("cluster.next.ssl.fail_verify_san") > 0
    before = server.stat("listener.*.ssl.fail_verify_san")
    register(stack, folder, "intruder")
    with dialing(stack, folder, "intruder", server, exact("/server")) as intruder:
        intruder.until_live()
        assert intruder.get()[0] == 503
    assert server.stat("listener.*.ssl.fail_verify_san") > before


def test_a_proxy_without_the_validator_gets_plain_authorities(stack: LocalStack, folder: Path, server: Envoy) -> None:
    """Node metadata `disable_spiffe_cert_validation`."""
    tls = tls_context("default", "ROOTCA", exact("/server"))
    metadata = {"disable_spiffe_cert_validation": True}
    with Envoy(folder, "client", stack.api_socket, server.port, outbound=tls, metadata=metadata) as client:
        client.until_live()
        assert client.get()[0] == 200
        assert "trusted_ca" in client.secrets()["ROOTCA"]["validation_context"]


def test_rotation_and_a_forced_new_authority_drop_no_request(stack: LocalStack, folder: Path, server: Envoy) -> None:
    """SVIDs of six seconds, three rotations, then prepare, activate and taint: every request is a new handshake."""
    with dialing(stack, folder, "client", server, exact("/server")) as client:
        client.until_live()
        updates = "sds.default.update_success"
        with Load(client) as load:
            first = client.stat(updates)
            until(lambda: client.stat(updates) >= first + 3, pause=0.1)
            shown = stack.admin_json("localauthority", "x509", "show")
            old = shown["active"]["authority_id"]
            new = stack.admin_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
            stack.admin("localauthority", "x509", "activate", "-authorityID", new)
            stack.admin("localauthority", "x509", "taint", "-authorityID", old)
            before = client.stat(updates)
            until(lambda: client.stat(updates) >= before + 1, pause=0.05)
        assert load.done > 50
        assert load.failed == []


def test_traffic_goes_on_while_the_agent_is_away_and_updates_come_back(
    stack: LocalStack, folder: Path, backend: Backend
) -> None:
    """The reconnect trap: the first request of a new stream names an old version and is answered.

    The SVIDs live longer than a proxy that backs off may take to come back.
    """
    for name in ("away-server", "away-client"):
        register(stack, folder, name, ttl=LONG_TTL)
    inbound = tls_context("default", "ROOTCA", exact("/away-client"))
    with (
        Envoy(folder, "away-server", stack.api_socket, backend.port, inbound=inbound) as far,
        dialing(stack, folder, "away-client", far.until_live(), exact("/away-server")) as client,
    ):
        client.until_live()
        assert stack.agent is not None
        with Load(client) as load:
            stack.agent.stop()
            asked = client.stat("sds.default.update_attempt")
            until(lambda: client.stat("sds.default.update_attempt") > asked, pause=0.05)
            seen = client.stat("sds.default.update_success")
            stack.start_agent()
            until(lambda: client.stat("sds.default.update_success") > seen, pause=0.05)
        assert load.done > 10
        assert load.failed == []


def test_a_proxy_becomes_live_when_its_entry_appears(stack: LocalStack, folder: Path, server: Envoy) -> None:
    """Istio's naming and timing: `default` and `ROOTCA`, no initial timeout, cluster `sds-grpc`."""
    tls = tls_context("default", "ROOTCA", exact("/server"), timeout="0s")
    with Envoy(folder, "late", stack.api_socket, server.port, outbound=tls) as late:
        until(lambda: late.stat("sds.default.update_attempt") > 0, pause=0.05)
        assert late.state() == "PRE_INITIALIZING"
        register(stack, folder, "late")
        late.until_live()
        assert late.get()[0] == 503  # the server's matcher wants /client


def test_istio_sees_an_agent_within_its_second(stack: LocalStack, folder: Path, backend: Backend) -> None:
    """Istio's prefix matcher, which is deprecated and still sent, works with the SPIFFE validator."""
    tls = tls_context("default", "ROOTCA", {"prefix": f"{DOMAIN}/"}, timeout="0s")
    with Envoy(folder, "istio-server", stack.api_socket, backend.port, inbound=tls) as sidecar:
        sidecar.until_live()
        with dialing(stack, folder, "client", sidecar, {"prefix": f"{DOMAIN}/"}, timeout="0s") as client:
            client.until_live()
            assert client.get() == (200, f"{DOMAIN}/client")


def test_delta_works_and_takes_withdrawn_secrets_away(stack: LocalStack, folder: Path, backend: Backend) -> None:
    """DELTA_GRPC, which a stock SPIRE agent answers Unimplemented: mutual TLS, rotation under load, agent restart."""
    inbound = tls_context("default", "ROOTCA", exact("/delta-client"), delta=True)
    with Envoy(folder, "delta-server", stack.api_socket, backend.port, inbound=inbound) as sidecar:
        sidecar.until_live()
        with dialing(stack, folder, "delta-client", sidecar, exact("/delta-server"), delta=True) as client:
            client.until_live()
            updates = "sds.default.update_success"
            with Load(client) as load:
                first = client.stat(updates)
                until(lambda: client.stat(updates) >= first + 1, pause=0.1)
                assert stack.agent is not None
                stack.agent.stop()
                stack.start_agent()
                seen = client.stat(updates)
                until(lambda: client.stat(updates) > seen, pause=0.1)
            assert load.failed == []
            assert client.get() == (200, f"{DOMAIN}/delta-client")


def test_a_federated_domain_is_believed_under_all_and_not_under_rootca(
    stack: LocalStack, folder: Path, backend: Backend
) -> None:
    """Two trust domains, each with the other's bundle: ALL keeps them apart and believes both, ROOTCA its own alone."""
    with LocalStack("fed.test", sync_interval="200ms") as other:
        other.start()
        for here, there in ((stack, other), (other, stack)):
            bundle = folder / f"{there.trust_domain}.json"
            bundle.write_text(there.admin("bundle", "show", "-format", "spiffe"))
            here.admin("bundle", "set", "-id", there.trust_domain, "-format", "spiffe", "-path", str(bundle))
        for here, name in ((stack, "fed-server"), (other, "fed-client")):
            federated = "fed.test" if here is stack else "mesh.test"
            words = ["entry", "create", "-parentID", here.node_id, "-spiffeID", f"spiffe://{here.trust_domain}/{name}"]
            here.admin(*words, "-selector", f"unix:path:{link(folder, name)}", "-federatesWith", federated)
        caller = {"exact": "spiffe://fed.test/fed-client"}
        outbound = tls_context("default", "ALL", exact("/fed-server"))
        for trusted, status in (("ROOTCA", 503), ("ALL", 200)):
            inbound = tls_context("default", trusted, caller)
            with (
                Envoy(folder, "fed-server", stack.api_socket, backend.port, inbound=inbound) as sidecar,
                Envoy(folder, "fed-client", other.api_socket, sidecar.port, outbound=outbound) as client,
            ):
                sidecar.until_live()
                client.until_live()
                answer = client.get()
                assert answer[0] == status
                assert (answer[1] == caller["exact"]) is (status == 200)


def test_the_version_tested_is_the_one_the_documents_name(folder: Path) -> None:
    """docs/compatibility.md names it."""
    said = subprocess.run([str(link(folder, "envoy")), "--version"], capture_output=True, text=True, check=True).stdout
    assert "/1.40." in said
