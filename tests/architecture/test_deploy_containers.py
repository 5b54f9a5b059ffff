"""deploy/containers: what the images start exists, what they copy is there and complete, and who they run as."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from spiffe_core.runtime.places import agent_socket, server_socket, state_directory
from tests.doubles.command_lines import parsed

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "deploy" / "containers").glob("*.Containerfile"))}
PROGRAMS = {"server": "identity-server", "agent": "node-agent"}
PACKAGES = {"server": "identity_server", "agent": "node_agent"}
KNOWN = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(path):
    """(stage, instruction, its words) of each line, continued lines joined."""
    lines = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    stage = -1
    for line in lines.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        assert name in KNOWN, f"{path.name}: {name}"
        stage += name == "FROM"
        yield stage, name, rest.strip()


def of(path, wanted, stage=1):
    return [rest for at, name, rest in instructions(path) if name == wanted and at == stage]


def environment(path):
    return dict(word.partition("=")[::2] for rest in of(path, "ENV") for word in shlex.split(rest))


def test_there_is_one_for_each_daemon():
    assert set(FILES) == set(PROGRAMS)


@pytest.mark.parametrize("name", FILES)
def test_an_image_starts_and_asks_real_commands(name):
    """ENTRYPOINT with CMD, and HEALTHCHECK: in the form that needs no shell, with flags that the program takes."""
    path = FILES[name]
    (entry,), (arguments,), (check,) = of(path, "ENTRYPOINT"), of(path, "CMD"), of(path, "HEALTHCHECK")
    assert json.loads(entry) == [PROGRAMS[name]]
    assert parsed([*json.loads(entry), *json.loads(arguments)]) == ("run", {"config": f"/etc/muniment/{name}.toml"})
    options, _, asked = check.partition(" CMD ")
    assert parsed(json.loads(asked)) == ("healthcheck", {})
    assert all(re.fullmatch(r"--(interval|timeout|start-period)=\d+s", option) for option in options.split())


@pytest.mark.parametrize("name", FILES)
def test_an_image_holds_every_package_its_program_needs_and_not_the_other_daemon(name):
    path = FILES[name]
    copied = {source for rest in of(path, "COPY", 0) for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    packages = {
        one.removesuffix("*")
        for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
            "include"
        ]
    }
    other = (set(PACKAGES.values()) - {PACKAGES[name]}).pop()
    assert copied == (packages - {other}) | {"LICENSE", "README.md", "pyproject.toml", "requirements/runtime.txt"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= allowed, ".dockerignore keeps it from the builder"


@pytest.mark.parametrize("name", FILES)
def test_an_image_installs_only_what_is_pinned_by_hash(name):
    installs = [rest for rest in of(FILES[name], "RUN", 0) if " install " in rest and "pip" in rest]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps" in installs[1]
    assert not [rest for rest in of(FILES[name], "RUN") if "pip" in rest or "apt" in rest]


COMPILE = "python3 -m compileall -q -f --invalidation-mode unchecked-hash"
LOADED = """
import json, sys, {0}.cli.daemon_commands, {0}.settings, {0}.daemon
print(json.dumps([one.__file__ for one in sys.modules.values() if getattr(one, "__file__", None)]))
"""


@pytest.mark.parametrize("name", FILES)
def test_an_image_holds_byte_code_of_all_that_a_start_loads(name):
    """B1: it writes none later, and the base image has none of the standard library."""
    path = FILES[name]
    assert environment(path)["PYTHONDONTWRITEBYTECODE"] == "1"
    assert of(path, "RUN", 0)[-1] == f"{COMPILE} /opt/muniment/lib"
    (of_base,) = [shlex.split(rest) for rest in of(path, "RUN") if "compileall" in rest]
    assert of_base[:-3] == shlex.split(COMPILE)
    assert of_base[-3] == "-x"
    assert of_base[-1] == "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
    library = os.path.dirname(os.__file__)  # as the image says it
    code = LOADED.format(PACKAGES[name])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    started = [one for one in json.loads(done.stdout) if one.startswith(library) and "site-packages" not in one]
    assert len(started) > 100
    assert not [one for one in started if re.search(of_base[-2], one)]


def test_the_server_is_not_root_and_has_the_usual_places():
    """A numeric user, so that `runAsNonRoot` can see it; sockets and state where root would have them."""
    path = FILES["server"]
    (user,) = of(path, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    places = environment(path)
    assert server_socket(places, 10001) == server_socket({}, 0)
    assert state_directory(places, 10001) == state_directory({}, 0)
    assert of(path, "VOLUME") == [str(state_directory({}, 0))]
    example = tomllib.loads((ROOT / "deploy" / "config" / "server.toml").read_text())
    assert of(path, "EXPOSE") == [str(example["bind_port"])]


def test_the_agent_is_root_with_the_usual_places():
    path = FILES["agent"]
    assert of(path, "USER") == []
    assert agent_socket(environment(path), 0) == agent_socket({}, 0)


@pytest.mark.parametrize("name", FILES)
def test_the_advertised_build_line_names_the_file(name):
    text = FILES[name].read_text()
    assert f"podman build -f deploy/containers/{name}.Containerfile -t muniment/{PROGRAMS[name]}:" in text


def test_what_the_agent_leaves_out_is_installed_and_never_imported_by_it():
    """The list is that of test_imports: what only servers need."""
    (left_out,) = [rest for rest in of(FILES["agent"], "RUN", 0) if "uninstall" in rest]
    names = set(left_out.partition("--yes ")[2].split())
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE))
    assert names <= locked
    assert {"sqlalchemy", "alembic", "psycopg", "pymysql", "fastapi", "uvicorn"} <= names
