"""The measurements: `make bench`, or `make bench BENCH_ARGS="b2 b4"`.

Each row starts real processes on loopback, is bounded in count and time, and verifies what it was given. Absolute
times depend on the machine and on who else uses it: compare figures of one run, and CPU time rather than rates; the
row `floor` says what OpenSSL alone takes for the two signatures of an X.509-SVID meanwhile.

    b1    cold start: both daemons exec'd to the first SVID at a workload (the node has joined before)
    b2    X.509-SVIDs issued by BatchNewX509SVID, 500 requests a call, 1 and 4 callers; without and with a signing worker
    b3    JWT-SVIDs minted by NewJWTSVID, 32 in flight
    b4    fan-out: a new bundle reaches 1,000 open streams (--streams: another number)
    b5    JWT-SVIDs out of the agent's cache by FetchJWTSVID, 64 in flight on 8 connections
    b6    nodes attested by join token, a new TLS connection each
    b7    a change in an open workload stream: created, changed, deleted, with 1,000 agents on push streams
    b7pg  the same over three servers on a private PostgreSQL, changed on another one than the agent's; b7my: on MariaDB
    b8    100,000 entries: created (b9, on SQLite), handed out to one agent, and the memory they take (b11a)
    b10   10,000 SVIDs renewed at once because their authority is tainted, and what tokens cost in latency meanwhile
    b8all what agents cost that wait for changes: 1,000 on push streams, at rest and told a change each; 100 that poll
    b9pg  b8 on a private PostgreSQL
    b12   the bundle endpoint beside bare uvicorn that serves the same bytes, on kept and on new connections; the bundles
          of 200 trust domains fetched, with and without peers that never answer
    b11b  resident memory of server and agent, idle and with 1,000 open streams
    idle  CPU time of an agent with 500 SVIDs and 500 streams at rest

`--spire DIRECTORY` runs b2, b3, b6, b7, b8 and b8all against the SPIRE in that directory as well (MUNIMENT_SPIRE_BIN is
the default): b7 on a server and an agent with their default intervals of 5 s, and with 1 s. `--smoke` makes all
counts tiny and judges nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import uvloop

from benchmarks.agent_rows import b5, b10, idle
from benchmarks.endpoint_rows import b12
from benchmarks.federation_rows import b12_federation
from benchmarks.fleet_rows import (
    POLL_SECONDS,
    POLLING,
    ROUNDS,
    on_spire,
    over_servers,
    polled,
    pushed_to_all,
    spire_or_none,
)
from benchmarks.measure import Row, floor, show
from benchmarks.propagation_rows import b7
from benchmarks.server_rows import SERVER_ROWS, Sizes
from benchmarks.targets import Muniment, Spire, Target
from benchmarks.workload_rows import b1, crowd_async

ROWS = ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "b7pg", "b7my", "b8", "b8all", "b9pg", "b10", "b11b", "b12", "idle")
STORM, RESTING, REST_SECONDS = 10_000, 500, 30.0
SMOKE = Sizes(repeats=1, seconds=0.1, batch=20, entries=600, attestations=4, bars=False)


@contextmanager
def postgresql() -> Iterator[str]:
    """A private PostgreSQL; the URL of an empty database in it."""
    from tests.doubles.database_servers import PostgreSQL

    if PostgreSQL.missing():
        raise SystemExit(f"b9pg: {PostgreSQL.missing()}")
    server = PostgreSQL()
    try:
        yield server.new_database("bench")
    finally:
        server.close()


def measured(make: Callable[[], Target], row: str, sizes: Sizes) -> list[Row]:
    """One row of one server, started for it."""
    target = make()
    try:
        target.start_server()
        return uvloop.run(SERVER_ROWS[row](target, sizes))
    finally:
        target.close()


def resting(target: Target, sizes: Sizes) -> list[Row]:
    """Agents that poll one server, started for it."""
    try:
        target.start_server()
        return uvloop.run(
            polled(target, POLLING, ROUNDS, 10, POLL_SECONDS) if sizes.bars else polled(target, 2, 1, 10, 0.5)
        )
    finally:
        target.close()


def run(wanted: set[str], sizes: Sizes, *, spire: Path | None, streams: int) -> list[Row]:
    rows = [floor()]
    if "b1" in wanted:
        rows += b1(sizes.repeats)
    for row in ("b2", "b3", "b6", "b8"):
        if row not in wanted:
            continue
        rows += measured(Muniment, row, sizes)
        if row == "b2":
            rows += measured(lambda: Muniment(workers=1), row, sizes)
        if spire is not None:
            rows += measured(lambda: Spire(spire), row, sizes)
        rows.append(floor())
    if "b7" in wanted:
        rows += uvloop.run(b7(streams, 20 * sizes.repeats if sizes.bars else 2, bars=sizes.bars))
        if spire is not None:
            for interval in ("", "1s"):
                rows += uvloop.run(on_spire(spire, 2 * sizes.repeats if sizes.bars else 1, interval))
    for row, kind in (("b7pg", "postgresql"), ("b7my", "mariadb")):
        if row in wanted:
            changes = 20 * sizes.repeats if sizes.bars else 2
            rows += uvloop.run(over_servers(kind, streams, changes, bars=sizes.bars))
    if "b8all" in wanted:
        rows += uvloop.run(
            pushed_to_all(streams, 4 * sizes.repeats if sizes.bars else 1, REST_SECONDS / 3 if sizes.bars else 0.2)
        )
        for target in spire_or_none(spire):
            rows += resting(target, sizes)
    if "b9pg" in wanted:
        with postgresql() as url:
            rows += measured(lambda: Muniment(database=url), "b8", sizes)
    if wanted & {"b4", "b11b"}:
        rows += uvloop.run(crowd_async(streams, wanted, sizes.repeats))
    if "b5" in wanted:
        rows += uvloop.run(b5(sizes.repeats, sizes.seconds))
    if "b10" in wanted:
        rows += uvloop.run(b10(min(sizes.entries, STORM)))
    if "b12" in wanted:
        rows += b12(sizes)
        rows += b12_federation(sizes, 200 if sizes.bars else 3)
    if "idle" in wanted:
        rows += uvloop.run(idle(min(sizes.entries, RESTING), REST_SECONDS if sizes.bars else 1.0))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="which rows; all if none is named")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--entries", type=int, default=100_000)
    found = os.environ.get("MUNIMENT_SPIRE_BIN")
    parser.add_argument(
        "--spire", type=Path, default=found, help="a directory with SPIRE's binaries, to be measured as well"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny counts: does every row still run?")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sizes = Sizes(repeats=options.repeats, seconds=options.seconds, entries=options.entries)
    rows = run(
        set(options.rows) or set(ROWS),
        SMOKE if options.smoke else sizes,
        spire=options.spire,
        streams=20 if options.smoke else options.streams,
    )
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
