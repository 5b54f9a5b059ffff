"""Files written on request (S67): fixed names, no links followed, keys private from their first byte."""

import os
import stat

import pytest

from spiffe_core.errors import InvalidCertificate
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.pem_files import PRIVATE, PUBLIC, output_directory, pem, split_der, write_files


def sequence(size, fill=b"\0"):
    body = fill * size
    if size < 128:
        return bytes([0x30, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x30, 0x80 | len(length)]) + length + body


@pytest.mark.parametrize("sizes", [[], [0], [5], [127, 128, 255, 256, 70_000], [3, 3, 3]])
def test_concatenated_der_is_taken_apart(sizes):
    parts = [sequence(size, bytes([index + 1])) for index, size in enumerate(sizes)]
    assert split_der(b"".join(parts), field="f") == parts


@pytest.mark.parametrize(
    "data",
    [
        b"\x30",
        b"\x31\x00",
        b"-----BEGIN",
        b"\x30\x80\x00\x00",
        b"\x30\x85\x01\x00\x00\x00\x00",
        b"\x30\x82\x01",
        b"\x30\x05abcd",
        sequence(4) + b"\x00",
        b"\x30\x84\xff\xff\xff\xff",
    ],
)
def test_what_is_no_der_is_refused_by_name(data):
    with pytest.raises(InvalidCertificate, match=r"^f: ") as caught:
        split_der(data, field="f")
    assert caught.value.field == "f"


def test_pem_has_lines_of_64():
    lines = pem("CERTIFICATE", b"x" * 100).splitlines()
    assert lines[0] == "-----BEGIN CERTIFICATE-----"
    assert lines[-1] == "-----END CERTIFICATE-----"
    assert {len(line) for line in lines[1:-2]} == {64}


def test_files_have_their_modes_whatever_the_umask(tmp_path):
    old = os.umask(0o077)
    try:
        paths = write_files(tmp_path, {"svid.pem": ("cert", PUBLIC), "key.pem": ("key", PRIVATE)})
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644, 0o600]
    assert [path.read_text() for path in paths] == ["cert", "key"]


def test_a_link_at_a_files_name_is_refused_and_its_target_left_alone(tmp_path):
    """S67: `-write` into a directory where somebody planted key.pem -> elsewhere."""
    target = tmp_path / "precious"
    target.write_text("old")
    (tmp_path / "key.pem").symlink_to(target)
    with pytest.raises(Failure, match="symbolic link"):
        write_files(tmp_path, {"key.pem": ("key", PRIVATE)})
    assert target.read_text() == "old"


def test_a_dangling_link_creates_nothing(tmp_path):
    (tmp_path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="symbolic link"):
        write_files(tmp_path, {"key.pem": ("key", PRIVATE)})
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    (tmp_path / "svid.pem").write_text("a much longer text than the new one")
    write_files(tmp_path, {"svid.pem": ("new", PUBLIC)})
    assert (tmp_path / "svid.pem").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["svid.pem"]


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", ""])
def test_names_stay_in_the_directory(tmp_path, name):
    """S67: nothing a peer says becomes a path; even our own code cannot leave the directory."""
    with pytest.raises(Failure, match="not a plain file name"):
        write_files(tmp_path, {name: ("x", PUBLIC)})


def test_a_directory_everybody_can_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(Failure, match="writable by everyone"):
        write_files(tmp_path, {"svid.pem": ("x", PUBLIC)})


class TestDirectory:
    def test_an_existing_directory_is_taken(self, tmp_path):
        assert output_directory(str(tmp_path)) == tmp_path

    def test_a_missing_one_is_refused_with_the_way_to_make_it(self, tmp_path):
        with pytest.raises(Failure) as caught:
            output_directory(str(tmp_path / "no"))
        assert "mkdir" in caught.value.advice

    def test_a_link_is_refused(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(Failure, match="symbolic link") as caught:
            output_directory(str(tmp_path / "link"))
        assert str(tmp_path / "real") in caught.value.advice

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "f").write_text("")
        with pytest.raises(Failure, match="not a directory"):
            output_directory(str(tmp_path / "f"))

    def test_going_up_is_refused_with_the_direct_path(self, tmp_path):
        """S67: path traversal."""
        (tmp_path / "a").mkdir()
        with pytest.raises(Failure, match=r"goes up with '\.\.'") as caught:
            output_directory(f"{tmp_path}/a/../a")
        assert str(tmp_path / "a") in caught.value.advice

    @pytest.mark.parametrize("text", ["", "a\0b"])
    def test_no_name_is_refused(self, text):
        with pytest.raises(Failure, match="no name"):
            output_directory(text)
