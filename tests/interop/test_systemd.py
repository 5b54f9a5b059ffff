"""Units of a real systemd, asked for over its real bus by a real agent (issue 4, item 3)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.stack import BIN, LocalStack
from tests.interop.peers import HERE, ROOT, until
from tests.interop.systemd_machine import UNITS, SystemdMachine, oneshot, required_tools, simple

pytestmark = pytest.mark.slow
BUS, PRIVATE = "/run/dbus/system_bus_socket", "/run/systemd/private"
NOBODY = 65534


class Node:
    """A server here, and an agent as a unit of the machine."""

    def __init__(self, stack: LocalStack, machine: SystemdMachine) -> None:
        self.stack, self.machine = stack, machine

    def fetched_by(self, unit: str) -> tuple[bool, str]:
        """Run the unit's program, which fetches its SVIDs; whether it got any, and what it said."""
        done = self.machine.run("systemctl", "start", unit)
        output = self.stack.folder / unit
        return done.returncode == 0, output.read_text() + Path(f"{output}.err").read_text()

    def gets(self, unit: str, path: str) -> bool:
        got, said = self.fetched_by(unit)
        return got and f"spiffe://{self.stack.trust_domain}{path}" in said


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    required_tools()
    with LocalStack("units.test", sync_interval="100ms", agent="[attestors.unix]\n[attestors.systemd]\n") as stack:
        stack.start_server()
        web = [f"systemd:fragment_path:{UNITS}/web.service", "systemd:id:web.service"]
        stack.register("/web", *web, f"unix:uid:{os.getuid()}")
        stack.register("/anyone", f"unix:gid:{NOBODY}")
        stack.prepare_join()
        fetch = shlex.join([str(BIN / "node-agent"), "api", "fetch", "x509", "-socketPath", str(stack.api_socket)])
        agent = shlex.join([str(BIN / "node-agent"), "run", "--config", str(stack.agent_config)])
        units = {name: oneshot(fetch, stack.folder / name) for name in ("web.service", "other.service")}
        units["group.service"] = oneshot(fetch, stack.folder / "group.service") + f"Group={NOBODY}\n"
        units["agent.service"] = simple(agent, stack.folder / "agent.log")
        with SystemdMachine(stack.folder, units) as machine:
            machine.systemctl("start", "agent.service")
            made = Node(stack, machine)
            until(lambda: made.gets("group.service", "/anyone"), pause=0.1)
            yield made


def asked(node: Node, path: str, kind: str, pid: int, *, user: int = 0, inside: bool = True) -> dict[str, Any]:
    words = [sys.executable, str(HERE / "systemd_asking.py"), path, kind, str(pid), str(user)]
    words = ["env", f"PYTHONPATH={ROOT}", *words]
    if inside:
        done = node.machine.run(*words)
    else:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main_process(node: Node, unit: str) -> int:
    done = node.machine.run("systemctl", "show", "--property=MainPID", "--value", unit)
    return int(done.stdout)


def test_a_unit_is_told_from_another_that_runs_the_same_program(node: Node) -> None:
    """systemd:id and systemd:fragment_path, as SPIRE's (spire_features 18.1)."""
    assert node.gets("web.service", "/web")
    got, said = node.fetched_by("other.service")
    assert not got
    assert "no identity issued" in said


def test_a_process_of_no_service_is_not_the_unit(node: Node) -> None:
    done = node.machine.run(str(BIN / "node-agent"), "api", "fetch", "x509", "-socketPath", str(node.stack.api_socket))
    assert done.returncode != 0
    assert "no identity issued" in done.stdout + done.stderr


def test_a_caller_outside_the_machine_is_nobody_there(node: Node) -> None:
    """S17: the agent cannot see its process."""
    words = ["api", "fetch", "x509", "-socketPath", str(node.stack.api_socket)]
    done = subprocess.run([BIN / "node-agent", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(("path", "kind", "user"), [(BUS, "bus", 0), (BUS, "bus", NOBODY), (PRIVATE, "private", 0)])
def test_the_bus_and_systemds_own_socket_tell_the_same(node: Node, path: str, kind: str, user: int) -> None:
    """Over the bus an agent that is not root is answered too."""
    answer = asked(node, path, kind, main_process(node, "agent.service"), user=user)
    assert "error" not in answer, answer
    assert answer["selectors"] == [f"systemd:fragment_path:{UNITS}/agent.service", "systemd:id:agent.service"]


def test_a_unit_without_a_file_has_its_name_alone(node: Node) -> None:
    assert asked(node, BUS, "bus", 1)["selectors"] == ["systemd:id:init.scope"]


def test_a_transient_unit_has_a_file_elsewhere(node: Node) -> None:
    """A name alone can be taken by whoever may start units while it is free."""
    started = node.machine.run("systemd-run", "--unit=free", "--property=DefaultDependencies=no", "sleep", "600")
    assert started.returncode == 0, started.stderr
    answer = asked(node, BUS, "bus", main_process(node, "free.service"))
    node.machine.systemctl("stop", "free.service")
    assert answer["selectors"] == [
        "systemd:fragment_path:/run/systemd/transient/free.service",
        "systemd:id:free.service",
    ]


def test_from_another_pid_namespace_nothing_is_told(node: Node) -> None:
    """The same number is another process there; systemd 253 and newer are asked by pidfd and know no such process."""
    bus = node.machine.root / BUS.lstrip("/")
    answer = asked(node, str(bus), "bus", os.getpid(), inside=False)
    assert "error" in answer or answer["selectors"] == []
    assert node.machine.run("systemctl", "is-active", "agent.service").returncode == 0


def test_without_its_bus_units_get_nothing_and_the_others_are_served(node: Node) -> None:
    """It fails closed, is reported, does not silence `unix`, and heals by itself."""
    node.machine.systemctl("stop", "dbus.socket", "dbus.service")
    try:
        assert node.gets("group.service", "/anyone")
        got, _ = node.fetched_by("web.service")
        assert not got
        assert "system_bus_socket" in (node.stack.folder / "agent.log").read_text()
    finally:
        node.machine.systemctl("start", "dbus.service")
    until(lambda: node.gets("web.service", "/web"), pause=0.1)  # systemd takes its name on the new bus when it sees it
