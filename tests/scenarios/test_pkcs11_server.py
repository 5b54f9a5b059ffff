"""A real `identity-server` whose keys are in a SoftHSM2 token: restarts, kill -9, and what stock tools say (A12, R1)."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.stack import LocalStack
from spiffe_core.bundle_document import load_bundle_pem
from spiffe_core.spiffe_id import TrustDomain
from tests.softhsm import PIN, soft_token

TD = TrustDomain("token.test")
DIES_AFTER_GENERATING = """
import os, signal, sys, time
from pathlib import Path
from identity_server.keys.pkcs11 import Pkcs11Keys
from identity_server.keys.token_link import TokenAddress
from spiffe_core.crypto.keys import KeyKind
module, pin, refused, label, server_id, slot = sys.argv[1:]
address = TokenAddress(module=Path(module), pin_file=Path(pin), refused=Path(refused), token=label)
Pkcs11Keys(address, prefix="muniment-", server_id=server_id, monotonic=time.monotonic).generate(slot, KeyKind.EC_P256)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def token(tmp_path):
    return soft_token(tmp_path / "token")


def stack_on(token, folder):
    folder.mkdir()
    table = "\n".join(f'{key} = "{value}"' for key, value in token.settings().items())
    return LocalStack(
        "token.test",
        folder=folder,
        key_manager="pkcs11",
        ca=f'[ca.pkcs11]\n{table}\n[wit]\nenabled = true\nkey_type = "ec-p256"\n[jwt]\nkey_type = "ec-p256"',
    )


def openssl(*argv):
    return subprocess.run(["openssl", *map(str, argv)], check=False, capture_output=True, text=True, timeout=30)


def points(token):
    """What tells the public keys in a token apart."""
    listed = token.tool("--list-objects", "--type", "pubkey")
    return {line for line in listed.splitlines() if line.strip().startswith("EC_POINT:  ")}


def authorities(stack):
    """The ids of the active authorities, by kind."""
    found = {}
    for kind in ("x509", "jwt"):
        shown = stack.admin_json("localauthority", kind, "show")
        found[kind] = shown["active"]["authority_id"]
    return found


def jwks_key(stack, use, key_id):
    document = json.loads(stack.admin("bundle", "show", "-format", "spiffe"))
    return next(key for key in document["keys"] if key["use"] == use and key.get("kid") == key_id)


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check_jws(stack, text, use, folder):
    """Verify an ES256 token with the openssl command, against the key in the bundle that `bundle show` prints."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    signed, _, raw = text.rpartition(".")
    header = json.loads(unpadded(signed.partition(".")[0]))
    assert header["alg"] == "ES256"
    jwk = jwks_key(stack, use, header["kid"])
    x, y = (int.from_bytes(unpadded(jwk[part])) for part in "xy")
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    (folder / "key.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (folder / "data").write_text(signed)
    signature = unpadded(raw)
    half = len(signature) // 2
    (folder / "sig").write_bytes(
        encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
    )
    done = openssl("dgst", "-sha256", "-verify", folder / "key.pem", "-signature", folder / "sig", folder / "data")
    assert "Verified OK" in done.stdout, done.stderr
    return header["kid"]


def issue_all(stack, folder):
    """Mint an X.509-SVID, a JWT-SVID and a WIT-SVID; verify each with openssl."""
    folder.mkdir()
    stack.admin("x509", "mint", "-spiffeID", "spiffe://token.test/w", "-write", str(folder))
    done = openssl("verify", "-x509_strict", "-partial_chain", "-CAfile", folder / "bundle.pem", folder / "svid.pem")
    assert done.stdout.strip().endswith("OK"), done.stdout + done.stderr
    token = stack.admin_json("jwt", "mint", "-spiffeID", "spiffe://token.test/w", "-audience", "there")
    jwt = token["svid"]["token"] if "svid" in token else token["token"]
    kid = check_jws(stack, jwt, "jwt-svid", folder)
    stack.admin("wit", "mint", "-spiffeID", "spiffe://token.test/w", "-write", str(folder))
    check_jws(stack, (folder / "token").read_text().strip(), "wit-svid", folder)
    return kid


@pytest.mark.slow
def test_keys_in_a_token_survive_restart_and_kill_and_stock_openssl_believes_what_they_sign(token, tmp_path):
    """X.509, JWT and WIT before and after SIGTERM and SIGKILL: the same authorities; no key and no PIN on disk or in sight."""
    with stack_on(token, tmp_path / "s") as stack:
        seen = []
        for number, end in enumerate(("stop", "kill", "stop")):
            server = stack.start_server()
            kid = issue_all(stack, tmp_path / f"out-{number}")
            seen.append((authorities(stack), kid))
            pid = server.process.pid
            visible = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert PIN.encode() not in visible
            getattr(server, end)()
        assert seen == [seen[0]] * 3
        written = [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
        assert not [path for path in written if path.name == "keys.json"]
        assert not [
            path for path in written if PIN.encode() in path.read_bytes() or b"PRIVATE KEY" in path.read_bytes()
        ]


@pytest.mark.slow
@pytest.mark.parametrize("slot", ["x509-CA-A", "x509-CA-B"])
def test_a_process_killed_between_the_key_and_the_journal_leaves_nothing_that_lasts(token, tmp_path, slot):
    """R1: the key is in the token and no row names it. The server starts, signs, and the orphan makes way for the next."""
    with stack_on(token, tmp_path / "s") as stack:
        data = tmp_path / "s" / "server-data"
        data.mkdir(0o700, parents=True)
        started = None
        if slot.endswith("B"):
            stack.start_server()
            started = authorities(stack)
            assert stack.server.stop() == 0
        else:
            (data / "server-id").write_text("11111111-2222-4333-8444-555555555555\n")
            (data / "server-id").chmod(0o600)
        server_id, before = (data / "server-id").read_text().strip(), points(token)
        argv = [token.address().module, token.pin_file, token.refused, token.label, server_id, slot]
        command = [sys.executable, "-c", DIES_AFTER_GENERATING, *map(str, argv)]
        assert subprocess.run(command, check=False, timeout=30, env=os.environ).returncode == -signal.SIGKILL
        (orphan,) = points(token) - before
        stack.start_server()
        assert started is None or authorities(stack) == started
        stack.admin("x509", "mint", "-spiffeID", "spiffe://token.test/w", "-write", str(tmp_path))
        (root,) = load_bundle_pem((tmp_path / "bundle.pem").read_bytes(), TD).bundle.x509_authorities
        assert root.key_id == authorities(stack)["x509"]
        if started is not None:
            stack.admin("localauthority", "x509", "prepare")
        listed = token.tool("--list-objects", "--type", "pubkey")
        assert listed.count(f"muniment-{slot}") == 1
        assert orphan not in points(token)
