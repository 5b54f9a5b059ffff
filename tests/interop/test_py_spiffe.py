"""The `spiffe` package from PyPI as a client of our Workload API (WEP, WAPI rows; issue item 9)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from tests.interop.peers import HERE, ROOT, Interpreter, Program, lacking, our_interpreter

pytestmark = pytest.mark.slow

CLIENT = HERE / "py_spiffe_client.py"
OURS = HERE / "our_workload.py"
DOMAIN = "spiffe://interop.test"
TTL = 6
"""Seconds an SVID lives here: it is renewed after about three."""
WORKLOADS = (
    "py-fetch",
    "py-jwt",
    "py-watch",
    "py-client",
    "py-other",
    "py-server",
    "our-server",
    "our-client",
    "our-other",
)


@pytest.fixture(scope="module")
def packages() -> list[str]:
    """The packages of the foreign client's environment."""
    found = sorted(ROOT.glob(".venv-foreign/lib/python3*/site-packages/spiffe"))
    if not found:
        lacking("foreign", "the foreign client is not installed; make .venv-foreign/.installed")
    return [str(found[0].parent)]


Start = Callable[..., Program]


@pytest.fixture
def start(packages: list[str], stack: LocalStack, folder: Path) -> Start:
    """Run one of the two scripts as the workload of that name."""

    def run(name: str, script: Path, *words: str) -> Program:
        interpreter = our_interpreter(folder, name) if script == OURS else Interpreter(folder, name, packages)
        return interpreter.run(script, *words, socket=stack.api_socket)

    return run


def test_it_fetches_svids_and_bundles(start: Start) -> None:
    """WAPI: FetchX509SVID and FetchX509Bundles parse, the default SVID is the first, the key fits the leaf."""
    with start("py-fetch", CLIENT, "fetch") as client:
        found = client.hear("fetched")
        assert [svid["spiffe_id"] for svid in found["svids"]] == [f"{DOMAIN}/py-fetch"]
        assert found["default"] == f"{DOMAIN}/py-fetch"
        assert found["bundles"] == {"interop.test": 1}
        assert client.wait() == 0


def test_it_fetches_verifies_and_validates_tokens(start: Start) -> None:
    """WAPI-32 to WAPI-44: the package's own verification by the JWT bundle, and validation by the agent."""
    with start("py-jwt", CLIENT, "jwt", "https://api.interop.test") as client:
        found = client.hear("token")
        assert found["spiffe_id"] == found["validated"] == f"{DOMAIN}/py-jwt"
        assert found["audience"] == ["https://api.interop.test"]
        assert found["keys"] == 1
        assert client.wait() == 0


def test_it_is_refused_without_an_entry(start: Start) -> None:
    """WAPI: a process that no entry matches gets PermissionDenied, which the client understands."""
    with start("py-stranger", CLIENT, "fetch") as client:
        assert "no identity issued" in client.hear("refused")["text"]


def test_it_watches_two_rotations_on_one_stream(start: Start) -> None:
    """WAPI: the open stream carries each new SVID before the old one ends."""
    with start("py-watch", CLIENT, "watch", "2") as client:
        svids = [client.hear("svid") for _ in range(3)]
        assert client.wait() == 0
    assert {svid["spiffe_id"] for svid in svids} == {f"{DOMAIN}/py-watch"}
    assert len({svid["serial"] for svid in svids}) == 3
    ends = [svid["not_after"] for svid in svids]
    assert ends == sorted(ends)


def test_it_dials_our_library(start: Start) -> None:
    """N-X: strict OpenSSL accepts our chain, and our library knows the client by its SPIFFE ID."""
    with start("our-server", OURS, "serve", f"{DOMAIN}/py-client") as server:
        port = str(server.hear("listening")["port"])
        with start("py-client", CLIENT, "dial", port, f"{DOMAIN}/our-server") as client:
            greeted = client.hear("greeted")
        assert greeted["peer"] == f"{DOMAIN}/our-server"
        assert greeted["answer"] == f"you are {DOMAIN}/py-client"
        assert greeted["tls"] == "TLSv1.3"
        assert server.hear("greeted")["hello"] == "hello from py-spiffe"
        with start("py-other", CLIENT, "dial", port, f"{DOMAIN}/our-server") as other:
            other.hear("refused")


def test_our_library_dials_it_before_and_after_a_rotation(start: Start) -> None:
    """The same server goes on with its next SVID; a client that is not the expected one is turned away."""
    with start("py-server", CLIENT, "serve", f"{DOMAIN}/our-client") as server:
        port = str(server.hear("listening")["port"])
        serials: list[str] = []
        while len(set(serials)) < 2:
            with start("our-client", OURS, "dial", port, f"{DOMAIN}/py-server") as client:
                assert client.hear("greeted")["answer"] == f"you are {DOMAIN}/our-client"
            serials.append(server.hear("greeted")["serial"])
        with start("our-other", OURS, "dial", port, f"{DOMAIN}/py-server") as other:
            other.hear("refused")
        assert server.hear("refused")["peer"] == f"{DOMAIN}/our-other"
