"""A server below a root in files, as real processes: OpenSSL believes its SVIDs, and the root is replaced under load.

The root changes on disk while 60 streams are open and workloads shake hands without a pause (issue item 4, A15).
"""

import asyncio
import os
import subprocess
from datetime import timedelta

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.bundle import X509Authority
from tests.authority import SpiffeTestCA
from tests.doubles.rotation_calls import AgentCalls
from tests.doubles.rotation_load import SLOW_SECONDS, Handshakes, Streams
from tests.doubles.upstream_files import UpstreamFiles, pem

STREAMS = 60
DOMAIN = "upstream.test"


def authority(name):
    return SpiffeTestCA(DOMAIN, name=name, uris=(), ttl=timedelta(days=30))


def key_id(ca):
    return X509Authority(ca.der).key_id


def settings(files, *, bundle=False):
    lines = [f'{key} = "{path}"' for key, path in files.settings(bundle=bundle)["disk"].items()]
    return "\n".join(['[upstream]\nkind = "disk"\n[upstream.disk]', *lines])


def started(files):
    stack = LocalStack(DOMAIN, server=settings(files, bundle=True), sync_interval="500ms")
    try:
        stack.start()
        for path in ("/web", "/db"):
            stack.register(path, f"unix:uid:{os.getuid()}")
    except BaseException:
        stack.close()
        raise
    return stack


@pytest.fixture
def files(tmp_path):
    (tmp_path / "pki").mkdir(mode=0o700)
    return UpstreamFiles(tmp_path / "pki")


def openssl(folder, chain, *roots):
    """`openssl verify` with the roots alone and what came with the leaf; what it said."""
    for name, certificates in (("leaf", chain[:1]), ("chain", chain[1:]), ("roots", roots)):
        (folder / f"{name}.pem").write_bytes(pem(*certificates))
    words = ["-x509_strict", "-CAfile", folder / "roots.pem", "-untrusted", folder / "chain.pem", folder / "leaf.pem"]
    done = subprocess.run(["openssl", "verify", *words], capture_output=True, text=True, check=False, timeout=20)
    return done.stdout + done.stderr


@pytest.mark.slow
async def test_the_root_on_disk_is_replaced_under_load_without_a_failed_handshake(files, tmp_path):
    """Prepare, activate, taint the old root, revoke it: as docs/operations.md says. Roots of another PKI have no SPIFFE ID."""
    old, new = authority("old root"), authority("new root")
    files.below(old.intermediate(name="first", uris=(), ttl=timedelta(days=9)), old)
    stack = await asyncio.to_thread(started, files)
    try:

        async def admin(*words):
            return await asyncio.to_thread(stack.admin_json, *words)

        token = (await admin("token", "generate"))["value"]
        async with (
            Streams(stack.api_socket, STREAMS) as streams,
            Handshakes(streams, (0, "/web"), (STREAMS - 1, "/db")) as handshakes,
            AgentCalls(stack.port, token, lambda: streams.newest(1).bundles) as calls,
        ):
            await asyncio.gather(handshakes.more(3), calls.more(3))
            chain = streams.newest(0).svids[0].chain
            assert len(chain) == 3
            assert "leaf.pem: OK" in openssl(tmp_path, chain, old.der)
            assert "OK" not in openssl(tmp_path, chain, new.der)
            first = (await admin("localauthority", "x509", "show"))["active"]["authority_id"]
            files.below(new.intermediate(name="second", uris=(), ttl=timedelta(days=9)), new)
            await streams.until_roots({key_id(old), key_id(new)})
            second = (await admin("localauthority", "x509", "prepare"))["prepared_authority"]["authority_id"]
            await admin("localauthority", "x509", "activate", "-authorityID", second)
            await streams.until_under(first)  # activation alone replaces nothing
            await admin("upstreamauthority", "taint", "-subjectKeyID", key_id(old))
            await streams.until_under(second)
            await calls.until_under(second)
            await handshakes.after(SLOW_SECONDS)
            await admin("upstreamauthority", "revoke", "-subjectKeyID", key_id(old))
            await streams.until_roots({key_id(new)}, {key_id(old)})
            await asyncio.gather(handshakes.more(5), calls.more(5))
            assert "leaf.pem: OK" in openssl(tmp_path, streams.newest(0).svids[0].chain, new.der)
            assert [failure for one in (streams, handshakes, calls) for failure in one.failures] == []
            assert handshakes.pairs[first, first] > 0 < handshakes.pairs[second, second]
        assert "could not" not in stack.agent.log.read_text()
    finally:
        await asyncio.to_thread(stack.close)


@pytest.mark.slow
def test_a_server_waits_for_its_upstream_and_says_so(files):
    """R11: what waiting cannot mend ends the start with its reason; what is merely not there yet is waited for."""
    root = authority("root")
    files.root(root)
    files.key.chmod(0o644)
    with LocalStack(DOMAIN, server=settings(files)) as stack:
        server = stack.spawn_server()
        assert server.process.wait(30) == 1
        assert "chmod 0600" in server.tail()
        files.root(root)
        stack.start_server()
        assert (stack.admin_json("localauthority", "x509", "show"))["active"][
            "upstream_authority_subject_key_id"
        ] == key_id(root)
