"""Logging for the daemons: one line per event, written by a thread of its own, never a secret in it.

`setup_logging` puts one handler on the root logger. The caller's thread turns a record into a finished line (so that
nothing can change meanwhile) and puts it into a bounded queue; a writer thread writes it to stderr or to a file. When
the queue is full or the disk refuses, lines are dropped and counted, and a line says how many once writing works
again: logging never stops issuing.

A line is JSON with SPIRE's `time`, `level`, `subsystem_name`, `msg` and, when there is something to say, `request_id`
(the id of the request being served), `facts` (from `extra={"facts": {...}}` and from the `facts` of an `IdentityError`)
and `trace`; if asked for, `file` and `func`, where in the program it was written. Every character outside printable
ASCII is escaped, so that no caller-controlled text can forge a line, colour a terminal or reorder what is shown. The
"text" style is for people: `HH:MM:SS level message key=value`.

What looks like a PEM private key, a password in a URL, or stands under a key named token, key, secret or password is
replaced before it is queued.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import re
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from spiffe_core.errors import ConfigError, CorruptState, IdentityError
from spiffe_core.runtime.request_id import current_request_id

MAX_VALUE_CHARS = 2_048
MAX_TRACE_CHARS = 16_384
MAX_ITEMS = 64
QUEUE_LINES = 8_192
_MAX_DEPTH = 3
_STOP_SECONDS = 5.0

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
STYLES = ("json", "text")
TURNABLE = {
    "panic": logging.CRITICAL + 10,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG // 2,
}
"""The levels a running process can be turned to, from the quietest to the noisiest: SPIRE's. Nothing is logged above
"fatal" or below "debug"."""

log = logging.getLogger(__name__)

_REDACTED = "[redacted]"
_PEM_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,32}PRIVATE KEY-----|\Z)", re.DOTALL
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]{0,256}:)[^@\s/]{1,256}@")
_SECRET_NAME = re.compile(r"(?:^|[_\-.])(?:token|key|secret|password|passwd|passphrase)$|^joinToken$", re.IGNORECASE)


class LogOutput:
    """A running log: `close()` writes what is queued and detaches it, `reopen()` follows a rotated file (SIGUSR2)."""

    def __init__(self, sink: _Sink, handler: _QueueingHandler, listener: _Listener) -> None:
        self._sink, self._handler, self._listener = sink, handler, listener
        self._closed = False

    @property
    def lost(self) -> int:
        """Lines dropped so far because the queue was full or the output refused them."""
        return self._handler.dropped + self._sink.lost

    def reopen(self) -> None:
        """Open the log file anew, after a rotation moved it away. Without a file it does nothing.

        Made for a signal handler, so it never raises: if the path cannot be opened the old file stays in use and says
        so.
        """
        try:
            self._sink.reopen()
        except IdentityError as error:
            log.error("the old log file stays in use: %s", error.public)  # noqa: TRY400  # the message says it all

    def close(self) -> None:
        """Write what is queued, end the writer thread, release the file. May be called twice."""
        if self._closed:
            return
        self._closed = True
        logging.getLogger().removeHandler(self._handler)
        self._listener.stop()
        self._sink.close()
        self._handler.close()


def setup_logging(
    level: str,
    file: Path | str | None = None,
    stream: TextIO | None = None,
    *,
    style: str = "json",
    located: bool = False,
) -> LogOutput:
    """Send the root logger's records of `level` and above to `file`, or to `stream` (stderr when both are None).

    With `located` each line says which line of the program wrote it.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log_level: {level!r} is not one of debug, info, warn, error", field="log_level")
    if style not in STYLES:
        raise ConfigError(f"log_format: {style!r} is not one of json, text", field="log_format")
    render = partial(_json_line if style == "json" else _text_line, located=located)
    lines: queue.Queue[object] = queue.Queue(QUEUE_LINES)
    sink = _Sink(Path(file) if file else None, stream or sys.stderr)
    handler = _QueueingHandler(lines, render)
    listener = _Listener(lines, sink, handler)
    listener.start()
    root = logging.getLogger()
    root.setLevel(LEVELS[level.lower()])
    root.addHandler(handler)
    return LogOutput(sink, handler, listener)


class LogLevel:
    """The level of the process's log while it runs: turned by an administrator, and back to that of its launch."""

    def __init__(self, launch: str, logger: logging.Logger | None = None) -> None:
        self.launch = "warn" if launch.lower() == "warning" else launch.lower()
        self._logger = logger or logging.getLogger()

    @property
    def current(self) -> str:
        """The level in force: one of TURNABLE."""
        quietest_first = sorted(TURNABLE.items(), key=lambda item: -item[1])
        return next((name for name, number in quietest_first if number <= self._logger.level), "trace")

    def turn(self, name: str) -> None:
        """Log what is at least as grave as `name`, one of TURNABLE."""
        self._logger.setLevel(TURNABLE[name])


