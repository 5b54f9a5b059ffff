"""`python -m tests.doubles.refused_callers SOCKET COUNT`: a workload without an identity that asks again and again (S52).

Ten calls on each connection. Of ten connections seven hear all their answers, two hang up with calls under way, and one
belongs to a process that is gone when it is looked at. One line of JSON at the end says how many calls were which.
"""

import json
import os
import socket
import sys
from pathlib import Path

import hpack

from tests.doubles.floods import END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, request_headers

DATA = 0
CALLS = 10
STREAMS = range(1, 2 * CALLS, 2)
NO_TABLE = b"\0\1" + bytes(4)
BLOCK = request_headers("/SpiffeWorkloadAPI/FetchX509SVID", extra=[("workload.spiffe.io", "true")])
EMPTY = bytes(5)
REQUESTS = (
    PREFACE
    + frame(SETTINGS, 0, 0, NO_TABLE)
    + b"".join(
        frame(HEADERS, END_HEADERS, stream, BLOCK) + frame(DATA, END_STREAM, stream, EMPTY) for stream in STREAMS
    )
)
DENIED = ("grpc-status", "7")


def connected(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(path)
    connection.sendall(REQUESTS)
    return connection


def statuses(connection):
    """The status of each call; every answer is a header block without state (no table)."""
    file, over = connection.makefile("rb"), {}
    while len(over) < CALLS:
        head = file.read(9)
        if len(head) < 9:
            raise EOFError("the agent hung up")
        payload = file.read(int.from_bytes(head[:3]))
        if head[3] == HEADERS:
            over[int.from_bytes(head[5:9])] = dict(hpack.Decoder().decode(payload)).get("grpc-status", "")
    return list(over.values())


def gone(path):
    """A process of its own asks, and ends before anybody can look at it."""
    child = os.fork()
    if child == 0:
        connected(path)
        os._exit(0)
    os.waitpid(child, 0)


def main(path, count):
    told = {"denied": 0, "abandoned": 0, "gone": 0}
    for number in range(count // CALLS):
        if number % 10 == 9:
            gone(path)
            told["gone"] += CALLS
            continue
        with connected(path) as connection:
            if number % 10 >= 7:
                told["abandoned"] += CALLS
            else:
                answers = statuses(connection)
                if set(answers) != {"7"}:
                    raise SystemExit(f"not refused: {answers}")
                told["denied"] += CALLS
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), int(sys.argv[2]))
