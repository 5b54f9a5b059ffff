"""The audit sink (architecture A16): written before the effect, never losing count, never repairing silently."""

import contextlib
import json
import os
import select
import threading
import time
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_server import audit_log, audit_output
from identity_server.audit_log import AuditFile
from identity_server.audit_output import AuditOutput, CutShort
from identity_server.domain.audit import AgentChanged, SvidIssued, TokenIssued
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.runtime.request_id import note_caller

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TOKEN = TokenIssued(
    profile="jwt_svid",
    spiffe_id="spiffe://example.org/w",
    key_id="k",
    expires_at=1,
    actor="a",
    audience=('a"b', "\u00e9"),
)
BAN = AgentChanged(change="ban", spiffe_id="spiffe://example.org/spire/agent/x", actor="local (pid 1, uid 0)")


def leaf(number):
    return SvidIssued(
        profile="workload", spiffe_id="spiffe://example.org/w", serial=str(number), not_after=1, actor="a"
    )


@pytest.fixture
def sink(tmp_path):
    made = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
    yield made
    made.close()


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


def test_an_administrative_event_stands_in_the_file_when_record_returns(sink, tmp_path):
    sink.record(BAN)
    assert lines(tmp_path) == [
        {
            "time": "2030-01-01T00:00:00.000+00:00",
            "event": "agent",
            "change": "ban",
            "spiffe_id": BAN.spiffe_id,
            "actor": BAN.actor,
        }
    ]


def test_a_batch_is_one_write_and_stands_in_the_file_when_record_returns(sink, tmp_path, monkeypatch):
    """B9: what precedes 500 changes costs one system call; queued lines still come before it."""
    written, write = [], os.write
    sink.record(leaf(1))
    monkeypatch.setattr(
        audit_output.os, "write", lambda descriptor, data: (written.append(1), write(descriptor, data))[1]
    )
    sink.record(*[replace(BAN, actor=str(number)) for number in range(500)])
    assert [line["actor"] for line in lines(tmp_path)] == ["a", *map(str, range(500))]
    assert len(written) <= 2
    assert {line["time"] for line in lines(tmp_path)} == {"2030-01-01T00:00:00.000+00:00"}


def test_a_batch_of_which_a_part_may_wait_keeps_its_order(sink, tmp_path):
    sink.record(leaf(1), replace(BAN, outcome="done"), leaf(2))
    sink.record()
    sink.record(BAN)
    assert [line.get("serial", line.get("outcome")) for line in lines(tmp_path)] == ["1", "done", "2", None]


def test_queued_events_come_first_and_in_order(sink, tmp_path):
    for number in range(100):
        sink.record(leaf(number))
    sink.record(BAN)
    found = lines(tmp_path)
    assert [line.get("serial") for line in found] == [*map(str, range(100)), None]


def test_closing_writes_what_is_queued_and_may_be_repeated(tmp_path):
    sink = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
    sink.record(leaf(1))
    sink.close()
    sink.close()
    assert [line["serial"] for line in lines(tmp_path)] == ["1"]


def test_the_file_is_private_and_appended_to(tmp_path):
    """S70: 0600 also under umask 000."""
    before = os.umask(0)
    try:
        for _ in range(2):
            sink = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
            sink.record(BAN)
            sink.close()
    finally:
        os.umask(before)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert len(lines(tmp_path)) == 2


def test_a_planted_link_or_pipe_is_refused(tmp_path):
    """S71."""
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing/audit.jsonl"):
        with pytest.raises(ConfigError, match=r"audit\.file") as caught:
            AuditFile(tmp_path / name, lambda: NOW)
        assert str(tmp_path / name) in caught.value.public
    assert (tmp_path / "target").read_text() == "mine"


def test_a_caller_cannot_forge_a_line(sink, tmp_path):
    """S64: newlines, control characters and unicode separators are escaped."""
    sink.record(AgentChanged(change="ban", spiffe_id='x"\n{"event":"agent"}', actor="\u2028\x1b[31m"))
    raw = (tmp_path / "audit.jsonl").read_bytes()
    assert raw.count(b"\n") == 1
    assert b"\x1b" not in raw
    assert lines(tmp_path)[0]["actor"] == "\u2028\x1b[31m"


