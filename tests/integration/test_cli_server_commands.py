"""What the commands of `identity-server` have in common: failures in words, the configuration, help."""

import json
import os
import socket

import pytest

from identity_server.cli import root
from spiffe_core.errors import Exhausted, Forbidden, InvalidRequest, NotFound, Unavailable
from spiffe_core.terminal.health import SERVICE as HEALTH
from tests.doubles.canned_daemon import canned_daemon
from tests.doubles.scripted_server import (
    AGENT_SERVICE,
    BUNDLE_SERVICE,
    ENTRY_SERVICE,
    SVID_SERVICE,
    Server,
    command,
    printed,
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Server()
    services = (ENTRY_SERVICE, AGENT_SERVICE, BUNDLE_SERVICE, SVID_SERVICE, HEALTH)
    with canned_daemon(tmp_path / "a.sock", dict.fromkeys(services, answers)) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        answers.path = path
        yield answers


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "what", "advice"),
        [
            (NotFound("entry not found"), "entry not found", ""),
            (NotFound("agent not found"), "agent not found", "identity-server agent list"),
            (Unavailable("starting"), "starting", "try again in a moment"),
            (Forbidden("authorization denied"), "authorization denied", "admin socket"),
            (Exhausted("too fast"), "too fast", "try again later"),
            (InvalidRequest("filter is \x1b[31mbad"), "filter is \\x1b[31mbad", ""),
            (ZeroDivisionError("secret"), "internal error, reference", "server's log"),
        ],
    )
    def test_the_servers_refusals_in_words(self, server, capsys, error, what, advice):
        server.fail = error
        assert command("entry", "count") == 1
        err = capsys.readouterr().err
        assert err.startswith(f"Error: {what}")
        assert advice in err
        assert "secret" not in err
        assert "Traceback" not in err

    def test_and_as_json(self, server, capsys):
        server.fail = NotFound("entry not found")
        assert command("entry", "show", "-entryID", "x", "-output", "json") == 1
        assert json.loads(printed(capsys)) == {"error": "entry not found"}

    def test_a_missing_socket(self, tmp_path, capsys):
        assert command("entry", "show", "-socketPath", str(tmp_path / "no.sock")) == 1
        err = capsys.readouterr().err
        assert f"there is no socket at {tmp_path}/no.sock" in err
        assert "start it with: identity-server run" in err

    def test_a_socket_nobody_listens_on(self, tmp_path, capsys):
        path = tmp_path / "dead.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert command("entry", "show", "-socketPath", str(path)) == 1
        assert "left over from a server that ended" in capsys.readouterr().err

    def test_a_file_that_is_no_socket(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert command("entry", "show", "-socketPath", str(tmp_path / "file")) == 1
        assert "is not a socket" in capsys.readouterr().err

    def test_a_path_too_long_for_a_socket(self, tmp_path, capsys):
        assert command("entry", "show", "-socketPath", f"{tmp_path}/{'x' * 108}") == 1
        assert "Unix allows 107" in capsys.readouterr().err

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to every socket")
    def test_a_socket_of_somebody_else(self, server, capsys):
        os.chmod(server.path, 0)
        assert command("entry", "show") == 1
        assert "permission denied" in capsys.readouterr().err


class TestDaemonCommands:
    CONFIG = 'trust_domain = "example.org"\n'

    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "server.toml"
        path.write_text(self.CONFIG)
        return str(path)

    def test_validate_prints_the_tree_with_the_flags_over_it(self, config, capsys):
        words = ["-bindAddress", "127.0.0.1", "-serverPort", "9", "-logLevel", "WARN", "-trustDomain", "b.test"]
        assert command("validate", "-config", config, *words, "-output", "json") == 0
        tree = json.loads(capsys.readouterr().out)
        assert (tree["bind_address"], tree["bind_port"], tree["log_level"]) == ("127.0.0.1", 9, "warning")
        assert tree["trust_domain"] == "b.test"
        assert tree["ca"]["ttl"] == "24h"

    def test_pretty(self, config, capsys):
        assert command("validate", "--config", config) == 0
        assert "[ca]\nttl = " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('trust_domian = "x"', "trust_domain"),
            ('trust_domain = "X"', "trust_domain"),
            ('server {\n  trust_domain = "x"\n}', "HCL"),
            ("nonsense", "TOML"),
        ],
    )
    @pytest.mark.parametrize("verb", ["validate", "run"])
    def test_a_wrong_configuration_is_explained(self, tmp_path, capsys, text, message, verb):
        """Config errors name file, key and rule; SPIRE's HCL is refused with a pointer to the TOML page."""
        path = tmp_path / "bad.toml"
        path.write_text(text)
        assert command(verb, "--config", str(path)) == 1
        err = capsys.readouterr().err
        assert str(path) in err
        assert message in err

    def test_a_missing_configuration(self, tmp_path, capsys):
        assert command("run", "-config", str(tmp_path / "no.toml")) == 1
        assert "cannot be read" in capsys.readouterr().err


def commands(group, context, path=()):
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if hasattr(found, "list_commands"):
            yield from commands(found, context, (*path, name))
        else:
            yield (*path, name)


EVERY_COMMAND = list(commands(root, root.make_context("identity-server", ["entry"])))


def test_the_commands_are_those_that_are_documented():
    assert {" ".join(path) for path in EVERY_COMMAND} == {
        "run",
        "validate",
        "healthcheck",
        "explain",
        *(f"entry {verb}" for verb in ("create", "show", "update", "lint", "delete", "count")),
        *(f"agent {verb}" for verb in ("list", "show", "count", "ban", "evict", "purge")),
        "token generate",
        *(f"bundle {verb}" for verb in ("show", "count", "list", "set", "delete")),
        *(
            f"federation {verb}"
            for verb in ("create", "update", "list", "show", "delete", "refresh", "invite", "accept")
        ),
        *(f"oidc {verb}" for verb in ("run", "validate", "write")),
        "cloud check",
        *(f"logger {verb}" for verb in ("get", "set", "reset")),
        *(f"upstreamauthority {verb}" for verb in ("taint", "revoke")),
        "debug getinfo",
        *(f"{kind} mint" for kind in ("x509", "jwt", "wit")),
        *(
            f"localauthority {kind} {verb}"
            for kind in ("x509", "jwt", "wit")
            for verb in ("show", "prepare", "activate", "taint", "revoke")
        ),
        *(f"localauthority {verb}" for verb in ("servers", "orders", "give-up-server")),
    }


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_an_example_and_its_exit_codes(path, capsys):
    assert command(*path, "--help") == 0
    out = printed(capsys)
    assert f"Example:\n  identity-server {' '.join(path)}" in out
    assert "Exit codes: 0 it worked; 1 it did not" in out


def test_version(capsys):
    assert command("--version") == 0
    assert printed(capsys).strip().count(".") == 2
