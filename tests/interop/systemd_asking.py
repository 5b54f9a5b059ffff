"""Ask the systemd attestor about one process: SOCKET, `bus` or `private`, PID, and as which user; answers in JSON."""

import codecs
import json
import os
import sys
import time

from attestors.workload.systemd import SystemdAttestor, SystemdSettings
from spiffe_core.errors import IdentityError
from spiffe_core.wire.peer import named_process

path, kind, pid, user = sys.argv[1:]
codecs.lookup("ascii")  # another user may not be able to read where Python lies
os.setgroups([])
os.setresgid(int(user), int(user), int(user))
os.setresuid(int(user), int(user), int(user))
peer = named_process(int(pid))
try:
    attestor = SystemdAttestor(SystemdSettings(f"unix://{path}", private_socket=kind == "private"))
    found = attestor.attest(peer, time.monotonic() + 10)
    print(json.dumps({"selectors": sorted(str(one) for one in found.selectors), "notes": found.notes}))
except IdentityError as error:
    print(json.dumps({"error": error.public}))
finally:
    peer.process.close()
