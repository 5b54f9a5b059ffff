"""Log lines: one per event, nothing forged, nothing secret, nothing that stops the daemon (R11, S70, S71)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spiffe_core.crypto.keys import PrivateKeyDer
from spiffe_core.errors import ConfigError, CorruptState, NotFound
from spiffe_core.runtime import logs
from spiffe_core.runtime.logs import MAX_ITEMS, MAX_VALUE_CHARS, LogOutput, setup_logging

log = logging.getLogger("test.logs")
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIsecret\n-----END EC PRIVATE KEY-----"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def same_level_afterwards() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(stream: io.StringIO) -> Iterator[Lines]:
    output = setup_logging("debug", stream=stream)

    def read() -> list[dict[str, Any]]:
        output.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield read
    output.close()


def test_a_line_has_time_level_logger_message_and_facts(lines: Lines) -> None:
    log.warning("rotated %s", "A", extra={"facts": {"slot": "x509-CA-A", "count": 3, "ok": True, "none": None}})
    (line,) = lines()
    assert list(line) == ["time", "level", "subsystem_name", "msg", "facts"]
    assert (line["level"], line["subsystem_name"], line["msg"]) == ("warning", "test.logs", "rotated A")
    assert line["facts"] == {"slot": "x509-CA-A", "count": 3, "ok": True, "none": None}
    assert line["time"].endswith("Z")


FORGERIES = [
    "a\nb",
    "a\r\nb",
    "\x1b[2J\x1b[31mred",
    "a\u2028b\u2029c",
    "\u202egnp.exe",
    "\x00",
    "\x7f",
    "\x9b31m",
    "\ud800",
    "a\x85b",
]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("text", FORGERIES, ids=ascii)
def test_no_text_forges_a_line_or_moves_the_terminal(
    stream: io.StringIO, style: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    for capture in [one for one in logging.getLogger().handlers if isinstance(one, type(caplog.handler))]:
        logging.getLogger().removeHandler(capture)  # a lone surrogate in it would break pytest's parallel reports
    output = setup_logging("info", stream=stream, style=style)
    log.info("msg %s", text, extra={"facts": {"f": text, f"name{text}": 1}})
    output.close()
    written = stream.getvalue()
    assert (written[-1], len(written.splitlines())) == ("\n", 1)
    assert all(0x20 <= ord(char) < 0x7F for char in written[:-1])


SECRETS: dict[str, dict[str, object]] = {
    "a PEM key": {"text": f"before {PEM} after"},
    "a cut PEM key": {"text": PEM[:50]},
    "a PEM key in a list": {"text": [PEM]},
    "a PEM key in a mapping": {"text": {"x": PEM}},
    "a token": {"token": "MHcCAQEEIsecret"},
    "a join token": {"join_token": "MHcCAQEEIsecret"},
    "SPIRE's spelling": {"joinToken": "MHcCAQEEIsecret"},
    "a password": {"db.password": "MHcCAQEEIsecret"},
    "a key": {"key": "MHcCAQEEIsecret"},
    "a private key, capitals": {"PRIVATE_KEY": "MHcCAQEEIsecret"},
    "a client secret": {"client-secret": "MHcCAQEEIsecret"},
    "nested": {"a": {"secret": "MHcCAQEEIsecret"}},
    "bytes": {"der": b"MHcCAQEEIsecret"},
    "a key object": {"made": PrivateKeyDer(b"MHcCAQEEIsecret")},
    "a password in a URL": {"url": "postgresql://me:MHcCAQEEIsecret@db/x"},
}


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("name", SECRETS)
def test_secrets_do_not_reach_the_log(stream: io.StringIO, style: str, name: str) -> None:
    output = setup_logging("info", stream=stream, style=style)
    log.info("event", extra={"facts": SECRETS[name]})
    output.close()
    assert "event" in stream.getvalue()
    assert "IEIsecret" not in stream.getvalue()
    assert "EEIsecret" not in stream.getvalue()


def test_secrets_in_messages_and_tracebacks_do_not_either(lines: Lines) -> None:
    log.error("failed: %s", PEM, exc_info=ValueError(PEM))
    (line,) = lines()
    assert "EEIsecret" not in json.dumps(line)
    assert (line["msg"], "ValueError" in line["trace"]) == ("failed: [private key redacted]", True)


def test_names_that_only_resemble_secrets_stay(lines: Lines) -> None:
    facts = {"key_id": "ab", "keys": 2, "tokenised": 1, "monkey": "m", "key_slot": "x509-CA-A"}
    log.info("x", extra={"facts": facts})
    assert facts == lines()[0]["facts"]


def test_the_facts_of_our_errors_are_written(lines: Lines) -> None:
    error = NotFound("no such entry", entry_id="e1")
    log.warning("refused", exc_info=error, extra={"facts": {"caller": "x"}})
    assert lines()[0]["facts"] == {"entry_id": "e1", "caller": "x"}


def test_everything_is_bounded(lines: Lines) -> None:
    deep: Any = "leaf"
    for _ in range(200):
        deep = {"d": deep}
    log.info(
        "m" * 100_000,
        extra={"facts": {"long": "v" * 100_000, "many": list(range(10_000)), "deep": deep, "n" * 9_999: 1}},
    )
    (line,) = lines()
    assert len(json.dumps(line)) < 3 * MAX_VALUE_CHARS + 2_000
    assert line["msg"].endswith("[97952 more]")
    assert len(line["facts"]["many"]) == MAX_ITEMS


def test_facts_are_taken_at_the_time_of_the_call(lines: Lines) -> None:
    facts = {"n": 1}
    log.info("x", extra={"facts": facts})
    facts["n"] = 2
    assert lines()[0]["facts"] == {"n": 1}


def test_levels_are_kept_and_wrong_settings_refused(stream: io.StringIO) -> None:
    output = setup_logging("warn", stream=stream)
    log.info("no")
    log.warning("yes")
    output.close()
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["yes"]
    with pytest.raises(ConfigError, match="log_level"):
        setup_logging("loud")
    with pytest.raises(ConfigError, match="log_format"):
        setup_logging("info", style="xml")


def test_the_text_style_is_for_people(stream: io.StringIO) -> None:
    output = setup_logging("info", stream=stream, style="text")
    log.info("authority ready", extra={"facts": {"slot": "A", "why": "past half", "left": 5, "none": ""}})
    output.close()
    assert stream.getvalue()[8:] == ' info    authority ready slot=A why="past half" left=5 none=""\n'


def test_a_record_that_cannot_be_rendered_is_counted_not_raised(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()  # the test runner's own handlers raise on such a record
    monkeypatch.setattr(root, "handlers", [one for one in root.handlers if isinstance(one, logs._QueueingHandler)])
    log.info("%d", "x")
    log.info("next")
    shown = lines()
    assert shown[-1]["msg"] == "next"
    assert [line["facts"] for line in shown if line["msg"] == "log lines were lost"] == [{"lost": 1}]


def test_a_full_queue_drops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon never waits for its log."""
    go = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            go.wait(5)
            return super().write(text)

    monkeypatch.setattr(logs, "QUEUE_LINES", 4)
    stream = Stuck()
    output = setup_logging("info", stream=stream)
    for number in range(50):
        log.info("line %d", number)
    assert output.lost >= 40
    go.set()
    output.close()
    shown = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert output.lost == sum(line["facts"]["lost"] for line in shown if line["msg"] == "log lines were lost")


