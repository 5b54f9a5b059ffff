"""Listening sockets are opened with care (S70, S71, N-A-38)."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from spiffe_core.errors import ConfigError
from spiffe_core.wire.sockets import PrivateDirectory, listen_tcp, listen_unix


def test_a_fresh_socket_has_the_asked_mode_in_a_directory_of_ours_whatever_the_umask(tmp_path):
    """S70: modes do not depend on the umask."""
    before = os.umask(0)
    try:
        listener = listen_unix(tmp_path / "new" / "deep" / "api.sock", mode=0o777, dir_mode=0o755)
    finally:
        os.umask(before)
    try:
        assert stat.S_IMODE(listener.path.stat().st_mode) == 0o777
        assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o755
    finally:
        listener.close()
    assert not listener.path.exists()


def test_directories_above_a_private_one_stay_open_to_others(tmp_path):
    """An admin socket's 0750 directory must not close /run/muniment to the users of the agent's socket."""
    listener = listen_unix(tmp_path / "muniment" / "server" / "admin.sock", mode=0o770, dir_mode=0o750)
    assert stat.S_IMODE((tmp_path / "muniment" / "server").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "muniment").stat().st_mode) == 0o755
    listener.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_below_another_users_is_refused(tmp_path):
    """Its owner could move the whole directory away and put his own in its place."""
    theirs = tmp_path / "theirs"
    (theirs / "ours").mkdir(parents=True, mode=0o755)
    os.chown(theirs, 4242, 4242)
    with pytest.raises(ConfigError, match="belongs to uid 4242"):
        listen_unix(theirs / "ours" / "api.sock", mode=0o777, dir_mode=0o755)


def test_a_symlink_at_the_socket_path_is_refused_and_its_target_untouched(tmp_path):
    """S71."""
    target = tmp_path / "precious"
    target.write_text("keep me")
    (tmp_path / "api.sock").symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        listen_unix(tmp_path / "api.sock", mode=0o777, dir_mode=0o755)
    assert target.read_text() == "keep me"


def test_a_symlink_at_the_lock_file_is_refused(tmp_path):
    """S71."""
    target = tmp_path / "precious"
    target.write_text("keep me")
    (tmp_path / ".api.sock.lock").symlink_to(target)
    with pytest.raises(ConfigError, match="lock file"):
        listen_unix(tmp_path / "api.sock", mode=0o777, dir_mode=0o755)
    assert target.read_text() == "keep me"


def test_a_regular_file_at_the_socket_path_is_refused(tmp_path):
    """N-A-38: only a socket is ever unlinked."""
    (tmp_path / "api.sock").write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        listen_unix(tmp_path / "api.sock", mode=0o777, dir_mode=0o755)
    assert (tmp_path / "api.sock").read_text() == "data"


def test_a_stale_socket_is_replaced(tmp_path):
    """N-A-38: a killed process leaves its socket behind."""
    path = tmp_path / "api.sock"
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.is_socket()
    listener = listen_unix(path, mode=0o777, dir_mode=0o755)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_a_live_socket_is_refused_whoever_made_it(tmp_path):
    """Two processes never fight over one path."""
    path = tmp_path / "api.sock"
    listener = listen_unix(path, mode=0o777, dir_mode=0o755)
    with pytest.raises(ConfigError, match="in use by another running process"):
        listen_unix(path, mode=0o777, dir_mode=0o755)
    listener.close()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(ConfigError, match="in use by another running process"):
            listen_unix(path, mode=0o777, dir_mode=0o755)


def test_closing_leaves_a_successors_socket_alone(tmp_path):
    """Only the file this listener made is removed."""
    path = tmp_path / "api.sock"
    listener = listen_unix(path, mode=0o777, dir_mode=0o755)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        listener.close()
        assert path.is_socket()


@pytest.mark.parametrize("length", [107, 108])
def test_the_longest_path_the_kernel_takes_is_taken_and_one_more_is_refused(tmp_path, length):
    """S36: exact at the limit."""
    folder = tmp_path / "d"
    folder.mkdir(mode=0o755)
    path = folder / ("s" * (length - len(str(folder)) - 1))
    if length > 107:
        with pytest.raises(ConfigError, match="longer than 107 bytes"):
            listen_unix(path, mode=0o777, dir_mode=0o755)
    else:
        listen_unix(path, mode=0o777, dir_mode=0o755).close()


def test_a_directory_others_can_write_is_refused_unless_sticky(tmp_path):
    """Whoever can write the directory could put a socket of his own there."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        listen_unix(folder / "api.sock", mode=0o777, dir_mode=0o755)
    folder.chmod(0o1777)
    listen_unix(folder / "api.sock", mode=0o777, dir_mode=0o755).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path):
    """Its owner could replace the socket."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 4242, 4242)
    # Root may use anyone's directory when it is root's own rule; what counts is that the owner is neither root nor us.
    with pytest.raises(ConfigError, match="belongs to uid 4242"):
        listen_unix(folder / "api.sock", mode=0o777, dir_mode=0o755)


def test_a_taken_port_is_named_with_what_to_do():
    """Port in use."""
    first = listen_tcp("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="another process has it"):
        listen_tcp("127.0.0.1", first.getsockname()[1])
    first.close()


def test_an_address_of_another_machine_is_named_with_what_to_do():
    """203.0.113.0/24 is for documentation (RFC 5737): nobody has it."""
    with pytest.raises(ConfigError, match="this machine has no such address: set bind_address"):
        listen_tcp("203.0.113.7", 0)


def test_a_bad_bind_address_is_named():
    with pytest.raises(ConfigError, match="bind_address"):
        listen_tcp("no such host.invalid", 0)


def test_a_private_directory_is_private_and_its_leftovers_are_swept(tmp_path, monkeypatch):
    """A killed daemon's private directory goes away with the next start; a live one stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import tempfile, os\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from spiffe_core.wire.sockets import PrivateDirectory\n"
        "d = PrivateDirectory.make(); print(d.path, flush=True); os._exit(1)"
    )
    left = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True).stdout.strip()
    assert os.path.isdir(left)
    live = PrivateDirectory.make()
    assert not os.path.exists(left)
    another = PrivateDirectory.make()
    assert live.path.is_dir()
    assert stat.S_IMODE(live.path.stat().st_mode) == 0o700
    live.close()
    another.close()
    assert not live.path.exists()
