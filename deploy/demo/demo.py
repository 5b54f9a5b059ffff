"""`make demo`: one trust domain on this machine, from nothing to a rotated identity, in under half a minute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from deploy.demo.stack import LocalStack, NotStarted

SVID_SECONDS = 12
STARTED = time.monotonic()
console = Console(highlight=False)


def step(text: str) -> None:
    console.print(f"[dim]{time.monotonic() - STARTED:5.1f} s[/dim]  [green]✓[/green] {text}")


def quote(answer: str) -> None:
    """What the greeter says, in two lines that fit everywhere."""
    first, _, second = answer.partition(", ")
    console.print(f"           [italic]“I am {first},\n            {second}”[/italic]")


class Workload:
    """A copy of the interpreter under a path of its own, so that the kernel can tell it from others."""

    def __init__(self, stack: LocalStack, name: str) -> None:
        self.path = stack.folder / "bin" / name
        self.path.parent.mkdir(exist_ok=True)
        shutil.copy2(os.path.realpath(sys.executable), self.path)
        self.env = {
            **os.environ,
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
            ),
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")])
            ),
            "SPIFFE_ENDPOINT_SOCKET": f"unix://{stack.api_socket}",
        }
        self.process: subprocess.Popen[str] | None = None
        self.log: IO[bytes] = (stack.folder / f"{name}.log").open("ab")

    def run(self, *words: str) -> Workload:
        argv = [str(self.path), str(ROOT / "deploy" / "demo" / "workload.py"), *words]
        self.process = subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=self.log, text=True)
        return self

    def hear(self, event: str) -> dict[str, Any]:
        """The next event, which must be `event`."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {}
        if found.get("event") != event:
            raise NotStarted(f"{self.path.name}: expected {event!r}, heard {line!r}; see {self.log.name}")
        return found

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self.log.close()


def shown(facts: dict[str, Any]) -> Table:
    """An identity: whose, for how long, and who says so."""
    domain = facts["spiffe_id"].split("/")[2]
    table = Table.grid(padding=(0, 2))
    table.add_row("SPIFFE ID", f"[bold cyan]{facts['spiffe_id']}[/bold cyan]")
    table.add_row("chain", f"X509-SVID, serial {facts['serial'][:16]}…, {facts['seconds_left']:.1f} s left")
    for authority in facts["authorities"]:
        hours = authority["seconds_left"] / 3600
        table.add_row("", f"↑ signed by authority {authority['key_id'][:16]}… of {domain}, {hours:.1f} h left")
    return table


def main() -> int:
    stack = LocalStack("demo.test", sync_interval="500ms")
    workloads: list[Workload] = []
    try:
        play(stack, workloads)
    except KeyboardInterrupt:
        console.print("\n[yellow]stopped[/yellow]")
        return 130
    except (NotStarted, RuntimeError) as error:
        console.print(f"[red]✗ {error}[/red]", markup=True)
        return 1
    finally:
        for workload in workloads:
            workload.stop()
        stack.close()
    console.print(
        Panel(
            "Nothing is left running, nothing is left behind.\n"
            "Next: [bold]make up[/bold] leaves a server and an agent running for you to try; README.md has the tour.",
            title=f"done in {time.monotonic() - STARTED:.0f} s",
            border_style="green",
        )
    )
    return 0


def play(stack: LocalStack, workloads: list[Workload]) -> None:
    domain = f"spiffe://{stack.trust_domain}"
    uid = os.getuid()
    console.print(Panel(f"A trust domain of its own: [bold]{domain}[/bold]\nin {stack.folder}", border_style="cyan"))

    stack.start_server()
    step("identity server is up; its authority stands in the trust bundle")
    stack.prepare_join()
    step("join token made, good once; the trust bundle handed to the node")
    stack.start_agent()
    step("node agent has joined and serves the Workload API")

    server, visitor, stranger = (Workload(stack, name) for name in ("greeter", "visitor", "stranger"))
    workloads += [server, visitor, stranger]
    for workload in (server, visitor):
        name = workload.path.name
        stack.register(f"/{name}", f"unix:path:{workload.path}", f"unix:uid:{uid}", ttl=SVID_SECONDS)
        step(f"registered {domain}/{name} for the program bin/{name} of uid {uid}")

    server.run("serve", f"{domain}/visitor")
    facts = server.hear("identity")
    step("greeter asked who it is; the kernel vouched for it")
    console.print(Panel(shown(facts), title="greeter", border_style="blue"))
    port = server.hear("listening")["port"]

    visitor.run("visit", str(port), f"{domain}/greeter")
    facts = visitor.hear("identity")
    step("visitor asked too")
    console.print(Panel(shown(facts), title="visitor", border_style="blue"))
    greeted = visitor.hear("greeted")
    step(f"mutual {greeted['tls']} between them, by SPIFFE ID alone. The greeter says:")
    quote(greeted["answer"])

    refused = stranger.run("knock").hear("refused")
    step(f"a third program, same user, no entry: [red]{refused['text']}[/red]")

    with console.status(f"SVIDs live {SVID_SECONDS} s here; the first rotation comes at half of that ..."):
        facts = visitor.hear("rotated")
    step("the visitor's SVID rotated on the open stream, ahead of time")
    console.print(Panel(shown(facts), title="visitor, a new certificate and key", border_style="blue"))
    greeted = visitor.hear("greeted")
    step("and they talk on with the new one. The greeter says:")
    quote(greeted["answer"])


if __name__ == "__main__":
    sys.exit(main())
