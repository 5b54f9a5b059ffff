"""A network between a server and its database that can be cut, silenced, or cut exactly at a COMMIT."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import make_url

CHUNK = 65536
LONGEST = 30.0
Moment = Literal["before", "after", "late"]


class _Pair:
    """One connection: the client's end, the database's end, and what it was used for."""

    def __init__(self, client: socket.socket, database: socket.socket) -> None:
        self.client, self.database = client, database
        self.writes = False
        self.swallow = threading.Event()
        """The database's next answer is lost, and the connection with it."""

    def cut(self) -> None:
        for end in (self.client, self.database):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class DatabaseProxy:
    """Listens on 127.0.0.1 and passes bytes on to the Unix socket of a database, as long as a test wants."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._kind = parsed.get_backend_name()
        self.upstream = Path(str(parsed.query["host" if self._kind == "postgresql" else "unix_socket"]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parsed.set(host="127.0.0.1", port=port, query={}).render_as_string()
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._forbidden = b""
        self._at_commit: Moment | None = None
        self._delivered = threading.Event()
        self.cuts = 0
        """So many connections were cut at a COMMIT or at what is forbidden."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """End every connection and let no new one through."""
        self._refusing = True
        for pair in self._all():
            pair.cut()

    def mend(self) -> None:
        self._refusing, self._forbidden = False, b""
        self._flowing.set()

    def silence(self) -> None:
        """Connections stay, but nothing arrives any more: half-open."""
        self._flowing.clear()

    def forbid(self, word: bytes) -> None:
        """Cut every connection whose client says `word`, at that moment; those that said it before are cut now."""
        self._forbidden = word
        for pair in self._all():
            if not pair.writes:
                pair.cut()

    def cut_at_commit(self, moment: Moment) -> None:
        """Cut the writer's connection at its next COMMIT.

        Before the database hears it, after that but before it can answer, or so that it hears it late: with `deliver`.
        """
        self._delivered.clear()
        self._at_commit = moment

    def deliver(self) -> None:
        """The database hears the COMMIT that was held back."""
        self._delivered.set()

    def close(self) -> None:
        self.cut()
        self._flowing.set()
        self._delivered.set()
        self._listener.close()

    def _all(self) -> list[_Pair]:
        with self._lock:
            return list(self._pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                database = socket.socket(socket.AF_UNIX)
                try:
                    database.connect(self._path())
                except OSError:
                    database.close()
                    raise
            except OSError:
                client.close()
                continue
            pair = _Pair(client, database)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._serve, args=(pair,), name="proxy-pair", daemon=True).start()

    def _path(self) -> str:
        return str(self.upstream / ".s.PGSQL.5432" if self._kind == "postgresql" else self.upstream)

    def _serve(self, pair: _Pair) -> None:
        back = threading.Thread(target=self._pump_back, args=(pair,), name="proxy-back", daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            while data := pair.client.recv(CHUNK):
                self._flowing.wait()
                if not self._passes(pair, data):
                    break
                pair.database.sendall(data)
        pair.cut()
        back.join()
        pair.client.close()
        pair.database.close()
        with self._lock:
            self._pairs.discard(pair)

    def _passes(self, pair: _Pair, data: bytes) -> bool:
        """False if the connection ends here, before the database hears `data`."""
        pair.writes = pair.writes or b"FOR UPDATE" in data
        if self._forbidden and self._forbidden in data:
            self.cuts += 1
            return False
        if self._at_commit is not None and pair.writes and data.rstrip(b"\0").endswith(b"COMMIT"):
            moment, self._at_commit = self._at_commit, None
            self.cuts += 1
            if moment == "before":
                return False
            if moment == "late":
                pair.client.shutdown(socket.SHUT_RDWR)
                self._delivered.wait(LONGEST)
                pair.database.sendall(data)
                return False
            pair.swallow.set()
        return True

    def _pump_back(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.database.recv(CHUNK):
                self._flowing.wait()
                if pair.swallow.is_set():
                    break
                pair.client.sendall(data)
        pair.cut()
