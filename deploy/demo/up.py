"""`make up`: a server and an agent that stay until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.panel import Panel

from deploy.demo.stack import LocalStack, NotStarted

console = Console(highlight=False)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background jobs begin with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with LocalStack("example.test") as stack:
            with console.status("starting server and agent ..."):
                stack.start()
            tell(stack)
            watch(stack)
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left behind")
        return 0
    except (NotStarted, RuntimeError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 1


def tell(stack: LocalStack) -> None:
    admin, api = stack.admin_socket, stack.api_socket
    console.print(
        Panel(
            f"admin socket        {admin}\n"
            f"Workload API socket {api}\n"
            f"logs                {stack.folder}/server.log and agent.log",
            title=f"spiffe://{stack.trust_domain} is up",
            border_style="green",
        )
    )
    print(
        "In another terminal, from this directory:\n\n"
        f"export SPIRE_SERVER_PRIVATE_SOCKET={admin}\n"
        f"export SPIFFE_ENDPOINT_SOCKET=unix://{api}\n"
        f"export SPIRE_AGENT_PRIVATE_SOCKET={stack.agent_admin_socket}\n"
        "export PATH=$PWD/.venv/bin:$PATH\n"
        f"identity-server entry create -parentID {stack.node_id} \\\n"
        f"    -spiffeID spiffe://{stack.trust_domain}/me -selector unix:uid:{os.getuid()}\n"
        "node-agent api fetch x509\n\n"
        "Ctrl-C stops both and leaves nothing behind.",
        flush=True,
    )


def watch(stack: LocalStack) -> None:
    """Until Ctrl-C, or until a daemon ends by itself."""
    while True:
        pid, _ = os.wait()
        for daemon in (stack.server, stack.agent):
            if daemon is not None and daemon.pid == pid:
                daemon.process.returncode = 1
                raise NotStarted(f"a daemon ended by itself; its log ends:\n{daemon.tail()}")


if __name__ == "__main__":
    sys.exit(main())
