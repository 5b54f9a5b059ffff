"""What a server's memory holds of a key that was destroyed (S74), and what forked processes share (S73)."""

import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from deploy.demo.stack import LocalStack
from tests.doubles.privileges import need_root

ROOT = Path(__file__).parents[2]
MOST_REGION = 512 * 1024 * 1024


def stored(stack, slot):
    """The private number of a P-256 key in the keys file."""
    keys = json.loads((stack.folder / "server-data" / "keys.json").read_text())["keys"]
    if slot not in keys:
        return None
    return load_der_private_key(base64.b64decode(keys[slot]), None).private_numbers().private_value


def times_in_memory(pid, needle):
    """How often the bytes occur in what the process may write to."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            writable = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            start, end = (int(part, 16) for part in writable.groups()) if writable else (0, 0)
            if 0 < end - start <= MOST_REGION:
                memory.seek(start)
                try:
                    found += memory.read(end - start).count(needle)
                except OSError:  # device memory and the like
                    continue
    return found


@pytest.mark.slow
def test_a_destroyed_key_is_gone_from_memory():
    """S74: the object that signs is freed, and OpenSSL wipes its number, once a revoked authority's key is destroyed."""
    need_root()
    with LocalStack("memory.test") as stack:
        stack.start_server()
        old = stored(stack, "x509-CA-A")
        number = old.to_bytes(32, "little")  # as OpenSSL keeps it; text and DER have it the other way round
        assert times_in_memory(stack.server.pid, number) > 0, "the search finds a key that is in use"

        def order(verb, *words):
            return stack.admin("localauthority", "x509", verb, *words, "-output", "json")

        active = json.loads(order("show"))["active"]["authority_id"]
        prepared = json.loads(order("prepare"))["prepared_authority"]["authority_id"]
        order("activate", "-authorityID", prepared)
        order("taint", "-authorityID", active)
        order("revoke", "-authorityID", active)
        end = time.monotonic() + 20
        while stored(stack, "x509-CA-A") == old or times_in_memory(stack.server.pid, number):
            assert time.monotonic() < end, "the key is still there"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "count", [pytest.param(20_000, id="some"), pytest.param(1_000_000, marks=pytest.mark.soak, id="a-million")]
)
def test_forked_processes_share_no_randomness(count):
    """S73: serial numbers, keys and signatures' nonces of processes that were one when their generators were seeded."""
    code = (
        "import os, sys\n"
        "from cryptography.hazmat.primitives import hashes\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature\n"
        "from identity_server.services.issuer import draw_serial\n"
        "count = int(sys.argv[1])\n"
        "key = ec.generate_private_key(ec.SECP256R1())\n"
        "def nonce(): return decode_dss_signature(key.sign(b'the same', ec.ECDSA(hashes.SHA256())))[0]\n"
        "draw_serial(os.urandom), nonce()\n"
        "second = not os.fork()\n"
        "serials = {draw_serial(os.urandom) for _ in range(count)}\n"
        "keys = {ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value for _ in range(100)}\n"
        "nonces = {nonce() for _ in range(1000)}\n"
        "assert (len(serials), len(keys), len(nonces)) == (count, 100, 1000)\n"
        "text = ' '.join(str(one) for one in (*serials, *keys, *nonces)) + '\\n'\n"
        "if not second: os.wait()\n"
        "print(text, end='', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(count)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        first, second = process.stdout.read().decode().splitlines()
    drawn = first.split() + second.split()
    assert len(drawn) == 2 * (count + 1100)
    assert len(set(drawn)) == len(drawn)
