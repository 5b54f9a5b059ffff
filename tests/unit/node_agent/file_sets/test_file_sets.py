"""Identities as files: what stands in them, the swap, and what is refused."""

import asyncio
import fcntl
import json
import os
import signal
import stat
import struct
import termios
import threading
import time

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from node_agent.file_sets.content import Content, chosen, x509_files
from node_agent.file_sets.notify import _CHUNK, _LastWords, run_command, send_signal
from node_agent.file_sets.settings import FileSet, FilesSettings, load
from node_agent.file_sets.swap import Ownership, swap
from spiffe_core.bundle import BundleSet
from spiffe_core.bundle_document import load_bundle_map
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.runtime.settings import build_settings
from spiffe_core.x509_svid import X509Svid
from tests.authority import SpiffeTestCA
from workload_api.x509_context import X509Context


@pytest.fixture(scope="module")
def context():
    ca, foreign = SpiffeTestCA("example.org"), SpiffeTestCA("fed.test")
    svids = []
    for path, hint in (("/web", ""), ("/db", "data")):
        made = ca.issue(f"spiffe://example.org{path}")
        svids.append(X509Svid.load(made.chain, made.key, hint=hint))
    bundle = foreign.bundle()
    return X509Context(tuple(svids), BundleSet(ca.bundle(), {bundle.trust_domain: bundle}))


def wanted(tmp_path, **over):
    return build_settings(FileSet, {"directory": str(tmp_path / "tls"), **over}, source="test")


def test_certificate_key_and_bundle_belong_together(tmp_path, context):
    files = x509_files(context, wanted(tmp_path, combined="both.pem"))
    leaf = x509.load_pem_x509_certificate(files["svid.pem"].data)
    assert load_pem_private_key(files["svid.key"].data, None).public_key() == leaf.public_key()
    assert [content.private for content in files.values()] == [False, True, False, True]
    assert files["both.pem"].data == files["svid.pem"].data + files["svid.key"].data
    assert len(x509.load_pem_x509_certificates(files["bundle.pem"].data)) == 1
    assert "PRIVATE" not in repr(files["svid.key"].private)


def test_federated_bundles_and_grpcs_map(tmp_path, context):
    """Integrations section 8: X.509 keys only, no `kid`."""
    files = x509_files(context, wanted(tmp_path, federated=True, bundle_map="map.json"))
    assert len(x509.load_pem_x509_certificates(files["bundle.pem"].data)) == 2
    document = json.loads(files["map.json"].data)
    assert set(document["trust_domains"]) == {"example.org", "fed.test"}
    for bundle in document["trust_domains"].values():
        assert {key["use"] for key in bundle["keys"]} == {"x509-svid"}
        assert not any("kid" in key for key in bundle["keys"])
    assert len(load_bundle_map(files["map.json"].data)) == 2


def test_pkcs12_opens_with_its_password_alone(tmp_path, context):
    files = x509_files(context, wanted(tmp_path, pkcs12="svid.p12", pkcs12_password_file="/p"), b"sesame")
    key, leaf, others = pkcs12.load_key_and_certificates(files["svid.p12"].data, b"sesame")
    assert key.public_key() == leaf.public_key()
    assert len(others) == 1
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_key_and_certificates(files["svid.p12"].data, b"other")


def test_a_jks_store_is_the_same_for_the_same_content_and_hides_the_key(tmp_path, context):
    """What keytool makes of it is in tests/interop; here: no drawn bytes, no key in sight, nothing beyond ASCII."""
    chosen_set = wanted(tmp_path, jks="svid.jks", jks_password_file="/p")
    (first, again, other) = (
        x509_files(context, chosen_set, b"", password)["svid.jks"] for password in (b"sesame", b"sesame", b"open")
    )
    assert first == again
    assert first.private
    assert first.data != other.data
    svid = context.default
    assert svid.chain[0] in first.data
    assert svid.key.reveal()[40:60] not in first.data
    with pytest.raises(ConfigError, match="ASCII"):
        x509_files(context, chosen_set, b"", "gehe\u00efm".encode())


def test_an_identity_is_chosen_by_id_by_hint_or_is_the_first(tmp_path, context):
    assert chosen(context, wanted(tmp_path)).spiffe_id.path == "/web"
    assert chosen(context, wanted(tmp_path, hint="data")).spiffe_id.path == "/db"
    assert chosen(context, wanted(tmp_path, spiffe_id="spiffe://example.org/db")).spiffe_id.path == "/db"
    with pytest.raises(ConfigError, match=r"it has spiffe://example\.org/web, spiffe://example\.org/db"):
        chosen(context, wanted(tmp_path, spiffe_id="spiffe://example.org/other"))


