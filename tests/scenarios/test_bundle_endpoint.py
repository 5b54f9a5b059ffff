"""The bundle endpoint of a real server process: TLS groups, changes, restarts, and a database restored from a backup."""

import json
import shutil
import ssl
import time
import urllib.request

import pytest

from deploy.demo.stack import LocalStack, free_port

WAIT_SECONDS = 20.0


class Endpoint:
    def __init__(self, stack, port):
        self.stack, self.port = stack, port

    def get(self, group=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if group is not None:
            context.set_ecdh_curve(group)
        with urllib.request.urlopen(f"https://127.0.0.1:{self.port}/", context=context, timeout=10) as answer:
            return json.load(answer)

    def served(self, holds=lambda _: True):
        """The first document that is as wanted; a server that has just started, or changed, needs a moment."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                document = self.get()
                if holds(document):
                    return document
            except OSError as error:
                document = error
            assert time.monotonic() < end, document
            time.sleep(0.02)

    def prepare(self):
        """A new authority, and the document that shows it."""
        before = self.served()
        self.stack.admin("localauthority", "x509", "prepare")
        return self.served(lambda document: document["spiffe_sequence"] > before["spiffe_sequence"])


@pytest.fixture(scope="module")
def endpoint():
    port = free_port()
    text = f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {port}\n'
    with LocalStack("endpoint.test", server=text) as stack:
        stack.start_server()
        yield Endpoint(stack, port)


def test_key_exchange_is_of_the_profile(endpoint):
    """FED-15, N-F-25, D16: X25519, P-256 and P-384, not P-521."""
    endpoint.served()
    for group in ("prime256v1", "secp384r1"):
        assert endpoint.get(group)["keys"]
    with pytest.raises(OSError):  # refused in the handshake: an alert, or a connection that ends
        endpoint.get("secp521r1")
    assert endpoint.get("prime256v1")["keys"]


def test_the_sequence_goes_on_over_a_restart_and_over_a_restored_backup(endpoint, tmp_path):
    """TDB-06, TDB-07, FED-25, D19: what was published is never undercut, though the database knows nothing of it."""
    stack = endpoint.stack
    first = endpoint.served()
    assert stack.server.stop() == 0
    data = stack.folder / "server-data"
    backup = tmp_path / "backup"
    shutil.copytree(data, backup, ignore=shutil.ignore_patterns("*.lock", "lock"))
    stack.start_server()
    assert endpoint.served() == first
    second = endpoint.prepare()
    assert second["spiffe_sequence"] > first["spiffe_sequence"]
    assert len(second["keys"]) > len(first["keys"])
    assert stack.server.stop() == 0
    for name in ("datastore.sqlite3", "datastore.sqlite3-wal", "keys.json"):
        (data / name).unlink(missing_ok=True)
        if (backup / name).exists():
            shutil.copy2(backup / name, data / name)
    stack.start_server()
    third = endpoint.served()
    assert third["spiffe_sequence"] > second["spiffe_sequence"]
    assert len(third["keys"]) == len(first["keys"])
