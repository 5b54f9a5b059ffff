"""The units for systemd start real commands and give away no more than a daemon needs."""

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from identity_server.oidc.standalone import ACME_FOLDER
from identity_server.web.listener import CONNECTIONS
from spiffe_core.runtime.places import state_directory
from spiffe_core.terminal.flags import Flag, normalise
from tests.doubles.command_lines import parsed
from tests.doubles.pages import COMMANDS, LEAVES, ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
DAEMONS = [path for path in UNITS if path.stem in COMMANDS]


def unit(path):
    parser = configparser.RawConfigParser(strict=True, delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def test_there_is_a_unit_for_each_daemon():
    """And one for the discovery provider that stands alone."""
    assert {path.stem for path in UNITS} == {*COMMANDS, "identity-server-oidc"}


def test_the_unit_of_the_discovery_provider_fits_its_example():
    """Issue 6: command, socket and the folder of ACME are those of deploy/config/oidc.toml; the socket can be reached."""
    service = unit(ROOT / "deploy" / "systemd" / "identity-server-oidc.service")["Service"]
    program, *words = shlex.split(service["ExecStart"])
    verb, flags = parsed([Path(program).name, *words], "identity-server-oidc.service")
    assert (verb, flags) == ("run", {"config": "/etc/muniment/oidc.toml"})
    text = (ROOT / "deploy" / "config" / "oidc.toml").read_text()
    example = tomllib.loads(text)
    assert example["listen_socket_path"] == f"/run/{service['RuntimeDirectory']}/oidc.sock"
    assert int(service["RuntimeDirectoryMode"], 8) & 0o005 == 0o005, "the web server is another user"
    (cache,) = re.findall(r'^# cache_dir = "(.+)"', text, re.MULTILINE)
    assert cache == f"/var/lib/{service['StateDirectory']}"
    state = dict([service["Environment"].split("=", 1)])
    assert str(state_directory(state, uid=1000) / ACME_FOLDER) == cache
    assert int(service["LimitNOFILE"]) > 3 * CONNECTIONS + 256


@pytest.mark.parametrize("path", DAEMONS, ids=lambda path: path.name)
def test_a_unit_starts_a_real_command_with_the_files_of_the_example(path):
    service = unit(path)["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == path.stem
    flags = {
        name: flag for flag in LEAVES[f"{path.stem} {words[0]}"].params if isinstance(flag, Flag) for name in flag.names
    }
    assert normalise(words[1:], flags) == [f"--config=/etc/muniment/{path.stem.rpartition('-')[2]}.toml"]
    text = (ROOT / "deploy" / "config" / f"{path.stem.rpartition('-')[2]}.toml").read_text()
    example = tomllib.loads(text)
    assert example["data_dir"] == f"/var/lib/{service['StateDirectory']}"
    sockets = re.findall(r'^(?:# )?(?:admin_)?socket_path = "(.+?)"', text, re.MULTILINE)  # also those that are off
    directories = [Path("/run") / name for name in service["RuntimeDirectory"].split()]
    assert [Path(path).parent for path in sockets] == directories
    assert int(service["LimitNOFILE"]) > 3 * example["limits"]["connections"] + 256


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_gives_away_no_more_than_its_daemon_needs(path):
    service = unit(path)["Service"]
    assert service["User"] not in {"", "root"}
    wanted = "CAP_SYS_PTRACE" if path.stem == "node-agent" else ""
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == wanted
    for key in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectHome",
        "ProtectKernelModules",
        "RestrictSUIDSGID",
    ):
        assert service[key] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectoryMode"] == "0700"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(path, tmp_path):
    """`systemd-analyze verify`, with a program that is there in place of the daemon."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here; the other tests read the unit")
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False, timeout=50)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])
