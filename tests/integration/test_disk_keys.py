"""The keys file on real filesystems: full (R11), torn at every byte (R7), and what is no regular file (S71)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from identity_server.keys import DiskKeys
from spiffe_core.crypto.keys import KeyKind, spki_der
from spiffe_core.errors import ConfigError, CorruptState, IdentityError

ON_A_FULL_DISK = """
import sys
from pathlib import Path
from identity_server.keys import DiskKeys
from spiffe_core.crypto.keys import KeyKind, spki_der
from spiffe_core.errors import Unavailable
folder = Path(sys.argv[1])
(folder / "data").mkdir(0o700)
path = folder / "data" / "keys.json"
keys = DiskKeys(path)
made = spki_der(keys.generate("x509-CA-A", KeyKind.EC_P256))
before = path.read_bytes()
ballast = open(folder / "ballast", "wb", buffering=0)
try:
    while ballast.write(bytes(4096)):
        pass
except OSError:
    pass
for change in (lambda: keys.generate("x509-CA-A", KeyKind.RSA_2048), lambda: keys.delete("x509-CA-A")):
    try:
        change()
    except Unavailable as refusal:
        assert str(path) in refusal.public and "No space left" in refusal.public, refusal.public
    else:
        raise SystemExit("the full disk took it")
assert spki_der(keys.signer("x509-CA-A").public_key()) == made
assert path.read_bytes() == before
assert [one.name for one in path.parent.iterdir()] == ["keys.json"]
ballast.close()
(folder / "ballast").unlink()
keys.generate("x509-CA-B", KeyKind.EC_P256)
assert DiskKeys(path).list() == ("x509-CA-A", "x509-CA-B")
print("held")
"""


def test_a_really_full_disk_costs_the_change_and_nothing_else(tmp_path: Path) -> None:
    """R11: a tmpfs of 64 KiB in a mount namespace of its own; with room again the same manager goes on."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount")
    script = tmp_path / "script.py"
    script.write_text(ON_A_FULL_DISK)
    mounted = tmp_path / "small"
    mounted.mkdir()
    shell = f"mount -t tmpfs -o size=64k,mode=0755 none {mounted} && exec {sys.executable} {script} {mounted}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell], check=False, capture_output=True, text=True, timeout=50, env=environment
    )
    if done.stderr.startswith("mount: "):  # no other program is named so
        pytest.skip("no mounts here")
    assert done.stdout == "held\n", done.stderr


def test_a_file_torn_at_any_byte_is_refused_or_whole(tmp_path: Path) -> None:
    """R7: no prefix of the file is mistaken for fewer or other keys."""
    path = tmp_path / "data" / "keys.json"
    keys = DiskKeys(path)
    made = {slot: spki_der(keys.generate(slot, KeyKind.EC_P256)) for slot in ("x509-CA-A", "x509-CA-B")}
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            loaded = DiskKeys(path)
        except CorruptState:
            continue
        assert end == len(whole) - 1, "only the last line break may be missing"
        assert {slot: spki_der(loaded.signer(slot).public_key()) for slot in loaded.list()} == made


@pytest.mark.parametrize("what", ["directory", "fifo", "socket", "dangling link"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    """S71: a FIFO does not hold the start up, and nothing planted is written through or replaced."""
    path = tmp_path / "data" / "keys.json"
    path.parent.mkdir(0o700)
    if what == "directory":
        path.mkdir(0o700)
    elif what == "fifo":
        os.mkfifo(path, 0o600)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(IdentityError) as refused:
        DiskKeys(path)
    assert str(path) in refused.value.public
    assert os.path.lexists(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_data_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """S71: whoever may exchange the link would choose the keys."""
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "data").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="symbolic link"):
        DiskKeys(tmp_path / "data" / "keys.json")
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_of_another_owner_is_refused(tmp_path: Path) -> None:
    """R13."""
    (tmp_path / "data").mkdir(0o700)
    os.chown(tmp_path / "data", 12_345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        DiskKeys(tmp_path / "data" / "keys.json")
