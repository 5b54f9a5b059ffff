"""What starting a command costs: heavy libraries are loaded only by what needs them (A11, A14, issue 2 item 1)."""

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


def loaded_by(code):
    """The top-level packages in a fresh interpreter after `code`."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=50)
    return set(json.loads(done.stdout.splitlines()[-1]))


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


def test_the_measure_can_fail():
    assert "sqlalchemy" in loaded_by("import sqlalchemy")
