"""A discovery provider as a process of its own beside a server and an agent: it follows them and goes on without them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.demo.stack import BIN, Daemon, LocalStack, free_port
from tests.doubles.web_certificate import trusting, write_web_certificate

pytestmark = pytest.mark.slow

SECONDS = 30.0


def until(fact: Callable[[], Any]) -> Any:
    """Ask until the answer is true: processes tell nothing unasked."""
    deadline = time.monotonic() + SECONDS
    while not (found := fact()):
        assert time.monotonic() < deadline, fact.__doc__ or fact
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStack]:
    with LocalStack("oidc.test", server='[jwt]\nissuer = "https://localhost"\n') as made:
        made.start_server()
        yield made


@pytest.fixture(scope="module")
def stack(server: LocalStack) -> LocalStack:
    """With an agent that knows the provider's process."""
    server.register("/oidc", f"unix:uid:{os.getuid()}")
    server.prepare_join()
    server.start_agent()
    return server


class Provider:
    """`identity-server oidc` with the agent as its source."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        self.port, self.health, self.numbers = free_port(), free_port(), free_port()
        write_web_certificate(folder)
        self._context: ssl.SSLContext = trusting(folder)
        config = folder / "oidc.toml"
        config.write_text(
            f'jwt_issuer = "https://localhost"\n'
            f'[workload_api]\nsocket_path = "{stack.api_socket}"\ntrust_domain = "oidc.test"\npoll_interval = "1s"\n'
            f"[health_checks]\nlistener_enabled = true\nbind_port = {self.health}\n"
            f"[telemetry.prometheus]\nport = {self.numbers}\n"
            f'[serving_cert_file]\naddr = "127.0.0.1:{self.port}"\n'
            f'cert_file_path = "{folder}/web.pem"\nkey_file_path = "{folder}/web.key"\n'
        )
        argv = [str(BIN / "identity-server"), "oidc", "--config", str(config)]
        self.daemon = Daemon(argv, folder / "oidc.log", env={"XDG_STATE_HOME": str(folder)})

    def ask(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self._context, timeout=10)
        return _asked(connection, path)

    def ready(self) -> tuple[int, str]:
        status, told = _asked(http.client.HTTPConnection("127.0.0.1", self.health, timeout=10), "/ready")
        return status, told["keys"]["state"] if told else ""

    def metrics(self) -> dict[str, float]:
        """Its numbers by name and labels, without the name of the machine."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.numbers}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = {}
        for sample in (one for family in families for one in family.samples):
            labels = [value for name, value in sorted(sample.labels.items()) if name != "host"]
            found[" ".join([sample.name, *labels])] = sample.value
        return found

    def key_ids(self) -> set[str]:
        status, told = self.ask("/keys")
        return {key["kid"] for key in told["keys"]} if status == 200 else set()


def _asked(connection: http.client.HTTPConnection, path: str) -> tuple[int, Any]:
    """Status and JSON; (0, None) while nobody listens."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except ConnectionError:
        return 0, None
    finally:
        connection.close()


def test_it_follows_the_agent_and_goes_on_without_it(stack: LocalStack, tmp_path: Path) -> None:
    """Issue 6, item 5: keys come through the Workload API, a new one before it signs; an absent agent takes none away."""
    provider = Provider(stack, tmp_path)
    try:
        first = until(provider.key_ids)
        assert provider.ask("/.well-known/openid-configuration")[1]["issuer"] == "https://localhost"
        assert provider.ready() == (200, "ok")
        assert provider.ask("/nowhere")[0] == 404
        prepared = stack.admin_json("localauthority", "jwt", "prepare")["prepared_authority"]["authority_id"]
        until(lambda: provider.key_ids() == {*first, prepared})
        assert stack.agent is not None
        stack.agent.kill()
        until(lambda: provider.ready() == (200, "degraded"))
        assert provider.key_ids() == {*first, prepared}
        told = provider.metrics()
        assert told["muniment_oidc_requests configuration 200"] == told["muniment_oidc_requests other 404"] == 1
        assert told["muniment_oidc_requests keys 200"] >= 2
        assert (told["muniment_oidc_keys"], told["muniment_oidc_health keys"]) == (len(first) + 1, 0.5)
        assert told["muniment_oidc_keys_confirmed_seconds"] > 0
        stack.start_agent()
        until(lambda: provider.ready() == (200, "ok"))
        provider.daemon.process.send_signal(signal.SIGTERM)
        assert provider.daemon.process.wait(SECONDS) == 0
    finally:
        provider.daemon.kill()
    assert "Traceback" not in provider.daemon.log.read_text()


def test_files_for_a_bucket_follow_the_server_until_it_is_told_to_stop(server: LocalStack, tmp_path: Path) -> None:
    """`oidc write --watch`: a published key is in the file at once, and SIGTERM is an orderly end."""
    site = tmp_path / "site"
    argv = [str(BIN / "identity-server"), "oidc", "write", "--issuer", "https://localhost", "--watch"]
    writer = Daemon([*argv, "--socket-path", str(server.admin_socket), str(site)], tmp_path / "write.log")
    try:

        def key_ids() -> set[str]:
            path = site / "keys"
            return {key["kid"] for key in json.loads(path.read_bytes())["keys"]} if path.exists() else set()

        first = until(key_ids)
        prepared = server.admin_json("localauthority", "jwt", "prepare")["prepared_authority"]["authority_id"]
        until(lambda: key_ids() == {*first, prepared})
        writer.process.send_signal(signal.SIGTERM)
        assert writer.process.wait(SECONDS) == 0
    finally:
        writer.kill()
    assert "Traceback" not in writer.log.read_text()


def test_a_provider_without_a_listener_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "oidc.toml"
    config.write_text('jwt_issuer = "https://localhost"\n[file]\npath = "/nowhere.json"\n')
    daemon = Daemon([str(BIN / "identity-server"), "oidc", "--config", str(config)], tmp_path / "oidc.log")
    try:
        assert daemon.process.wait(SECONDS) == 1
    finally:
        daemon.kill()
    assert "name where to listen" in daemon.log.read_text()
