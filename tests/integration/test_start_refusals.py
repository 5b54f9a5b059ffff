"""How the daemons start and how they refuse to: what a person at a terminal reads, what a log collector reads."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.privileges import need_namespaces, need_root

BIN = Path(sys.executable).parent


def server_config(folder, **over):
    """A server that refuses to start, because others may write to its data directory (R13)."""
    data = folder / "data"
    data.mkdir()
    data.chmod(0o777)
    lines = {
        "trust_domain": "example.org",
        "data_dir": str(data),
        "bind_address": "127.0.0.1",
        "bind_port": 0,
        "socket_path": str(folder / "run" / "admin.sock"),
        **over,
    }
    path = folder / "server.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    return path


def agent_config(folder, **over):
    data = folder / "data"
    data.mkdir()
    data.chmod(0o777)
    lines = {
        "trust_domain": "example.org",
        "data_dir": str(data),
        "socket_path": str(folder / "run" / "api.sock"),
        "insecure_bootstrap": True,
        **over,
    }
    path = folder / "agent.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    return path


def on_a_terminal(*argv):
    """Run a program whose stderr is a terminal; its exit code and what stood there."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [str(word) for word in argv], stderr=theirs, stdout=subprocess.DEVNULL, check=False, timeout=30
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # EIO: the other end is closed and everything is read
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return done.returncode, shown.decode().replace("\r\n", "\n")


def piped(*argv):
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stderr


DAEMONS = {"identity-server": server_config, "node-agent": agent_config}


@pytest.mark.parametrize("program", DAEMONS)
def test_on_a_terminal_a_refusal_is_a_sentence_and_what_to_do_next(program, tmp_path):
    config = DAEMONS[program](tmp_path)
    code, shown = on_a_terminal(BIN / program, "run", "--config", config)
    last = shown.splitlines()[-2:]
    assert code == 1
    assert last[0].startswith(f"{program}: ")
    assert str(tmp_path / "data") in last[0]
    assert last[1].startswith("    what to do next: ")
    assert not any(line.startswith("{") and str(tmp_path / "data") in line for line in shown.splitlines())


@pytest.mark.parametrize("program", DAEMONS)
def test_without_a_terminal_it_is_one_line_of_json(program, tmp_path):
    config = DAEMONS[program](tmp_path)
    code, text = piped(BIN / program, "run", "--config", config)
    (last,) = text.splitlines()[-1:]
    assert code == 1
    assert json.loads(last)["level"] == "error"
    assert str(tmp_path / "data") in json.loads(last)["msg"]


def test_a_full_disk_is_named_with_its_file(tmp_path):
    """R11, R13: 'try again later' is for callers; who starts the server is told which file and why."""
    need_root()
    need_namespaces("-m")
    small = tmp_path / "small"
    small.mkdir()
    config = server_config(tmp_path)
    config.write_text(config.read_text().replace(str(tmp_path / "data"), str(small / "data")))
    start = f"{BIN / 'identity-server'} run --config {config}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k,mode=0755 none {small} && exec {start}"],
        check=False, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    if done.stderr.startswith("mount: "):  # the server says nothing of the kind
        pytest.skip("no mounts here")
    last = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, last["level"]) == (1, "error")
    assert str(small / "data" / "datastore.sqlite3") in last["msg"]
    assert "disk is full" in last["msg"] or "No space left" in last["msg"]
    assert "make room" in last["msg"]


def test_who_asks_for_json_gets_json_on_a_terminal_too(tmp_path):
    config = server_config(tmp_path, log_format="json")
    code, shown = on_a_terminal(BIN / "identity-server", "run", "--config", config)
    assert code == 1
    assert json.loads(shown.splitlines()[-1])["level"] == "error"


def test_a_log_file_that_cannot_be_opened_is_said_once(tmp_path):
    """There is no log yet to say it in: one line on standard error, exit code 1."""
    config = server_config(tmp_path, log_file=str(tmp_path / "none" / "server.log"))
    done = subprocess.run(
        [BIN / "identity-server", "run", "--config", config], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"identity-server: log_file {tmp_path}/none/server.log cannot be opened: ")


def test_with_a_log_file_it_is_said_in_both_places(tmp_path):
    log = tmp_path / "server.log"
    config = server_config(tmp_path, log_file=str(log))
    code, shown = on_a_terminal(BIN / "identity-server", "run", "--config", config)
    assert code == 1
    assert "what to do next" in shown
    assert str(tmp_path / "data") in json.loads(log.read_text().splitlines()[-1])["msg"]


def limited(files):
    def apply():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return apply


@pytest.mark.parametrize(
    ("chosen", "level", "words"),
    [(None, "info", "at most 128 connections"), (4096, "warning", "open files are limited to 1024")],
)
def test_a_default_gives_way_to_the_limit_of_open_files_and_a_choice_does_not(chosen, level, words, tmp_path):
    """R14: the default is scaled to the hard limit without an alarm; a number that somebody set is warned about."""
    config = server_config(tmp_path)
    if chosen:
        config.write_text(config.read_text() + f"[limits]\nconnections = {chosen}\n")
    done = subprocess.run(
        [str(BIN / "identity-server"), "run", "--config", str(config)],
        capture_output=True, text=True, check=False, timeout=30, preexec_fn=limited(1024),
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines if words in line["msg"]] == [level], done.stderr
    assert ("warning" in {line["level"] for line in lines}) == (level == "warning")
