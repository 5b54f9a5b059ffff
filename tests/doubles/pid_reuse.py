"""`python -m tests.doubles.pid_reuse SOCKET`: forks until a dead connector's number belongs to another process (S10).

To be run as the first process of a PID namespace. Prints what `unix_peer` makes of the connection, as JSON: with the
kernel's pidfd, and as on kernels that have none. The second process of the number runs as another user where it says so.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path

from spiffe_core.errors import Unauthenticated
from spiffe_core.wire import peer

MOST_FORKS = 80_000
OTHER_USER = 54321
RESERVED = 300  # once numbers have run out, Linux begins again here


def lower_the_ceiling():
    """Numbers are used again sooner below a low ceiling; before Linux 6.14 a namespace has none of its own."""
    try:
        Path("/proc/sys/kernel/pid_max").write_text("400")
    except OSError:
        return False
    return True


def next_number(pid):
    """Have the kernel go on at `pid`, as it would after some ten thousand forks more."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))


def asleep(user):
    """A child that waits for a signal; its number."""
    pid = os.fork()
    if not pid:
        if user:
            os.setuid(user)
        signal.pause()
        os._exit(0)
    return pid


def gone(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def reused(listener, path, *, user, shared, low):
    """A connection whose connector has ended and whose number another process has by now; that process, and a copy."""
    ours = socket.socket(socket.AF_UNIX)
    connector = os.fork()
    if not connector:
        ours.connect(path)
        os._exit(0)
    os.waitpid(connector, 0)
    if not shared:
        ours.close()
    forks = 1
    if not low:
        next_number(connector)
    while (heir := asleep(user)) != connector:
        gone(heir)
        forks += 1
        if forks > MOST_FORKS:
            raise SystemExit("the number was never given again")
    while Path(f"/proc/{heir}").stat().st_uid != user:
        os.sched_yield()
    connection, _ = listener.accept()
    return connection, heir, ours, forks


def verdict(connection, heir):
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if pid != heir:
        return f"the kernel names {pid} and not {heir}"
    try:
        found = peer.unix_peer(connection)
    except Unauthenticated as refusal:
        return refusal.public
    found.process.close()
    return "believed"


def main(path):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    low = lower_the_ceiling()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while (burnt := asleep(0)) <= RESERVED:
        gone(burnt)
    gone(burnt)
    said = {}
    forks = 0
    pidfd = peer._SO_PEERPIDFD
    cases = {
        "pidfd, shared, same user": (pidfd, 0, True),
        "pidfd, closed, same user": (pidfd, 0, False),
        "no pidfd, closed, same user": (9999, 0, False),
        "no pidfd, shared, another user": (9999, OTHER_USER, True),
    }
    for name, (option, user, shared) in cases.items():
        peer._SO_PEERPIDFD = option
        connection, heir, ours, tries = reused(listener, path, user=user, shared=shared, low=low)
        said[name] = verdict(connection, heir)
        forks += tries
        gone(heir)
        connection.close()
        ours.close()
    print(json.dumps({"verdicts": said, "forks": forks}))


if __name__ == "__main__":
    main(sys.argv[1])