def test_a_full_disk_refuses_writes_of_administrators_and_counts_leaves(tmp_path, monkeypatch):
    """A16, R-disk: issuing goes on, health is degraded, the gap is written down afterwards."""
    sink = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
    write, full, tried = os.write, True, threading.Event()

    def fails(descriptor, data):
        if full:
            tried.set()
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(audit_output.os, "write", fails)
    for number in range(5):
        sink.record(leaf(number))
    assert tried.wait(5)
    with pytest.raises(Unavailable, match="nothing is changed"):
        sink.record(BAN)
    assert not sink.healthy
    full = False
    sink.record(BAN)
    assert sink.healthy
    sink.close()
    found = lines(tmp_path)
    lost = sum(line["lost"] for line in found if line["event"] == "audit_gap")
    kept = sum(line["event"] == "x509_svid" for line in found)
    assert lost + kept == 5
    assert found[-1]["event"] == "agent"


def test_the_queue_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_log, "MAX_QUEUE", 3)
    sink = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
    with sink._writing:  # the writer is stuck on a slow disk
        for number in range(10):
            sink.record(leaf(number))
    sink.record(BAN)
    sink.close()
    found = lines(tmp_path)
    lost = sum(line.get("lost", 0) for line in found)
    assert lost >= 6
    assert lost + sum(line["event"] == "x509_svid" for line in found) == 10


def test_a_rotated_file_is_opened_anew(sink, tmp_path):
    sink.record(BAN)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.1")
    sink.reopen()
    sink.record(BAN)
    assert len(lines(tmp_path)) == 1
    assert len((tmp_path / "audit.1").read_text().splitlines()) == 1


def test_standard_output_is_the_default(capfd):
    sink = AuditFile(None, lambda: NOW)
    sink.record(BAN)
    sink.reopen()
    sink.close()
    assert json.loads(capfd.readouterr().out)["event"] == "agent"


