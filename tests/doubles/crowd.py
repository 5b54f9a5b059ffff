"""`python -m tests.doubles.crowd SOCKET USER COUNT MODE`: one user's process that takes all it can get (S51, S53, R45).

`idle` connects and says nothing. `stuck` asks for its SVIDs on each connection and never reads a byte. `streams` opens
them on few connections, a hundred on each. Prints what it got as JSON, keeps it until stdin ends, then tells again.
"""

import json
import os
import resource
import socket
import sys

from tests.doubles.raw_call import RawCall

STREAMS = 100


def greeting(mode):
    call = RawCall()
    data = call.hello()
    if mode == "stuck":
        data += call.request()
    if mode == "streams":
        data += b"".join(call.request() for _ in range(STREAMS))
    return b"" if mode == "idle" else data


def closed(connection):
    """Whether the other end has hung up, whatever it sent before."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def main(path, user, count, mode):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    data = greeting(mode)
    os.setgid(user)
    os.setuid(user)
    held = []
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            connection.sendall(data)
        except OSError:
            connection.close()
        else:
            held.append(connection)
    print(json.dumps({"connected": len(held)}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"open": sum(not closed(connection) for connection in held)}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
