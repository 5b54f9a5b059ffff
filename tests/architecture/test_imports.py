"""What starting a command costs: heavy libraries are loaded only by what needs them (A11, A14, issue 2 item 1)."""

import functools
import json
import subprocess
import sys

import pytest

SERVER_ONLY = ("sqlalchemy", "alembic", "psycopg", "pymysql", "fastapi", "uvicorn")

SHOW = """
from identity_server.cli import main
try:
    main(["entry", "show", "-socketPath", "/nowhere.sock"])
except SystemExit as left:
    assert left.code == 1
"""

FETCH = """
from node_agent.cli import main
try:
    main(["api", "fetch", "-socketPath", "/nowhere.sock"])
except SystemExit as left:
    assert left.code == 1
"""


RUN_SERVER = "import identity_server.cli.daemon_commands, identity_server.settings, identity_server.daemon"
RUN_AGENT = "import node_agent.cli.daemon_commands, node_agent.settings, node_agent.daemon"


@functools.cache
def modules_of(code):
    """The modules that `code` adds to those of a fresh interpreter."""
    head = "import json, sys\nthere = {*sys.modules}\n"
    tail = "\nprint(json.dumps(sorted({*sys.modules} - there)))"
    argv = [sys.executable, "-c", head + code + tail]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=50)
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


def loaded_by(code):
    """The top-level packages among them."""
    return {name.partition(".")[0] for name in modules_of(code)}


@pytest.mark.parametrize("code", ["import node_agent.cli", "import node_agent.daemon", FETCH])
def test_the_agent_never_loads_what_only_servers_need(code):
    """`node_agent.cli` and `node_agent.daemon` import no database, its drivers and migrations, and no web framework."""
    assert loaded_by(code).isdisjoint(SERVER_ONLY)


@pytest.mark.parametrize("code", ["import identity_server.cli", SHOW])
def test_the_servers_client_commands_stay_light(code):
    """`identity-server entry show` loads no database, no web framework, no settings library, no TLS library."""
    assert loaded_by(code).isdisjoint({*SERVER_ONLY, "pydantic", "cryptography", "uvloop", "rich"})


def test_the_command_lines_load_no_grpc_before_a_command_is_called():
    assert "grpc" not in loaded_by("import identity_server.cli, node_agent.cli")


@pytest.mark.parametrize(
    ("code", "most"),
    [
        (RUN_SERVER, 830),
        (RUN_AGENT, 645),
        ("import identity_server.cli", 60),
        ("import node_agent.cli", 60),
    ],
)
def test_a_start_loads_no_more_than_it_did(code, most):
    """B1: most of a cold start is loading modules. A higher bound has to be worth a millisecond for each of them."""
    assert len(modules_of(code)) <= most


def test_a_server_loads_what_is_not_configured_neither_at_its_start_nor_before():
    """Migrations, other databases, endpoints of the web and their certificates: loaded only by who needs them."""
    loaded = modules_of(RUN_SERVER)
    packages = {name.partition(".")[0] for name in loaded}
    assert packages.isdisjoint({"alembic", "psycopg", "pymysql", "fastapi", "uvicorn", "acme", "opentelemetry", "rich"})
    assert loaded.isdisjoint(
        {"sqlalchemy.dialects.mysql", "sqlalchemy.dialects.postgresql", "google.protobuf.json_format"}
    )


def test_an_agent_loads_what_is_not_configured_neither_at_its_start_nor_before():
    loaded = modules_of(RUN_AGENT)
    assert {name.partition(".")[0] for name in loaded}.isdisjoint({"opentelemetry", "rich"})
    assert loaded.isdisjoint({"node_agent.file_sets.service", "google.protobuf.json_format"})


def test_the_measure_can_fail():
    assert "sqlalchemy" in loaded_by("import sqlalchemy")