@given(st.lists(st.integers(0, 5_000_000), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_each_line_has_its_own_time_to_the_millisecond(tmp_path_factory, moments):
    """A16: whatever is kept of the second before, of a clock that goes back as well."""
    folder = tmp_path_factory.mktemp("times")
    times = [NOW + timedelta(microseconds=micros) for micros in moments]
    clock = iter([*times, NOW])
    sink = AuditFile(folder / "audit.jsonl", lambda: next(clock))
    try:
        for _ in times:
            sink.record(BAN)
    finally:
        sink.close()
    assert [line["time"] for line in lines(folder)] == [one.isoformat(timespec="milliseconds") for one in times]


def test_each_line_names_its_own_caller(sink, tmp_path, monkeypatch):
    """A16: of many connections in turn, more than are kept; lists of text are JSON."""
    monkeypatch.setattr(audit_log, "MAX_SHOWN", 4)
    lasting = [{"address": f"127.0.0.1:{number}", "as": "agent"} for number in range(3)]
    callers = [caller for number in range(20) for caller in ({"address": f"10.0.0.1:{number}"}, lasting[number % 3])]

    def record_all():
        for caller in callers:
            note_caller(caller)
            sink.record(TOKEN)

    copy_context().run(record_all)
    sink.close()
    assert [line["caller"] for line in lines(tmp_path)] == callers
    assert {tuple(line["audience"]) for line in lines(tmp_path)} == {('a"b', "\u00e9")}


class CountingEncoder(json.JSONEncoder):
    """How many documents it was given."""

    count = 0

    def encode(self, document):
        self.count += 1
        return super().encode(document)


def test_what_is_said_of_a_caller_is_put_together_once_for_thousands_in_turn(sink, tmp_path, monkeypatch):
    """A16: two thousand agents' connections, each issuing again and again."""
    monkeypatch.setattr(audit_log, "_JSON", encoder := CountingEncoder(ensure_ascii=True, separators=(",", ":")))
    callers = [{"address": f"10.0.0.1:{number}"} for number in range(2000)]

    def record_all():
        for caller in callers * 2:
            note_caller(caller)
            sink.record(leaf(1))

    copy_context().run(record_all)
    sink.close()
    assert encoder.count == 2000
    assert [line["caller"] for line in lines(tmp_path)] == callers * 2


@pytest.fixture
def unread(monkeypatch):
    """A pipe for standard output, and how to read it."""
    reader, writer = os.pipe()
    monkeypatch.setattr(audit_output, "STDOUT", writer)
    monkeypatch.setattr(audit_output, "STALL_SECONDS", 0.3)
    yield reader
    os.close(reader)
    os.close(writer)


def read_lines(descriptor, last):
    """What comes, up to the end of the line that holds these words."""
    data = b""
    while last not in data or not data.endswith(b"\n"):
        data += os.read(descriptor, 65_536)
    return [json.loads(line) for line in data.splitlines()]


def test_standard_output_that_is_a_file_others_wrote_to_is_written_to_and_not_read(tmp_path, monkeypatch):
    """`run > server.log 2>&1`: the shell opens it for writing only, and the log's lines stand in it already."""
    path = tmp_path / "server.log"
    path.write_text("cut short")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(audit_output, "STDOUT", descriptor)
    sink = AuditFile(None, lambda: NOW)
    sink.record(BAN)
    sink.close()
    os.close(descriptor)
    assert path.read_text().startswith('cut short{"time":')


def test_nobody_reads_standard_output(unread):
    """A16: leaves go on and wait, administrators are refused and not held up, and nothing is lost or told twice."""
    sink = AuditFile(None, lambda: NOW)
    for number in range(2_000):
        sink.record(leaf(number))
    with pytest.raises(Unavailable, match="start its reader again"):
        sink.record(BAN)
    assert not sink.healthy
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable):
            sink.record(BAN)
    assert time.monotonic() - started < 20 * 0.3, "it waited again, though nothing was read"
    found = []
    reading = threading.Thread(target=lambda: found.extend(read_lines(unread, b'"serial":"1999"')))
    reading.start()
    reading.join(20)
    sink.record(replace(BAN, actor="afterwards"))
    sink.close()
    assert [line["serial"] for line in found] == [str(number) for number in range(2_000)]
    assert read_lines(unread, b"afterwards")[-1]["actor"] == "afterwards"
    assert sink.healthy


class Noting(AuditOutput):
    """How many lines it was given, each time."""

    def __init__(self, path):
        super().__init__(path)
        self.given = []

    def append(self, data):
        self.given.append(data.count(b"\n"))
        super().append(data)


def test_while_nobody_reads_little_is_tried_again(unread, monkeypatch):
    """A16: the writer asks fifty times a second whether there is room; the whole queue would be copied each time."""
    monkeypatch.setattr(audit_log, "AuditOutput", Noting)
    monkeypatch.setattr(audit_log, "WRITTEN_TOGETHER", 100)
    sink = AuditFile(None, lambda: NOW)
    for number in range(2_000):
        sink.record(leaf(number))
    with pytest.raises(Unavailable, match="start its reader again"):
        sink.record(BAN)
    found = []
    reading = threading.Thread(target=lambda: found.extend(read_lines(unread, b'"serial":"1999"')))
    reading.start()
    reading.join(20)
    sink.close()
    assert [line["serial"] for line in found] == [str(number) for number in range(2_000)]
    assert max(sink._output.given) == 100


def test_a_reader_that_is_gone_is_an_error_not_a_signal(unread, monkeypatch):
    """The other end of the pipe is closed: the lines are counted as lost."""
    reader, writer = os.pipe()
    monkeypatch.setattr(audit_output, "STDOUT", writer)
    os.close(reader)
    sink = AuditFile(None, lambda: NOW)
    with pytest.raises(Unavailable):
        sink.record(BAN)
    sink.record(leaf(1))
    sink.close()
    assert sink.lost == 1
    os.close(writer)


def test_closing_does_not_wait_for_a_reader(unread):
    sink = AuditFile(None, lambda: NOW)
    for number in range(2_000):
        sink.record(leaf(number))
    sink.close()
    assert not sink._writer.is_alive()
    assert 0 < sink.lost < 2_000


LINES = [f"line number {number}\n".encode() for number in range(3)]


@pytest.fixture
def filling(monkeypatch):
    """A disk that has room for so many bytes, until it is given more."""
    write, left = os.write, [1 << 20]

    def some(descriptor, data):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        written = write(descriptor, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(audit_output.os, "write", some)
    return left


@pytest.mark.parametrize("again", [0, 3, 100])
@pytest.mark.parametrize("room", range(0, 42, 5))
def test_a_line_that_was_cut_short_is_ended_and_not_written_again(tmp_path, filling, room, again):
    """R-disk: a disk that fills up at each place, again while the rest is written, and has room in the end."""
    output, waiting = AuditOutput(tmp_path / "audit.jsonl"), list(LINES)
    for filling[0] in (room, again, 1 << 20):
        with contextlib.suppress(CutShort):
            try:
                output.append(b"".join(waiting))
                waiting = []
            except CutShort as cut:
                waiting = waiting[cut.lines :]
                raise
    output.close()
    assert (tmp_path / "audit.jsonl").read_bytes() == b"".join(LINES)


def test_a_gap_whose_line_was_cut_short_is_told_once(tmp_path, filling):
    """A16, never losing count: the line is ended when there is room, and says it already."""
    sink = AuditFile(tmp_path / "audit.jsonl", lambda: NOW)
    filling[0] = 0
    for number in range(3):
        sink.record(leaf(number))
    deadline = time.monotonic() + 20
    while sink.lost < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for filling[0] in (0, 10):
        with pytest.raises(Unavailable):
            sink.record(BAN)
    filling[0] = 1 << 20
    sink.record(BAN)
    sink.close()
    assert [line.get("lost", line["event"]) for line in lines(tmp_path)] == [3, "agent"]
    assert sink.lost == 0


def test_a_line_that_was_cut_short_stands_whole_in_the_file_after_a_rotation(tmp_path, filling):
    """Of the old file the end is missing, and the next process that writes there begins a line of its own."""
    path = tmp_path / "audit.jsonl"
    output = AuditOutput(path)
    filling[0] = 20
    with pytest.raises(CutShort):
        output.append(b"".join(LINES))
    path.rename(tmp_path / "audit.1")
    filling[0] = 1 << 20
    output.reopen()
    output.append(LINES[2])
    output.close()
    assert path.read_bytes() == LINES[1] + LINES[2]
    next_one = AuditOutput(tmp_path / "audit.1")
    next_one.append(LINES[2])
    next_one.close()
    assert (tmp_path / "audit.1").read_bytes().splitlines() == [b"line number 0", b"line n", b"line number 2"]


def test_standard_output_may_be_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    """As a shell's `>>` opens it."""
    (tmp_path / "audit.jsonl").write_text("somebody else's words\n")
    descriptor = os.open(tmp_path / "audit.jsonl", os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(audit_output, "STDOUT", descriptor)
    sink = AuditFile(None, lambda: NOW)
    sink.record(BAN)
    sink.close()
    os.close(descriptor)
    assert json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[1])["event"] == "agent"


def test_a_reader_that_drips_gets_no_more_time_than_one_that_stands_still(unread):
    """A16: a portion for each read, always in time, must not hold the server up for each of them."""
    output, done = AuditOutput(None), threading.Event()

    def drip():
        while not done.wait(0.02):
            if select.select([unread], [], [], 0)[0]:
                os.read(unread, 4096)

    dripping = threading.Thread(target=drip)
    started = time.monotonic()
    dripping.start()
    with pytest.raises(CutShort) as cut:
        for _ in range(3):
            output.append(b"a line of the log\n" * 500_000)
    took = time.monotonic() - started
    done.set()
    dripping.join(20)
    assert cut.value.stalled
    assert took < 20  # a portion each 20 ms would be three minutes
