"""What `.ci/run` does before `make test`: it installs what it can, and requires exactly what is there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
TOOLS = ("bash", "env", "dirname", "timeout", "mktemp", "tail", "tee", "chmod", "rm", "cat", "touch")
PARTS = ("postgresql", "mariadb", "softhsm", "prometheus", "nginx", "pebble", "faketime", "strace")


@pytest.fixture
def machine(tmp_path):
    """A PATH that holds the basic tools and a `make` that tells what it was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    program(folder, "make", 'echo "make $*: required: $MUNIMENT_REQUIRE"')
    return folder


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def ran(machine, **more):
    policy = machine.parent / "policy-rc.d"
    done = subprocess.run(
        [SCRIPT],
        env={"PATH": str(machine), "POLICY_RC_D": str(policy), "HOME": os.environ.get("HOME", "/"), **more},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not policy.exists(), "the policy is gone afterwards"
    assert done.stdout.splitlines()[-1].startswith("make test: required: foreign")
    return done.stdout


def required(said):
    return set(said.splitlines()[-1].partition("required: ")[2].split())


def test_it_never_asks_without_the_right_to_install(machine):
    """No root, no sudo: it says so, requires only what is there, and runs the tests."""
    program(machine, "id", "echo 1000")
    program(machine, "apt-get", f"touch {machine.parent}/called")
    said = ran(machine)
    assert "that takes root or a sudo without password" in said
    assert required(said).isdisjoint({"softhsm", "prometheus", "go"})
    assert not (machine.parent / "called").exists()


def test_it_goes_on_where_there_is_no_apt(machine):
    program(machine, "id", "echo 0")
    assert "this is not Debian or Ubuntu" in ran(machine)


def test_it_goes_on_where_the_package_sources_are_out_of_reach(machine):
    """Offline: tried twice, said, and gone on."""
    program(machine, "id", "echo 0")
    program(machine, "apt-get", f'echo x >> {machine.parent}/tries; echo "Temporary failure resolving"; exit 100')
    said = ran(machine)
    assert "apt-get update failed (try 2 of 2): Temporary failure resolving" in said
    assert "the package sources cannot be used" in said
    assert (machine.parent / "tries").read_text().count("x") == 2
    assert required(said).isdisjoint({"softhsm", "prometheus"})


def test_what_it_installed_is_required(machine):
    """Without questions, without services being started, and then no test of it may be skipped."""
    program(machine, "id", "echo 0")
    program(
        machine,
        "apt-get",
        f"[ -x {machine.parent}/policy-rc.d ] || exit 1; {machine.parent}/policy-rc.d; [ $? = 101 ] || exit 1\n"
        '[ "$DEBIAN_FRONTEND" = noninteractive ] || exit 1\n'
        f'case "$*" in *install*--no-install-recommends*softhsm2*opensc*)'
        f" for one in softhsm2-util pkcs11-tool prometheus; do touch {machine}/$one; chmod 0755 {machine}/$one; done;; esac",
    )
    program(machine, "go", "exit 0")
    said = ran(machine)
    assert "installed: " in said
    assert {"foreign", "go", "softhsm", "prometheus"} <= required(said)
    assert required(said) <= {"foreign", "go", "root", *PARTS}
    assert "root" in required(said), "and what only root may do is done"


ENGINES = ("systemd", "docker", "podman")
PROGRAMS = ("dbus-daemon", "systemctl", "dockerd", "docker", "containerd", "runc", "curl", "podman", "conmon")


@pytest.mark.parametrize(
    ("wish", "user", "unshare", "asked"),
    [
        ("yes", "0", "exit 0", True),
        ("yes", "0", "exit 1", False),
        ("yes", "1000", "exit 0", False),
        ("no", "0", "exit 0", False),
    ],
)
def test_engines_are_installed_where_they_are_wished_for_and_root_can_run_them(machine, wish, user, unshare, asked):
    """A container without rights of its own neither installs nor requires them, whatever lies around."""
    program(machine, "id", f"echo {user}")
    for tool in ("nsenter", "setpriv", *PROGRAMS):
        program(machine, tool, "exit 0")
    program(machine, "unshare", unshare)
    program(machine, "apt-get", "exit 1")
    found = required(ran(machine, MUNIMENT_ENGINES=wish)).intersection(ENGINES)
    there = {"docker", "podman"} | ({"systemd"} if Path("/lib/systemd/systemd").exists() else set())
    assert found == (there if asked and _cgroups_can_be_shared_out() else set())


def _cgroups_can_be_shared_out():
    control = Path("/sys/fs/cgroup/cgroup.subtree_control")
    return not control.exists() or os.access(control, os.W_OK)


def test_an_existing_policy_stays(machine):
    """It is the machine owner's."""
    policy = machine.parent / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    program(machine, "id", "echo 0")
    program(machine, "apt-get", "exit 0")
    done = subprocess.run(
        [SCRIPT], env={"PATH": str(machine), "POLICY_RC_D": str(policy)}, capture_output=True, text=True, check=True
    )
    assert "required: " in done.stdout
    assert policy.exists()


def test_no_mirror_is_named():
    assert "://" not in SCRIPT.read_text()