def test_a_full_disk_is_survived_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R11."""
    path = tmp_path / "x.log"
    output = setup_logging("info", path)
    written = threading.Semaphore(0)
    write = os.write
    full = True

    def maybe(file: int, data: bytes) -> int:
        try:
            if full:
                raise OSError(28, "No space left on device")
            return write(file, data)
        finally:
            written.release()

    monkeypatch.setattr(os, "write", maybe)
    log.info("lost")
    assert written.acquire(timeout=5)
    full = False
    log.info("back")
    output.close()
    shown = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["msg"] for line in shown] == ["log lines were lost", "back"]
    assert shown[0]["facts"] == {"lost": 1}


def make(path: Path) -> LogOutput:
    return setup_logging("info", path)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_log_file_is_ours_alone_and_appended_to(tmp_path: Path, umask: int) -> None:
    """S70."""
    path = tmp_path / "x.log"
    before = os.umask(umask)
    try:
        for text in ("one", "two"):
            output = make(path)
            log.info(text)
            output.close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_after_a_rotation_the_new_file_is_written(tmp_path: Path) -> None:
    """SIGUSR2 calls `reopen`."""
    path = tmp_path / "x.log"
    output = make(path)
    path.rename(tmp_path / "x.log.1")
    output.reopen()
    log.info("after")
    output.close()
    assert ((tmp_path / "x.log.1").read_text(), "after" in path.read_text()) == ("", True)


def test_a_planted_link_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    """S71, at the start and when reopened: then the old file stays in use."""
    target, path = tmp_path / "target", tmp_path / "x.log"
    target.write_bytes(b"target")
    path.symlink_to(target)
    with pytest.raises(ConfigError, match="log_file"):
        make(path)
    path.unlink()
    path.hardlink_to(target)
    with pytest.raises(CorruptState, match="log_file"):
        make(path)
    path.unlink()
    output = make(path)
    path.rename(tmp_path / "moved")
    path.symlink_to(target)
    output.reopen()
    log.info("still here")
    output.close()
    assert "the old log file stays in use" in (tmp_path / "moved").read_text()
    assert (target.read_bytes(), "still here" in (tmp_path / "moved").read_text()) == (b"target", True)


def test_closing_writes_what_is_queued_and_ends_the_thread(stream: io.StringIO) -> None:
    threads = threading.active_count()
    output = setup_logging("info", stream=stream)
    for number in range(500):
        log.info("%d", number)
    output.close()
    output.close()
    output.reopen()
    log.info("after the end")
    assert [str(number) for number in range(500)] == [
        json.loads(line)["msg"] for line in stream.getvalue().splitlines()
    ]
    assert threads == threading.active_count()


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_line_says_where_it_was_written_if_asked(stream: io.StringIO, style: str) -> None:
    """SPIRE's -logSourceLocation, with its names `file` and `func`."""
    output = setup_logging("info", stream=stream, style=style, located=True)
    log.info("x")
    output.close()
    line = stream.getvalue().strip()
    name = "test_a_line_says_where_it_was_written_if_asked"
    if style == "json":
        document = json.loads(line)
        assert document["func"] == name
        assert re.fullmatch(rf"{re.escape(__file__)}:\d+", document["file"])
    else:
        assert re.search(rf" x file={re.escape(__file__)}:\d+ func={name}$", line)
