"""The audit sink: an append-only file or standard output, one JSON line for each event (architecture A16).

Administrative and authority events are written before `record` returns, so the line stands before the effect. Leaf
events go through a bounded queue to a writer thread. If the sink fails, or nobody reads standard output, leaf issuance
goes on: what was lost is counted, `healthy` turns false, and the gap is written down as soon as the sink works again.
An administrative event that cannot be written is refused as Unavailable; with `strict` the same is true of leaves.

Each line says when it was, in which request, and who called from where.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from identity_server.audit_output import AuditOutput, CutShort
from identity_server.domain.audit import AuditEvent, members_of
from spiffe_core.errors import Unavailable
from spiffe_core.runtime.request_id import current_caller_facts, current_request_id

MAX_QUEUE = 50_000
MAX_SHOWN = 8192
"""Callers whose facts are kept as JSON, some 600 bytes each: as many as connections are let in. The oldest goes."""
CLOSE_SECONDS = 2.0
WRITTEN_TOGETHER = 1000
"""Lines put together for one write. While nobody reads it is tried in vain: all of the queue took half a core."""
GATHER_SECONDS = 0.02
"""The writer waits so long for more lines before it writes: one system call for many, and few turns for its thread."""
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
        self._output = AuditOutput(path)
        self._writing = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._counting = threading.Lock()
        self._more = threading.Event()
        self._closing = threading.Event()
        self._lost = 0
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
                self._output.append(lines)
            except OSError as error:
                self.healthy = False
                what = (
                    "nobody reads it: start its reader again" if _stalled(error) else "make room or fix its permissions"
                )
                raise Unavailable(
                    f"the audit log cannot be written, so nothing is changed or issued; {what}",
                    path=str(self._path),
                    error=str(error),
                ) from None

    @property
    def lost(self) -> int:
        """How many lines wait to be reported as lost."""
        return self._lost

    def reopen(self) -> None:
        """Open the file anew, after it was renamed by a log rotator. Standard output stays."""
        with self._writing:
            self._output.reopen()

    def close(self) -> None:
        """Write what is queued and stop the writer. May be called twice."""
        self._closing.set()
        self._more.set()
        self._writer.join(timeout=CLOSE_SECONDS)
        with self._writing:
            self._output.close()

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._queue):
            self._more.wait()
            self._closing.wait(GATHER_SECONDS)
            self._more.clear()
            with self._writing:
                try:
                    self._drain()
                except OSError as error:
                    self.healthy = False
                    if _stalled(error) and not self._closing.is_set():
                        self._more.set()  # they wait for the reader, as many as the queue holds
                        continue
                    lost = len(self._queue)
                    for _ in range(lost):
                        self._queue.popleft()
                    self._lose(lost)

    def _lose(self, count: int) -> None:
        with self._counting:
            self._lost += count
            self.healthy = False

    def _drain(self) -> None:
        """Write what is queued now; first the gap, if there was one. Called with `_writing` held."""
        self._tell_gap()
        waiting = len(self._queue)
        while True:  # once at least: of a line that was cut short the end is still to be written
            lines = [self._queue.popleft() for _ in range(min(waiting, WRITTEN_TOGETHER))]
            try:
                self._output.append(b"".join(lines))
            except CutShort as cut:
                self._queue.extendleft(reversed(lines[cut.lines :]))
                raise
            waiting -= len(lines)
            if not waiting:
                break
        self.healthy = self._lost == 0

    def _tell_gap(self) -> None:
        with self._counting:
            lost = self._lost
        if not lost:
            return
        begin, end = self._stamp()
        try:
            self._output.append(f'{begin}"event":"audit_gap","lost":{lost}{end}'.encode())
        except CutShort as cut:
            if not cut.lines:
                lost = 0
            raise
        finally:
            with self._counting:
                self._lost -= lost

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
        now, known = self._now(), self._second
        since = now - known[0]
        if not _NO_TIME <= since < _A_SECOND:
            known = self._second = _second_of(now)
            since = now - known[0]
        return f"{known[1]}.{since.microseconds // 1000:03}{known[2]}"


def _stalled(error: OSError) -> bool:
    return isinstance(error, CutShort) and error.stalled


def _second_of(now: datetime) -> tuple[datetime, str, str]:
    """The second that a moment lies in, and what is written before and after its fraction."""
    second = now.replace(microsecond=0)
    text = second.isoformat()
    return second, text[:_TO_SECONDS], text[_TO_SECONDS:]
