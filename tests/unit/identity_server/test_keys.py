"""The keys file: R1, R7, R8, R11 to R13, S70, S71."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from identity_server.keys import MAX_FILE_BYTES, MAX_SLOTS, DiskKeys, MemoryKeys, set_aside
from spiffe_core.crypto.keys import KeyKind, from_pkcs8, generate, spki_der, to_pkcs8
from spiffe_core.errors import ConfigError, CorruptState, IdentityError, Unavailable

KEY = base64.b64encode(to_pkcs8(generate(KeyKind.EC_P256)).reveal()).decode()
GOOD = json.dumps({"keys": {"x509-CA-A": KEY}}).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    return folder / "keys.json"


def put(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def test_keys_outlive_the_process(path: Path) -> None:
    """R1."""
    made = DiskKeys(path).generate("x509-CA-A", KeyKind.EC_P256)
    again = DiskKeys(path).signer("x509-CA-A")
    assert again is not None
    assert spki_der(made) == spki_der(again.public_key())
    assert (True, str(path)) == (DiskKeys(path).persistent, DiskKeys(path).location)
    assert not MemoryKeys().persistent


def test_nothing_is_written_before_there_is_a_key(path: Path) -> None:
    DiskKeys(path).delete("x509-CA-A")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """S70: 0600 in 0700 after a fresh start and after a restart."""
    path = tmp_path / "fresh" / "data" / "keys.json"
    if umask == 0o777:
        (tmp_path / "fresh").mkdir()
    before = os.umask(umask)
    try:
        DiskKeys(path).generate("x509-CA-A", KeyKind.EC_P256)
        DiskKeys(path).generate("x509-CA-B", KeyKind.EC_P256)
    finally:
        os.umask(before)
    assert (path.stat().st_mode & 0o7777, path.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert [path] == list(path.parent.iterdir())


CORRUPT = {
    "zero length": b"",
    "truncated": GOOD[:-9],
    "garbage": bytes(range(256)),
    "not an object": b"[]",
    "no keys member": b"{}",
    "a surplus member": GOOD.replace(b'{"keys"', b'{"x": 1, "keys"'),
    "keys is a list": b'{"keys": []}',
    "keys twice": b'{"keys": {}, "keys": {}}',
    "a slot twice": GOOD.replace(b'{"x509-CA-A"', f'{{"x509-CA-A": "{KEY}", "x509-CA-A"'.encode()),
    "a number for a key": b'{"keys": {"x509-CA-A": 5}}',
    "null for a key": b'{"keys": {"x509-CA-A": null}}',
    "not base64": b'{"keys": {"x509-CA-A": "*"}}',
    "base64url": GOOD.replace(KEY.encode(), KEY[:40].encode() + b"-_" + KEY[42:].encode()),
    "base64 with a line break": GOOD.replace(KEY.encode(), KEY[:40].encode() + b"\\n" + KEY[40:].encode()),
    "an empty key": b'{"keys": {"x509-CA-A": ""}}',
    "a truncated key": GOOD.replace(KEY.encode(), base64.b64encode(base64.b64decode(KEY)[:-8])),
    "another kind of key": json.dumps(
        {
            "keys": {
                "x509-CA-A": base64.b64encode(
                    ed25519.Ed25519PrivateKey.generate().private_bytes(
                        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
                    )
                ).decode()
            }
        }
    ).encode(),
    "a strange slot": GOOD.replace(b"x509-CA-A", b"../x"),
    "too many slots": json.dumps({"keys": {f"s{number}": KEY for number in range(MAX_SLOTS + 1)}}).encode(),
    "too large": GOOD + b" " * MAX_FILE_BYTES,
    "deeply nested": b"[" * 100_000,
    "not ASCII": GOOD.replace(b"x509", b"\xc3\xa9509"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_file_is_refused_by_path_and_left_alone(path: Path, name: str) -> None:
    """R8: never a silent new identity; the message offers the choices and holds nothing of the file."""
    put(path, CORRUPT[name])
    with pytest.raises(CorruptState) as refused:
        DiskKeys(path)
    assert str(path) in refused.value.public
    assert "--reset-keys" in refused.value.public
    assert KEY[:20] not in f"{refused.value!r} {refused.value.facts} {refused.value.__cause__!r}"
    assert refused.value.__cause__ is None
    assert CORRUPT[name] == path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_refused_or_holds_the_same_keys(path: Path, data: st.DataObject) -> None:
    """R8, S29, by mutation: flipped, dropped or inserted bytes never give another key."""
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "insert"])):
            case "flip":
                body[at] ^= 1 << data.draw(st.integers(0, 7))
            case "drop":
                del body[at]
            case _:
                body.insert(at, data.draw(st.integers(0, 255)))
    put(path, bytes(body))
    try:
        loaded = DiskKeys(path)
    except CorruptState:
        return
    original = spki_der(from_pkcs8(base64.b64decode(KEY)).public_key())
    assert all(original == spki_der(key.public_key()) for slot in loaded.list() if (key := loaded.signer(slot)))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o777])
def test_a_file_others_may_have_read_is_refused(path: Path, mode: int) -> None:
    """R13, S70."""
    put(path, GOOD, mode)
    with pytest.raises(CorruptState, match=f"{mode:04o}"):
        DiskKeys(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_owner_is_refused(path: Path) -> None:
    """R13."""
    put(path, GOOD)
    os.chown(path, 12_345, -1)
    with pytest.raises(CorruptState, match="12345"):
        DiskKeys(path)


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o750])
def test_a_directory_others_can_enter_is_refused(path: Path, mode: int) -> None:
    """R13."""
    path.parent.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 0700") as refused:
        DiskKeys(path)
    assert str(path.parent) in refused.value.public


def test_planted_links_are_refused_and_their_targets_untouched(path: Path, tmp_path: Path) -> None:
    """S71, at the path: symbolic link, hard link, and one planted while the server runs."""
    target = tmp_path / "target"
    put(target, GOOD)
    path.symlink_to(target)
    with pytest.raises(CorruptState, match="symbolic link"):
        DiskKeys(path)
    path.unlink()
    path.hardlink_to(target)
    with pytest.raises(CorruptState, match="hard link"):
        DiskKeys(path)
    path.unlink()
    keys = DiskKeys(path)
    for plant in (path.symlink_to, path.hardlink_to):
        plant(target)
        with pytest.raises(CorruptState):
            keys.generate("x509-CA-A", KeyKind.EC_P256)
        assert (keys.list(), target.read_bytes()) == ((), GOOD)
        path.unlink()


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(path: Path, tmp_path: Path) -> None:
    """R1, S71: no orphan key stays in a temporary file; a link planted under such a name loses only itself."""
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    put(path.with_name(".keys.json.0123456789abcdef.tmp"), b"half a ke")
    path.with_name(".keys.json.fedcba9876543210.tmp").symlink_to(target)
    put(path.with_name(".keys.json.mine.tmp"), b"x")
    put(path.with_name("other"), b"x")
    DiskKeys(path)
    assert {".keys.json.mine.tmp", "other"} == {one.name for one in path.parent.iterdir()}
    assert target.read_bytes() == b"untouched"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("write", errno.ENOSPC),
        ("write", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("rename", errno.EIO),
        ("fchmod", errno.EIO),
    ],
)
def test_a_failing_disk_leaves_the_old_keys_in_memory_and_on_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """R11, R12: the fault is reported, the slot keeps its key, no temporary file stays, a later try works."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    keys = DiskKeys(path)
    made = keys.generate("x509-CA-A", KeyKind.EC_P256)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(Unavailable) as failed:
            keys.generate("x509-CA-A", KeyKind.EC_P256)
        with pytest.raises(Unavailable):
            keys.delete("x509-CA-A")
    assert str(path) in failed.value.public
    held = keys.signer("x509-CA-A")
    assert held is not None
    assert (spki_der(made), before) == (spki_der(held.public_key()), path.read_bytes())
    assert [path] == list(path.parent.iterdir())
    keys.generate("x509-CA-B", KeyKind.EC_P256)
    assert DiskKeys(path).list() == ("x509-CA-A", "x509-CA-B")


def test_a_given_up_file_is_set_aside_never_deleted(path: Path) -> None:
    assert set_aside(path) is None
    for number in (1, 2):
        put(path, b"corrupt %d" % number)
        aside = set_aside(path)
        assert aside is not None
        assert (b"corrupt %d" % number, 0o600) == (aside.read_bytes(), aside.stat().st_mode & 0o7777)
        assert DiskKeys(path).list() == ()
    assert {"keys.json.set-aside-1", "keys.json.set-aside-2"} == {one.name for one in path.parent.iterdir()}


def test_what_is_not_a_file_is_not_set_aside(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path)
    with pytest.raises(IdentityError, match="not a regular file"):
        set_aside(path)
