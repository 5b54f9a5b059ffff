"""S64, S70, S72: a whole run at debug level leaves no secret anywhere but where it belongs, and no forged line."""

import base64
import binascii
import http.client
import json
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from deploy.demo.stack import LocalStack, free_port
from spiffe_core.crypto.csr import build_csr
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.services import Stub

HEADER = (("workload.spiffe.io", "true"),)
WORKLOAD_API = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
FORGED = 'x\n{"level":"error","msg":"forged"}\r\u2028\x1b[31m'


def settings(folder, name):
    """(text for the configuration, ports of the health and the metrics page)."""
    health, metrics = free_port(), free_port()
    text = f'log_level = "debug"\nlog_file = "{folder}/{name}-daemon.log"\n'
    text += f"[health_checks]\nlistener_enabled = true\nbind_port = {health}\n"
    text += f"[telemetry.prometheus]\nport = {metrics}\n"
    if name == "server":
        text += f'[audit]\nfile = "{folder}/audit.jsonl"\n'
    return text, health, metrics


def page(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def family(pid):
    """A process and its children."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def keys_in(value):
    """Every PKCS#8 key that stands in base64 somewhere in a JSON document."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from keys_in(inner)
    elif isinstance(value, str) and len(value) > 60:
        with suppress(ValueError, TypeError, binascii.Error):
            der = base64.b64decode(value, validate=True)
            load_der_private_key(der, None)
            yield der


def spellings(der):
    """How a private key could be written: bytes, hex, base64 in lines or not, its number alone."""
    whole = base64.b64encode(der)
    yield from (der, der.hex().encode(), whole, whole[8:64], base64.urlsafe_b64encode(der), base64.encodebytes(der))
    key = load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    raw = number.to_bytes(32, "big")
    yield from (
        raw,
        raw.hex().encode(),
        str(number).encode(),
        base64.b64encode(raw),
        base64.urlsafe_b64encode(raw)[:40],
    )


def first(api):
    """The first SVIDs, once the entry has reached the agent."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return next(api.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=20))
        except grpc.RpcError:
            assert time.monotonic() < deadline, "the entry never reached the agent"
            time.sleep(0.05)


def use_everything(stack):
    """Join, issue, mint, validate, refuse; the secrets that came of it."""
    tokens = [
        stack.admin_json("token", "generate", "-spiffeID", f"spiffe://{stack.trust_domain}/n{n}")["value"]
        for n in (1, 2)
    ]
    stack.register("/web", f"unix:uid:{os.getuid()}")
    jwts = [stack.admin("jwt", "mint", "-spiffeID", f"spiffe://{stack.trust_domain}/m", "-audience", "a").strip()]
    with grpc.insecure_channel(f"unix:{stack.api_socket}") as channel:
        api = Stub(channel, WORKLOAD_API)
        message = first(api)
        fetched = api.FetchJWTSVID(workload_pb2.JWTSVIDRequest(audience=["a"]), metadata=HEADER, timeout=30)
        jwts += [one.svid for one in fetched.svids]
        for audience, svid in (
            ("a", jwts[1]),
            ("other", jwts[1]),
            ("a", f"{jwts[1][:-4]}AAAA"),
            ("a", "no.token.at-all"),
        ):
            with suppress(grpc.RpcError):
                api.ValidateJWTSVID(
                    workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=svid), metadata=HEADER, timeout=10
                )
    with grpc.insecure_channel(f"unix:{stack.admin_socket}") as channel:
        key = generate(KeyKind.EC_P256)
        forged = {
            "spiffe_id": {"trust_domain": stack.trust_domain, "path": f"/{FORGED}"},
            "parent_id": {"trust_domain": stack.trust_domain, "path": "/node"},
            "selectors": [{"type": "unix", "value": FORGED}],
            "id": FORGED,
        }
        Stub(channel, ENTRY).BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=[forged]), timeout=10)
        Stub(channel, ENTRY).BatchDeleteEntry(entry_pb2.BatchDeleteEntryRequest(ids=[FORGED]), timeout=10)
        for csr in (build_csr(key, spiffe_id=f"spiffe://{stack.trust_domain}/minted"), tokens[0].encode()):
            with suppress(grpc.RpcError):
                Stub(channel, SVID).MintX509SVID(svid_pb2.MintX509SVIDRequest(csr=csr), timeout=10)
    return tokens, jwts, [one.x509_svid_key for one in message.svids]


@pytest.mark.slow
def test_no_secret_leaves_its_place_and_no_line_is_forged():
    with LocalStack("secrets.test") as stack:
        server, server_health, server_metrics = settings(stack.folder, "server")
        agent, agent_health, agent_metrics = settings(stack.folder, "agent")
        stack._server_text, stack._agent_text = server, agent
        stack._ca_text = "signing_workers = 1"
        stack.write_configs()
        stack.start()
        tokens, jwts, keys = use_everything(stack)
        spent = (stack.folder / "token").read_text()
        keys += keys_in(json.loads((stack.folder / "server-data" / "keys.json").read_text()))
        keys += keys_in(json.loads((stack.folder / "agent-data" / "agent-state.json").read_text()))
        assert len(keys) >= 4, "a workload's, the X.509 and the JWT authority's, the agent's"
        running = [pid for daemon in (stack.server, stack.agent) for pid in family(daemon.pid)]
        assert len(running) >= 3, "the two daemons and a signing worker"
        places = {
            f"{name} of {pid}": (Path("/proc") / str(pid) / name).read_bytes()
            for pid in running
            for name in ("cmdline", "environ")
        }
        for port in (server_health, agent_health):
            places |= {f"{path} of {port}": page(port, path) for path in ("/live", "/ready")}
        places |= {f"metrics of {port}": page(port, "/metrics") for port in (server_metrics, agent_metrics)}
        assert all(found for name, found in places.items() if "environ" not in name), "a worker has no environment"
        stack.agent.stop()
        stack.server.stop()
        secrets = [spelling for key in keys for spelling in spellings(key)]
        secrets += [word.encode() for jwt in jwts for word in (jwt, jwt.rpartition(".")[2], jwt.split(".")[1])]
        secrets += [token.encode() for token in tokens]
        private = {}
        for path in stack.folder.rglob("*"):
            if not path.is_file() or path.is_symlink():
                continue
            inside = path.relative_to(stack.folder).parts[0] in {"server-data", "agent-data"}
            private[path] = stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
            if inside or path.name.endswith(("-daemon.log", "audit.jsonl")):
                assert private[path], f"{path} may be read by others"
            if not inside and path.name != "token":
                places[str(path)] = path.read_bytes()
        for name, found in places.items():
            # the SPIFFE ID of an agent that came with a token holds the token, once it is spent (spire_features 16.2)
            text = found.replace(f"/spire/agent/join_token/{spent}".encode(), b"")
            leaked = [secret for secret in [*secrets, spent.encode()] if secret in text]
            assert not leaked, (name, leaked)
            assert b"PRIVATE KEY" not in text, name
        for folder in ("server-data", "agent-data"):
            assert stat.S_IMODE((stack.folder / folder).stat().st_mode) == 0o700
        written = [stack.folder / "server-daemon.log", stack.folder / "agent-daemon.log", stack.folder / "audit.jsonl"]
        for path in written:
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            assert lines
            assert not [line for line in lines if line.get("msg") == "forged"]
            assert set(path.read_bytes()) <= {10, *range(32, 127)}
        assert any(line["level"] == "debug" for line in map(json.loads, written[0].read_text().splitlines()))
        with_request = [line for line in map(json.loads, written[0].read_text().splitlines()) if "request_id" in line]
        assert with_request
        assert "forged" in written[2].read_text(), "what was refused is recorded, escaped"


@pytest.mark.slow
def test_selectors_stand_in_no_log_at_the_default_level():
    """S64: what processes are told apart by is nobody's business who reads logs; the audit log names entries by their id."""
    with LocalStack("quiet.test") as stack:
        stack.start()
        with grpc.insecure_channel(f"unix:{stack.api_socket}") as channel:
            api = Stub(channel, WORKLOAD_API)
            with pytest.raises(grpc.RpcError):  # nobody is registered: refused, with the selectors at hand
                next(api.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=20))
            stack.register("/other", "k8s:ns:particular", "unix:path:/particular")
            stack.register("/web", f"unix:uid:{os.getuid()}")
            assert first(api).svids[0].spiffe_id.endswith("/web")
        assert "unix:path:/particular" in stack.admin("entry", "show", "-selector", "k8s:ns:particular")
        (agent,) = stack.admin_json("agent", "list")["agents"]
        who = f"spiffe://{agent['id']['trust_domain']}{agent['id']['path']}"
        with pytest.raises(RuntimeError, match="k8s:ns:particular"):  # exit code 1: not entitled, and why
            stack.admin("explain", "-agent", who, "-selector", "unix:path:/particular")
        stack.agent.stop()
        stack.server.stop()
        for daemon in (stack.server, stack.agent):
            text = daemon.log.read_text()
            assert text
            assert not re.search(r"particular|unix:(uid|gid|user|group|path|sha256):|k8s:ns:", text)
