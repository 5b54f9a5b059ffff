"""Key stores for Java, read by Java's own keytool: every entry is there, and the key comes out as it went in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from node_agent.file_sets.content import x509_files
from node_agent.file_sets.settings import FileSet
from spiffe_core.bundle import BundleSet
from spiffe_core.crypto.keys import KeyKind, generate
from spiffe_core.runtime.settings import build_settings
from spiffe_core.x509_svid import X509Svid
from tests.authority import SpiffeTestCA
from tests.interop.peers import lacking
from workload_api.x509_context import X509Context

pytestmark = [pytest.mark.slow]

PASSWORD = "sesame street"
JKS_PASSWORD = "open sesame"
FOREIGN = SpiffeTestCA("fed.test")


def keytool(*words: str, password: str = PASSWORD) -> str:
    program = shutil.which("keytool")
    if program is None:
        lacking("java", "there is no keytool; install a Java runtime")
    done = subprocess.run(
        [program, "-J-Duser.language=en", *words, "-storepass:env", "STORE", "-v"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={"STORE": password, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=[KeyKind.EC_P256, KeyKind.RSA_2048], ids=lambda kind: kind.value)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, X509Svid]:
    """The three stores as files, and what is in them: an identity below an intermediate, two trust domains."""
    ca = SpiffeTestCA("example.org")
    made = ca.intermediate().issue("spiffe://example.org/Web", key=generate(request.param))
    svid = X509Svid.load(made.chain, made.key)
    bundle = FOREIGN.bundle()
    context = X509Context((svid,), BundleSet(ca.bundle(), {bundle.trust_domain: bundle}))
    wanted = build_settings(
        FileSet,
        {
            "directory": str(tmp_path),
            "federated": True,
            "pkcs12": "svid.p12",
            "pkcs12_truststore": "trust.p12",
            "pkcs12_password_file": "/p",
            "jks": "svid.jks",
            "jks_password_file": "/j",
        },
        source="test",
    )
    files = x509_files(context, wanted, PASSWORD.encode(), JKS_PASSWORD.encode())
    for name in ("svid.p12", "trust.p12", "svid.jks"):
        (tmp_path / name).write_bytes(files[name].data)
    assert [files[name].private for name in ("svid.p12", "trust.p12", "svid.jks")] == [True, False, True]
    return tmp_path, svid


def test_java_reads_the_pkcs12_stores(stores: tuple[Path, X509Svid]) -> None:
    folder, _ = stores
    shown = keytool("-list", "-keystore", str(folder / "svid.p12"))
    assert "Entry type: PrivateKeyEntry" in shown
    assert "spiffe://example.org/web" in shown, "Java writes aliases in lower case"
    assert "URIName: spiffe://example.org/Web" in shown
    trusted = keytool("-list", "-keystore", str(folder / "trust.p12"))
    assert trusted.count("Entry type: trustedCertEntry") == 2
    assert "PrivateKeyEntry" not in trusted
    assert "Alias name: authority-1" in trusted


def test_java_reads_the_old_store_and_takes_the_key_out(stores: tuple[Path, X509Svid]) -> None:
    """keytool checks the store's own digest, lists its entries, and decrypts the key into a store of the new kind."""
    folder, svid = stores
    source = str(folder / "svid.jks")
    shown = keytool("-list", "-keystore", source, password=JKS_PASSWORD)
    assert "Keystore type: JKS" in shown
    assert (shown.count("PrivateKeyEntry"), shown.count("trustedCertEntry")) == (1, 2)
    assert "Certificate chain length: 2" in shown
    target = folder / "converted.p12"
    words = ("-importkeystore", "-srckeystore", source, "-srcstorepass:env", "STORE", "-srcalias", "svid")
    program = shutil.which("keytool")
    assert program is not None
    done = subprocess.run(
        [program, *words, "-destkeystore", str(target), "-deststoretype", "PKCS12", "-deststorepass:env", "STORE"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={"STORE": JKS_PASSWORD, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key, leaf, _ = pkcs12.load_key_and_certificates(target.read_bytes(), JKS_PASSWORD.encode())
    assert key is not None
    assert leaf is not None
    assert leaf == x509.load_der_x509_certificate(svid.chain[0])
    assert key.public_key() == leaf.public_key()