class _QueueingHandler(logging.handlers.QueueHandler):
    """Renders in the caller's thread and never waits for the writer."""

    def __init__(self, lines: queue.Queue[object], render: Callable[[logging.LogRecord], str]) -> None:
        super().__init__(lines)
        self._render = render
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> str:
        """The finished line instead of a record."""
        return self._render(record)

    def enqueue(self, record: object) -> None:
        """Queue the line, or count it when there is no room."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002  # the signature is logging's
        """A record that cannot be rendered (a bad format string) is counted; nothing is printed around the log."""
        self.dropped += 1


class _Listener(logging.handlers.QueueListener):
    """The writer thread."""

    def __init__(self, lines: queue.Queue[object], sink: _Sink, handler: _QueueingHandler) -> None:
        super().__init__(lines)
        self._sink, self._handler, self._reported = sink, handler, 0

    def handle(self, record: object) -> None:
        """Write one line; say first how many were dropped since the last one."""
        dropped = self._handler.dropped + self._sink.lost
        if dropped != self._reported and self._sink.write(_loss_line(self._handler, dropped - self._reported)):
            self._reported = dropped
        self._sink.write(str(record))

    def enqueue_sentinel(self) -> None:
        """Waits for room: a full queue must not keep the thread from being told to stop."""
        try:
            self.queue.put(None, timeout=_STOP_SECONDS)  # type: ignore[attr-defined]  # typeshed's protocol lacks put
        except queue.Full:
            return

    def stop(self) -> None:
        """End the thread, waiting a bounded time for what is queued (the output may hang)."""
        self.enqueue_sentinel()
        thread: threading.Thread | None = self._thread
        if thread is not None:
            thread.join(_STOP_SECONDS)
        self._thread = None


class _Sink:
    """Where lines go. A refused write is counted, never raised."""

    def __init__(self, path: Path | None, stream: TextIO) -> None:
        self._path, self._stream = path, stream
        self._lock = threading.Lock()
        self.lost = 0
        self._file: int | None = _open_log(path) if path is not None else None

    def write(self, line: str) -> bool:
        """Write one line whole; False when it was lost."""
        with self._lock:
            try:
                if self._path is None:
                    self._stream.write(line + "\n")
                    self._stream.flush()
                else:
                    self._write_file(line.encode("ascii", "backslashreplace") + b"\n")
            except (OSError, ValueError):  # ValueError: the stream was closed under us
                self.lost += 1
                return False
        return True

    def reopen(self) -> None:
        """Open the path again; when that fails the old file stays in use."""
        if self._path is None:
            return
        fresh = _open_log(self._path)
        with self._lock:
            old, self._file = self._file, fresh
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Release the file; the stream belongs to the caller."""
        with self._lock:
            old, self._file = self._file, None
        if old is not None:
            os.close(old)

    def _write_file(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError("closed")
        done = os.write(self._file, data)
        while done < len(data):  # a disk filling up takes a part first
            done += os.write(self._file, data[done:])


def _open_log(path: Path) -> int:
    """Open for appending, 0600 when new. A link or another owner's file is refused: writing there would be a gift."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"log_file {path} cannot be opened: {error.strerror}; check path and owner", path=str(path)
        ) from error
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        os.close(file)
        raise CorruptState(f"log_file {path} is not a regular file of ours with one name; remove it", path=str(path))
    return file


def _json_line(record: logging.LogRecord, *, located: bool) -> str:
    event: dict[str, object] = {
        "time": _instant(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "subsystem_name": record.name,
        "msg": _clean(record.getMessage(), MAX_VALUE_CHARS),
    }
    if request := current_request_id():
        event["request_id"] = request
    if facts := _facts(record):
        event["facts"] = facts
    if trace := _trace(record):
        event["trace"] = trace
    if located:
        event["file"], event["func"] = _location(record)
    return json.dumps(event, ensure_ascii=True, separators=(",", ":"), default=str)


def _text_line(record: logging.LogRecord, *, located: bool) -> str:
    parts = [
        f"{_instant(record):%H:%M:%S}",
        f"{record.levelname.lower():<7}",
        _visible(_clean(record.getMessage(), MAX_VALUE_CHARS)),
    ]
    if request := current_request_id():
        parts.append(f"request_id={request}")
    for name, value in _facts(record).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
        text = _visible(text)
        parts.append(f"{_visible(name)}={json.dumps(text, ensure_ascii=False) if ' ' in text or not text else text}")
    if located:
        parts.append("file={} func={}".format(*_location(record)))
    trace = "".join("\n    " + _visible(row) for row in _trace(record).splitlines())
    return " ".join(parts) + trace


def _loss_line(handler: _QueueingHandler, count: int) -> str:
    facts = {"facts": {"lost": count}}
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "log lines were lost", (), None)
    record.__dict__.update(facts)
    return handler.prepare(record)


def _location(record: logging.LogRecord) -> tuple[str, str]:
    """Where in the program a line was written, under SPIRE's names: `file` with the line's number, and `func`."""
    return f"{record.pathname}:{record.lineno}", record.funcName or ""


def _instant(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = {}
    error = record.exc_info[1] if record.exc_info else None
    for source in (error.facts if isinstance(error, IdentityError) else None, getattr(record, "facts", None)):
        if isinstance(source, Mapping):
            found.update(source)
    cleaned = _scrub(found, 0)
    return cleaned if isinstance(cleaned, dict) else {}


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    text = "".join(traceback.format_exception(record.exc_info[1], limit=-20))
    return _clean(text, MAX_TRACE_CHARS)


def _scrub(value: object, depth: int) -> object:
    """A JSON value without secrets, of bounded size. Bytes are only counted: they may be key material."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        items = list(value.items())[:MAX_ITEMS]
        return {
            _clean(str(name), 128): _REDACTED if _SECRET_NAME.search(str(name)) else _scrub(inner, depth + 1)
            for name, inner in items
        }
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [_scrub(inner, depth + 1) for inner in list(value)[:MAX_ITEMS]]
    return _clean(str(value), MAX_VALUE_CHARS)


def _clean(text: str, limit: int) -> str:
    if "PRIVATE KEY-----" in text:
        text = _PEM_KEY.sub("[private key redacted]", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\1[redacted]@", text)
    return text if len(text) <= limit else f"{text[:limit]}...[{len(text) - limit} more]"


def _visible(text: str) -> str:
    """Every character that is not printable ASCII as an escape."""
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode("ascii")