WRONG = {
    "a relative directory": {"directory": "tls"},
    "a name with a slash": {"certificate": "../svid.pem"},
    "a hidden name": {"key": ".data"},
    "two files of one name": {"certificate": "x", "key": "x"},
    "nothing to write": {"certificate": "", "key": "", "bundle": ""},
    "a key for everybody": {"key_mode": "0644"},
    "no mode": {"mode": "rw-r--r--"},
    "a signal to nobody": {"signal": "HUP"},
    "an unknown signal": {"signal": "KILL", "pid_file": "/p"},
    "PKCS#12 without a password": {"pkcs12": "x.p12"},
    "a trust store without a password": {"pkcs12_truststore": "x.p12"},
    "a password for no store": {"pkcs12_password_file": "/p"},
    "JKS without a password": {"jks": "x.jks"},
    "a password for no JKS": {"jks_password_file": "/p"},
    "two choices": {"spiffe_id": "spiffe://a/b", "hint": "c"},
    "a token for nobody": {"jwt": [{"name": "t", "audience": []}]},
    "an unknown key": {"directroy": "/x"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named(tmp_path, case):
    with pytest.raises(ConfigError):
        wanted(tmp_path, **WRONG[case])


def test_two_sets_need_two_directories(tmp_path):
    one = {"directory": str(tmp_path)}
    with pytest.raises(ConfigError, match="same directory"):
        build_settings(FilesSettings, {"set": [one, one]}, source="test")


def test_the_example_is_valid():
    from pathlib import Path

    settings = load(Path(__file__).parents[4] / "deploy/config/files.toml")
    assert settings.sets[0].jwt[0].audience == ("vault",)


# The swap


def content(number):
    return {"svid.pem": Content(b"certificate %d" % number), "svid.key": Content(b"key %d" % number, private=True)}


def test_modes_links_and_nothing_left_over(tmp_path):
    target = tmp_path / "tls"
    for number in range(5):
        swap(target, content(number), Ownership(mode=0o644, key_mode=0o640))
    assert (target / "svid.pem").read_bytes() == b"certificate 4"
    assert stat.S_IMODE((target / "svid.key").stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "svid.pem").stat().st_mode) == 0o644
    assert len([name for name in os.listdir(target) if name.startswith(".v-")]) == 2
    swap(target, {"other.pem": Content(b"x")}, Ownership())
    assert sorted(name for name in os.listdir(target) if not name.startswith(".")) == ["other.pem"]


def test_a_reader_of_one_directory_never_sees_two_sets(tmp_path):
    """The issue's promise: a thousand swaps, a reader that opens `.data` once and reads both files through it."""
    target = tmp_path / "tls"
    swap(target, content(0), Ownership())
    stop = threading.Event()
    torn, seen = [], set()

    def read():
        while not stop.is_set():
            try:
                folder = os.open(target / ".data", os.O_RDONLY)
            except FileNotFoundError:
                continue  # replaced between the link and the directory
            try:
                pair = []
                for name in ("svid.pem", "svid.key"):
                    file = os.open(name, os.O_RDONLY, dir_fd=folder)
                    pair.append(os.read(file, 100).split()[1])
                    os.close(file)
            except FileNotFoundError:
                continue  # two swaps while this reader slept
            finally:
                os.close(folder)
            seen.add(pair[0])
            if pair[0] != pair[1]:
                torn.append(pair)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 300):
        swap(target, content(number), Ownership())
    stop.set()
    reader.join()
    assert torn == []
    assert len(seen) > 3


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    """S67: a file or a link at one of our names, a directory that others may write to, a link in its place."""
    target = tmp_path / "tls"
    target.mkdir()
    (target / "svid.key").write_text("precious")
    with pytest.raises(ConfigError, match="is not ours"):
        swap(target, content(1), Ownership())
    assert (target / "svid.key").read_text() == "precious"
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(ConfigError, match="writable for nobody else"):
        swap(open_to_all, content(1), Ownership())
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError, match="link"):
        swap(tmp_path / "link", content(1), Ownership())


def test_a_disk_that_refuses_leaves_the_old_set(tmp_path, monkeypatch):
    """R-cases of a full disk: the old set stays whole and nothing is left over."""
    target = tmp_path / "tls"
    swap(target, content(1), Ownership())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        swap(target, content(2), Ownership())
    monkeypatch.undo()
    assert (target / "svid.key").read_bytes() == b"key 1"
    assert len([name for name in os.listdir(target) if name.startswith(".v-")]) == 1


