"""A workload that uses the `spiffe` package from PyPI; it runs in that package's environment, without ours.

fetch             the SVIDs and the bundles, once
jwt AUDIENCE      a JWT-SVID, verified here with the JWT bundles and validated by the agent
watch COUNT       every SVID on the stream until COUNT rotations have been seen
serve PEER        greet everyone who proves to be PEER, until killed
dial PORT PEER    greet the server at PORT, which has to be PEER
"""

from __future__ import annotations

import json
import queue
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import JwtSvid, WorkloadApiClient, X509Source
from spiffe.workloadapi.errors import WorkloadApiError


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def told(svid: Any) -> dict[str, Any]:
    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "chain": len(svid.cert_chain),
        "not_after": svid.leaf.not_valid_after_utc.timestamp(),
    }


def fetch() -> None:
    with WorkloadApiClient() as client:
        try:
            svids = client.fetch_x509_svids(timeout=10)
        except WorkloadApiError as error:
            say("refused", text=str(error))
            return
        bundles = client.fetch_x509_bundles(timeout=10)
        context = client.fetch_x509_context(timeout=10)
        say(
            "fetched",
            svids=[told(svid) for svid in svids],
            default=str(context.default_svid.spiffe_id),
            bundles={str(bundle.trust_domain): len(bundle.x509_authorities) for bundle in bundles.bundles},
        )


def fetch_jwt(audience: str) -> None:
    with WorkloadApiClient() as client:
        try:
            svid = client.fetch_jwt_svid(audience={audience}, timeout=10)
        except WorkloadApiError as error:
            say("refused", text=str(error))
            return
        bundles = client.fetch_jwt_bundles(timeout=10)
        own = bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        verified = JwtSvid.parse_and_validate(svid.token, own, {audience})
        validated = client.validate_jwt_svid(svid.token, audience, timeout=10)
        say(
            "token",
            spiffe_id=str(verified.spiffe_id),
            audience=sorted(verified.audience),
            validated=str(validated.spiffe_id),
            keys=len(own.jwt_authorities),
        )


def watch(count: int) -> None:
    updates: queue.SimpleQueue[None] = queue.SimpleQueue()
    with X509Source(timeout_in_seconds=15) as source:
        source.subscribe_for_updates(lambda: updates.put(None))
        last = told(source.get_x509_context().default_svid)
        say("svid", **last)
        while count:
            updates.get(timeout=30)
            found = told(source.get_x509_context().default_svid)
            if found["serial"] != last["serial"]:
                say("svid", **found)
                last, count = found, count - 1


def context(source: X509Source, side: int) -> ssl.SSLContext:
    """Python's own TLS with what the source holds now, as strict as OpenSSL can be."""
    held = source.get_x509_context()
    svid = held.default_svid
    bundle = held.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    tls = ssl.SSLContext(side)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.verify_flags |= ssl.VERIFY_X509_STRICT
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "svid.pem"
        key = Path(folder) / "key.pem"
        chain.write_bytes(b"".join(cert.public_bytes(Encoding.PEM) for cert in svid.cert_chain))
        key.write_bytes(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        tls.load_cert_chain(chain, key)
    tls.load_verify_locations(
        cadata="".join(root.public_bytes(Encoding.PEM).decode() for root in bundle.x509_authorities)
    )
    return tls


def peer_of(connection: ssl.SSLSocket) -> str:
    names = (connection.getpeercert() or {}).get("subjectAltName", ())
    return ",".join(str(value) for kind, value in names if kind == "URI")


def serve(peer: str) -> None:
    with X509Source(timeout_in_seconds=15) as source, socket.create_server(("127.0.0.1", 0)) as listener:
        own = source.get_x509_context().default_svid
        say("listening", port=listener.getsockname()[1], spiffe_id=str(own.spiffe_id))
        while True:
            plain, _ = listener.accept()
            plain.settimeout(10)
            try:
                with context(source, ssl.PROTOCOL_TLS_SERVER).wrap_socket(plain, server_side=True) as connection:
                    found = peer_of(connection)
                    if found != peer:
                        say("refused", peer=found)
                        continue
                    hello = connection.makefile("r").readline().strip()
                    serial = told(source.get_x509_context().default_svid)["serial"]
                    say("greeted", peer=found, hello=hello, serial=serial)
                    connection.sendall(f"you are {found}\n".encode())
            except OSError as error:
                say("refused", text=str(error))


def dial(port: int, peer: str) -> None:
    with X509Source(timeout_in_seconds=15) as source:
        tls = context(source, ssl.PROTOCOL_TLS_CLIENT)
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                tls.wrap_socket(plain) as connection,
            ):
                found = peer_of(connection)
                if found != peer:
                    say("refused", peer=found)
                    return
                connection.sendall(b"hello from py-spiffe\n")
                answer = connection.makefile("r").readline().strip()
                if not answer:
                    say("refused", text="the server closed the connection")
                    return
                say("greeted", peer=found, tls=connection.version(), answer=answer)
        except OSError as error:
            say("refused", text=str(error))


def main() -> None:
    mode, *words = sys.argv[1:]
    if mode == "fetch":
        fetch()
    elif mode == "jwt":
        fetch_jwt(words[0])
    elif mode == "watch":
        watch(int(words[0]))
    elif mode == "serve":
        serve(words[0])
    else:
        dial(int(words[0]), words[1])


if __name__ == "__main__":
    main()
