"""A server nested below another one: two stacks of real processes of one trust domain."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.demo.stack import BIN, LocalStack
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.clock import SystemClock
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_verify import verify_x509_svid
from workload_api.x509_context import split_der

TD = "nested.test"
NESTED_ID = f"spiffe://{TD}/nested-server"
PROGRAM = os.path.realpath(sys.executable)
"""What the nested server's process runs, by which the agent above knows it."""


def upstream_table(port: int, socket: Path) -> str:
    """The settings of a nested server."""
    return (
        f'[upstream]\nkind = "spire"\n[upstream.spire]\nserver_address = "127.0.0.1"\nserver_port = {port}\n'
        f'workload_api_socket = "{socket}"\n'
    )


def nested_below(port: int, socket: Path, ca: str = "") -> LocalStack:
    """A stack whose server has the server at `port` as its upstream; not started."""
    return LocalStack(TD, server=upstream_table(port, socket), ca=ca, sync_interval="500ms")


def agent_says(socket: Path, *words: str, may_fail: bool = False) -> Any:
    """`node-agent api WORDS` at a Workload API, as JSON; None for a failure that may be."""
    argv = [str(BIN / "node-agent"), "api", *words, "-socketPath", str(socket), "-output", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode and may_fail:
        return None
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def eventually(fact, seconds=40.0):
    """Ask other processes until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = fact()
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {seconds:g} s"
        time.sleep(0.1)


def authorities(document) -> dict[str, bool]:
    """The X.509 authorities in a bundle as `bundle show -output json` prints it: key id -> whether it is tainted."""
    found = [(X509Authority(base64.b64decode(one["asn1"])), one) for one in document["x509_authorities"]]
    return {authority.key_id: bool(shown.get("tainted")) for authority, shown in found}


def bundle_of(document) -> TrustBundle:
    """The same as what SVIDs are verified by."""
    ders = [base64.b64decode(one["asn1"]) for one in document["x509_authorities"]]
    return TrustBundle(TrustDomain(TD), tuple(X509Authority(der) for der in ders))


def own_chain(socket: Path) -> tuple[bytes, ...]:
    """The chain of the SVID that this environment's own programs get at a Workload API."""
    svid = agent_says(socket, "fetch", "x509")["svids"][0]
    return split_der(base64.b64decode(svid["x509_svid"]), field="x509_svid")


def own_token(socket: Path, audience: str) -> str:
    """A JWT-SVID for them."""
    first = agent_says(socket, "fetch", "jwt", "-audience", audience)[0]
    return str(first["svids"][0]["svid"])


def verified(chain: tuple[bytes, ...], bundle: TrustBundle) -> str:
    """The SPIFFE ID that a chain proves."""
    found = verify_x509_svid(chain, {bundle.trust_domain: bundle}.get, now=SystemClock().now())
    return str(found.spiffe_id)