def test_a_name_that_is_not_ours_leaves_nothing_behind_however_often_it_is_tried(tmp_path):
    """R12: a set that is refused again and again must not fill the disk with copies of keys."""
    target = tmp_path / "tls"
    target.mkdir()
    (target / "svid.key").write_text("precious")
    for number in range(3):
        with pytest.raises(ConfigError, match="is not ours"):
            swap(target, content(number), Ownership())
    assert os.listdir(target) == ["svid.key"]


@pytest.mark.parametrize(
    ("kind", "password", "rule"),
    [("pkcs12", b"\xff\xfe", "UTF-8"), ("pkcs12_truststore", b"\xff", "UTF-8"), ("jks", b"\xff", "ASCII")],
)
def test_a_password_that_is_no_text_is_refused_by_name(tmp_path, context, kind, password, rule):
    """Anything but an error of ours would end the agent that writes the files."""
    field = f"{kind.removesuffix('_truststore')}_password_file"
    chosen_set = wanted(tmp_path, **{kind: "store", field: "/p"})
    with pytest.raises(ConfigError, match=f"{field}: must hold {rule}"):
        x509_files(context, chosen_set, password, password)


LEAVES_A_CHILD = ["sh", "-c", 'sleep 30 & echo $! > "$1"; echo started', "sh"]


def _make_loop(kind):
    return uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_what_a_command_leaves_running_is_not_waited_for_and_what_hangs_is_ended_with_its_children(tmp_path, kind):
    """A reload that starts a daemon, which keeps the pipe open, is no failure; under both loops, that of `files` and the agent's."""

    async def tell():
        began = time.monotonic()
        await run_command([*LEAVES_A_CHILD, str(tmp_path / "daemon")], 20)
        with pytest.raises(Unavailable, match=r"did not end within 0\.5 s and was killed"):
            await run_command(["sh", "-c", "sleep 30; :"], 0.5)
        with pytest.raises(Unavailable, match=r"exit code 3: x+$") as refusal:
            await run_command(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; exit 3"], 20)
        assert len(refusal.value.public) < 2100
        return time.monotonic() - began

    with asyncio.Runner(loop_factory=lambda: _make_loop(kind)) as runner:
        took = runner.run(tell())
    daemon = int((tmp_path / "daemon").read_text())
    os.kill(daemon, signal.SIGKILL)  # alive still
    assert took < 20


async def test_what_a_command_leaves_writing_is_not_read_to_an_end():
    """There is none while a daemon writes as fast as it is read, and the whole agent would wait for it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    held = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4 * _CHUNK)
    os.write(writing, b"x" * held)
    said = _LastWords(reading)
    assert said.text() == "x" * 2000
    left = struct.unpack("i", fcntl.ioctl(reading, termios.FIONREAD, bytes(4)))[0]
    said.close()
    os.close(writing)
    assert left == held - _CHUNK


async def test_commands_run_without_a_shell_and_are_bounded(tmp_path):
    mark = tmp_path / "a;b"
    await run_command(["touch", str(mark)], 10)
    assert mark.exists()
    with pytest.raises(Unavailable, match="exit code 3: no"):
        await run_command(["sh", "-c", "echo no; exit 3"], 10)
    with pytest.raises(Unavailable, match="could not be started"):
        await run_command([str(tmp_path / "none")], 10)
    with pytest.raises(Unavailable, match="was killed"):
        await run_command(["sleep", "60"], 0.05)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "99999999"])
def test_a_signal_goes_to_one_process_or_nowhere(tmp_path, text):
    path = tmp_path / "pid"
    path.write_text(text)
    with pytest.raises(Unavailable, match="no process to signal"):
        send_signal("HUP", path)
    with pytest.raises(Unavailable):
        send_signal("HUP", tmp_path / "none")


async def test_a_command_is_asked_to_end_when_its_caller_is(tmp_path):
    """An agent that stops leaves no reload behind, and kills none in the middle of its work."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    script = 'trap \'echo > "$2"; exit 0\' TERM; echo > "$1"; while :; do sleep 0.05; done'
    running = asyncio.ensure_future(run_command(["sh", "-c", script, "sh", str(begun), str(ended)], 50))
    async with asyncio.timeout(20):
        while not begun.exists():
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        while not ended.exists():
            await asyncio.sleep(0.01)
