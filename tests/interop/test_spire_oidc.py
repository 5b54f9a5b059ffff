"""SPIRE's oidc-discovery-provider beside ours: the same members with the same values, each reading both servers.

MUNIMENT_SPIRE_BIN may hold the provider's program too (SPIRE builds it from support/oidc-discovery-provider).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import BIN, Daemon, LocalStack
from tests.interop.peers import lacking, until
from tests.interop.spire import StockAgent, StockServer, spire_binaries

pytestmark = pytest.mark.slow

DOMAIN, HOST = "same.test", "oidc.same.test"
PATHS = ("/.well-known/openid-configuration", "/keys")


@pytest.fixture(scope="module")
def stock_provider() -> Path:
    program = spire_binaries() / "oidc-discovery-provider"
    if not os.access(program, os.X_OK):
        lacking("spire-oidc", f"{program} is not there; build it from SPIRE's support/oidc-discovery-provider")
    return program


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="moidc-") as path:
        yield Path(path)


@pytest.fixture(scope="module", params=["ours", "stock"])
def admin_socket(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """The admin socket of a server: ours with RSA, SPIRE's with the curve it takes by itself."""
    if request.param == "ours":
        with LocalStack(DOMAIN, server='[jwt]\nkey_type = "rsa-2048"\n') as stack:
            stack.start_server()
            yield stack.admin_socket
        return
    server = StockServer(spire_binaries(), folder, DOMAIN)
    try:
        server.start()
        yield server.socket
    finally:
        server.close()


class OverSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(path: Path, name: str, method: str = "GET", host: str = HOST) -> tuple[int, dict[str, str], bytes]:
    connection = OverSocket(path)
    try:
        connection.request(method, name, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def documents(path: Path) -> list[Any]:
    found = []
    for name in PATHS:
        status, headers, body = ask(path, name)
        assert (status, headers["content-type"]) == (200, "application/json"), body
        found.append(json.loads(body))
    return found


@contextmanager
def serving(argv: list[str], path: Path, log: Path) -> Iterator[Path]:
    """A provider that has its keys."""
    daemon = Daemon(argv, log)
    try:

        def answers() -> bool:
            """both documents are served"""
            return path.exists() and {ask(path, name)[0] for name in PATHS} == {200}

        until(answers)
        yield path
    finally:
        daemon.stop()


def ours(folder: Path, server: Path | None, agent: Path | None = None, **names: str) -> Any:
    path = folder / "ours.sock"
    text = f'domains = ["{HOST}"]\nlisten_socket_path = "{path}"\n' + "".join(
        f'{key} = "{value}"\n' for key, value in names.items()
    )
    source = f'[server_api]\naddress = "unix://{server}"\n'
    if agent is not None:
        source = f'[workload_api]\nsocket_path = "{agent}"\ntrust_domain = "{DOMAIN}"\n'
    (folder / "oidc.toml").write_text(text + source)
    argv = [str(BIN / "identity-server"), "oidc", "--config", str(folder / "oidc.toml")]
    return serving(argv, path, folder / "ours.log")


def stock(program: Path, folder: Path, server: Path | None, agent: Path | None = None, **names: str) -> Any:
    path = folder / "stock.sock"
    source = f'server_api {{ address = "unix://{server}" }}'
    if agent is not None:
        source = f'workload_api {{\n socket_path = "{agent}"\n trust_domain = "{DOMAIN}"\n}}'
    text = "".join(f'{key} = "{value}"\n' for key, value in names.items())
    (folder / "oidc.conf").write_text(
        f'log_level = "debug"\ndomains = ["{HOST}"]\nset_key_use = true\nlisten_socket_path = "{path}"\n{text}'
        f"{source}\n"
    )
    return serving([str(program), "-config", str(folder / "oidc.conf")], path, folder / "stock.log")


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"jwt_issuer": "https://issuer.test/td"},
        {"jwt_issuer": "https://issuer.test", "jwks_uri": "https://cdn.test/jwks"},
    ],
    ids=["own-url", "issuer", "keys-elsewhere"],
)
def test_both_documents_have_the_same_members_and_values(
    stock_provider: Path, folder: Path, admin_socket: Path, names: dict[str, str]
) -> None:
    """spire_features 21: field by field; the path prefix is SPIRE's default where the issuer has a path."""
    with ours(folder, admin_socket, **names, server_path_prefix="/") as one:
        with stock(stock_provider, folder, admin_socket, **names) as other:
            (configuration, keys), (expected, wanted) = documents(one), documents(other)
    assert list(configuration.items()) == list(expected.items())
    assert by_id(keys) == by_id(wanted)


def by_id(keys: Any) -> dict[str, Any]:
    assert list(keys) == ["keys"]
    return {key["kid"]: key for key in keys["keys"]}


def test_refusals_are_the_same(stock_provider: Path, folder: Path, admin_socket: Path) -> None:
    """spire_features 21: 400 for another host, 405 for another method, 404 for another path."""
    with ours(folder, admin_socket) as one, stock(stock_provider, folder, admin_socket) as other:
        for name, method, host in (
            (PATHS[0], "GET", "evil.test"),
            (PATHS[0], "POST", HOST),
            (PATHS[1], "POST", HOST),
            ("/keys/", "GET", HOST),
            ("/", "GET", HOST),
        ):
            assert ask(one, name, method, host)[0] == ask(other, name, method, host)[0], (name, method, host)


@pytest.fixture(scope="module", params=["ours", "stock"])
def agent_socket(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """The Workload API of an agent that knows this user's processes: ours, or SPIRE's, joined to our server."""
    with LocalStack(DOMAIN) as stack:
        stack.start_server()
        stack.register("/oidc", f"unix:uid:{os.getuid()}")
        if request.param == "ours":
            stack.prepare_join()
            stack.start_agent()
            yield stack.api_socket
            return
        bundle = folder / "bundle.pem"
        bundle.write_text(stack.admin("bundle", "show"))
        token = stack.admin_json("token", "generate", "-spiffeID", stack.node_id)["value"]
        agent = StockAgent(spire_binaries(), folder / "agent", trust_domain=DOMAIN, port=stack.port, bundle=bundle)
        try:
            yield agent.start(token).socket
        finally:
            agent.close()


def test_both_get_the_same_keys_of_an_agent(stock_provider: Path, folder: Path, agent_socket: Path) -> None:
    """WAPI-37, WAPI-39: the JWT bundle of either agent, read by either provider."""
    with ours(folder, None, agent_socket) as one, stock(stock_provider, folder, None, agent_socket) as other:
        assert by_id(documents(one)[1]) == by_id(documents(other)[1])
