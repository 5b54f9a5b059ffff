"""Which key exchange TLS offers is said to OpenSSL once, before anybody loads it, and to nobody else."""

import os
import ssl
import subprocess
import sys
from importlib.resources import files

import pytest

from tests.authority import SpiffeTestCA

GROUPS = """
import os, sys
from spiffe_core.runtime.openssl import choose_groups, groups_chosen
{before}
choose_groups()
groups_chosen()
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
sent = ssl.MemoryBIO()
try:
    context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
except ssl.SSLWantReadError:
    pass
hello = sent.read()
print(b"\\x00\\x19" in hello[hello.find(b"\\x00\\x0a\\x00"):][:40], os.environ.get("OPENSSL_CONF"))
"""
P521 = "True"
TRUST = """
import sys
from spiffe_core.runtime.openssl import choose_groups, groups_chosen
choose_groups()
groups_chosen()
import ssl
ca = ssl.PEM_cert_to_DER_cert(sys.stdin.read())
for _ in range(2):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    print(len(context.get_ca_certs()))
"""


def said(before="", **variables):
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"} | variables
    done = subprocess.run(
        [sys.executable, "-c", GROUPS.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_groups_outside_the_profile_are_not_offered():
    """FED-15, D16; the variable is gone for child processes."""
    assert said() == ["False", "None"]


def test_it_is_too_late_once_ssl_is_there():
    assert said(before="import ssl") == [P521, "None"]


def test_what_somebody_chose_stays(tmp_path):
    own = tmp_path / "own.cnf"
    own.write_text("")
    assert said(OPENSSL_CONF=str(own)) == [P521, str(own)]


@pytest.mark.parametrize(("name", "hybrid"), [("openssl.cnf", True), ("openssl-classic.cnf", False)])
def test_the_files_come_with_the_package(name, hybrid):
    text = files("spiffe_core.runtime").joinpath(name).read_bytes()
    assert (b"X25519MLKEM768" in text) is hybrid


def test_what_is_chosen_leaves_no_error_behind_for_whatever_comes_next():
    """A group unknown to OpenSSL made each `load_verify_locations` fail, and with it every handshake with an agent."""
    done = subprocess.run(
        [sys.executable, "-c", TRUST],
        input=ssl.DER_cert_to_PEM_cert(SpiffeTestCA().der),
        env={name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "1"]
