"""The audit sink: an append-only file or standard output, one JSON line for each event (architecture A16).

Administrative and authority events are written before `record` returns, so the line stands before the effect. Leaf
events go through a bounded queue to a writer thread. If the sink fails, leaf issuance goes on: what was lost is
counted, `healthy` turns false, and the gap is written down as soon as the sink works again. An administrative event
that cannot be written is refused as Unavailable; with `strict` the same is true of leaves.

Each line says when it was, in which request, and who called from where.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from identity_server.domain.audit import AuditEvent, members_of
from spiffe_core.errors import ConfigError, Unavailable
from spiffe_core.runtime.request_id import current_caller_facts, current_request_id

MAX_QUEUE = 50_000
MAX_SHOWN = 8192
"""Callers whose facts are kept as JSON, some 600 bytes each: as many as connections are let in; the oldest goes first."""
CLOSE_SECONDS = 2.0
GATHER_SECONDS = 0.02
"""The writer waits so long for more lines before it writes: one system call for many, and few turns for its thread."""
_STDOUT = 1
_TO_SECONDS = len("YYYY-MM-DDTHH:MM:SS")
_A_SECOND: Final = timedelta(seconds=1)
_NO_TIME: Final = timedelta()
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_JSON = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


class AuditFile:
    """Appends events to `path`, or to standard output if `path` is None. Any thread may record."""

    def __init__(self, path: Path | None, now: Callable[[], datetime], *, strict: bool = False) -> None:
        self._path = path
        self._now = now
        self._strict = strict
        self._shown: OrderedDict[int, tuple[Mapping[str, object], str]] = OrderedDict()
        """Callers as JSON: the facts of a connection are one object, and stand in every line about one of its calls."""
        self._second = _second_of(_NEVER)
        self._descriptor = _STDOUT if path is None else _open(path)
        self._writing = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._counting = threading.Lock()
        self._more = threading.Event()
        self._closing = threading.Event()
        self._lost = 0
        self._torn = False
        self.healthy = True
        self._writer = threading.Thread(target=self._run, name="audit", daemon=True)
        self._writer.start()

    def record(self, *events: AuditEvent) -> None:
        """Write or queue a line for each of these events: all that must stand before their effect in one write.

        Raises:
            Unavailable: one that must stand before its effect could not be written.
        """
        begin, end = self._stamp()
        now: list[bytes] = []
        for event in events:
            line = f"{begin}{members_of(event)}{end}".encode()
            if event.precedes or (self._strict and event.issues):
                now.append(line)
            elif len(self._queue) >= MAX_QUEUE:
                self._lose(1)
            else:
                self._queue.append(line)
        if self._queue and not self._more.is_set():
            self._more.set()
        if now:
            self._write_now(b"".join(now))

    def _write_now(self, lines: bytes) -> None:
        with self._writing:
            try:
                self._drain()
                self._append(lines)
            except OSError as error:
                self.healthy = False
                raise Unavailable(
                    "the audit log cannot be written, so nothing is changed or issued; make room or fix its permissions",
                    path=str(self._path),
                    error=str(error),
                ) from None

    @property
    def lost(self) -> int:
        """How many lines wait to be reported as lost."""
        return self._lost

    def reopen(self) -> None:
        """Open the file anew, after it was renamed by a log rotator. Standard output stays."""
        if self._path is None:
            return
        fresh = _open(self._path)
        with self._writing:
            old, self._descriptor = self._descriptor, fresh
        os.close(old)

    def close(self) -> None:
        """Write what is queued and stop the writer. May be called twice."""
        self._closing.set()
        self._more.set()
        self._writer.join(timeout=CLOSE_SECONDS)
        if self._path is not None and self._descriptor >= 0:
            with self._writing:
                os.close(self._descriptor)
                self._descriptor = -1

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._queue):
            self._more.wait()
            self._closing.wait(GATHER_SECONDS)
            self._more.clear()
            with self._writing:
                try:
                    self._drain()
                except OSError:
                    lost = len(self._queue)
                    for _ in range(lost):
                        self._queue.popleft()
                    self._lose(lost)

    def _lose(self, count: int) -> None:
        with self._counting:
            self._lost += count
            self.healthy = False

    def _drain(self) -> None:
        """Write the queue in one go; first the gap, if there was one. Called with `_writing` held."""
        with self._counting:
            lost = self._lost
        if lost:
            begin, end = self._stamp()
            self._append(f'{begin}"event":"audit_gap","lost":{lost}{end}'.encode())
            with self._counting:
                self._lost -= lost
        lines = [self._queue.popleft() for _ in range(len(self._queue))]
        try:
            self._append(b"".join(lines))
        except OSError:
            self._queue.extendleft(reversed(lines))
            raise
        self.healthy = self._lost == 0

    def _append(self, data: bytes) -> None:
        """Write all of it. A line that was cut short by a full disk is ended before the next one begins."""
        view = memoryview(b"\n" + data if self._torn else data)
        while view:
            written = os.write(self._descriptor, view)
            self._torn = written < len(view)
            view = view[written:]

    def _stamp(self) -> tuple[str, str]:
        """What the lines of this moment and this call have in common: how each begins, and how each ends."""
        begin = f'{{"time":"{self._time()}",'
        request = current_request_id()
        end = f',"request_id":"{request}"' if request else ""
        facts = current_caller_facts()
        if facts is None:
            return begin, f"{end}}}\n"
        shown = self._shown.get(id(facts))
        if shown is None or shown[0] is not facts:
            if len(self._shown) >= MAX_SHOWN:
                self._shown.popitem(last=False)
            shown = self._shown[id(facts)] = (facts, _JSON.encode(facts))
        return begin, f'{end},"caller":{shown[1]}}}\n'

    def _time(self) -> str:
        """This moment in ISO 8601, to the millisecond; what one second has in common is written once in it."""
        now = self._now()
        since = now - self._second[0]
        if not _NO_TIME <= since < _A_SECOND:
            self._second = _second_of(now)
            since = now - self._second[0]
        _, before, after = self._second
        return f"{before}.{since.microseconds // 1000:03}{after}"


def _second_of(now: datetime) -> tuple[datetime, str, str]:
    """The second that a moment lies in, and what is written before and after its fraction."""
    second = now.replace(microsecond=0)
    text = second.isoformat()
    return second, text[:_TO_SECONDS], text[_TO_SECONDS:]


def _open(path: Path) -> int:
    """Open for appending, mode 0600; a symbolic link or something that is not a file is refused."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"audit.file: {path}: cannot be opened for appending: {error.strerror}", field="audit.file"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"audit.file: {path}: must be a regular file", field="audit.file")
    return descriptor
