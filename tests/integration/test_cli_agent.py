"""`node-agent` against a real gRPC server that speaks the Workload API with canned answers."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2

from node_agent.cli import main, root
from node_agent.cli.api import SERVICE as WORKLOAD
from spiffe_core.errors import InvalidRequest, NoIdentityIssued, Unavailable
from spiffe_core.terminal.health import SERVICE as HEALTH
from spiffe_core.wire._gen import workload_pb2
from tests.authority import SpiffeTestCA
from tests.doubles.canned_daemon import canned_daemon, leave_code

SECRET = "join-token-secret"


class Agent:
    """The Workload API: sends `responses`, then raises `fail`, or waits for the client to leave."""

    def __init__(self):
        self.ca = SpiffeTestCA("example.org")
        self.foreign = SpiffeTestCA("other.test")
        self.responses = [self.response("/web")]
        self.fail = None
        self.metadata = []
        self.stays_open = True

    def response(self, *paths):
        message = workload_pb2.X509SVIDResponse(
            federated_bundles={"spiffe://other.test": b"".join(self.foreign.bundle().x509_roots)}
        )
        for path in paths:
            issued = self.ca.issue(f"spiffe://example.org{path}")
            message.svids.add(
                spiffe_id=f"spiffe://example.org{path}",
                x509_svid=b"".join(issued.chain),
                x509_svid_key=issued.key.reveal(),
                bundle=b"".join(self.ca.bundle().x509_roots),
                hint=f"hint{path}",
            )
        return message

    async def FetchX509SVID(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        if self.metadata[-1].get("workload.spiffe.io") != "true":
            raise InvalidRequest("security header missing from request")
        for response in self.responses:
            yield response
        if self.fail:
            raise self.fail
        if self.stays_open:
            await asyncio.Event().wait()

    async def Check(self, request, context):
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    answers = Agent()
    with canned_daemon(tmp_path / "w.sock", {WORKLOAD: answers, HEALTH: answers}) as path:
        monkeypatch.delenv("SPIRE_AGENT_PUBLIC_SOCKET", raising=False)
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{path}")
        answers.path = path
        yield answers


def command(*words):
    return leave_code(main, *words)


class TestFetch:
    @pytest.mark.parametrize("words", [("api", "fetch"), ("api", "fetch", "x509")])
    def test_identities_are_shown_and_keys_are_not(self, agent, capsys, words):
        assert command(*words) == 0
        out = capsys.readouterr().out
        assert out.startswith("Received 1 svid after ")
        assert "SPIFFE ID        : spiffe://example.org/web\n" in out
        assert "Hint             : hint/web\n" in out
        assert " left)" in out
        assert "Federated with   : spiffe://other.test (1 CA)" in out
        assert "PRIVATE" not in out

    def test_the_security_header_is_sent(self, agent, capsys):
        """WEP section 4: every call carries workload.spiffe.io: true."""
        assert command("api", "fetch") == 0
        assert agent.metadata[0]["workload.spiffe.io"] == "true"

    def test_json_has_no_private_key(self, agent, capsys):
        assert command("api", "fetch", "-output", "json") == 0
        out = capsys.readouterr().out
        tree = json.loads(out)
        assert tree["svids"][0]["spiffe_id"] == "spiffe://example.org/web"
        assert tree["svids"][0]["x509_svid_key"] == ""
        assert list(tree["federated_bundles"]) == ["spiffe://other.test"]

    def test_write(self, agent, capsys, tmp_path):
        """The files that SPIRE's CLI writes, with keys nobody else can read."""
        agent.responses = [agent.response("/a", "/b")]
        out = tmp_path / "out"
        out.mkdir()
        assert command("api", "fetch", "--write", str(out)) == 0
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
        expected = {}
        for number in range(2):
            expected |= {
                f"svid.{number}.pem": 0o644,
                f"svid.{number}.key": 0o600,
                f"bundle.{number}.pem": 0o644,
                f"federated_bundle.{number}.0.pem": 0o644,
            }
        assert modes == expected
        leaf = x509.load_pem_x509_certificates((out / "svid.1.pem").read_bytes())[0]
        key = load_pem_private_key((out / "svid.1.key").read_bytes(), None)
        assert leaf.public_key() == key.public_key()
        foreign = x509.load_pem_x509_certificates((out / "federated_bundle.0.0.pem").read_bytes())
        assert len(foreign) == 1
        assert f"Wrote {out}/svid.0.key\n" in capsys.readouterr().out

    def test_silent(self, agent, capsys, tmp_path):
        assert command("api", "fetch", "x509", "-silent", "-write", str(tmp_path)) == 0
        assert capsys.readouterr().out == ""
        assert (tmp_path / "svid.0.key").exists()

    def test_an_identity_cannot_choose_its_files_name(self, agent, capsys, tmp_path):
        """S67: names on disk are numbers, whatever the SPIFFE ID, hint or trust domain says."""
        out = tmp_path / "out"
        out.mkdir()
        response = agent.response("/web")
        response.svids[0].spiffe_id = "spiffe://example.org/../../evil"
        response.svids[0].hint = "../../../etc/passwd"
        response.federated_bundles["../../evil"] = b"".join(agent.ca.bundle().x509_roots)
        agent.responses = [response]
        assert command("api", "fetch", "-write", str(out)) == 0
        assert {path.name for path in out.iterdir()} == {
            "svid.0.pem",
            "svid.0.key",
            "bundle.0.pem",
            "federated_bundle.0.0.pem",
            "federated_bundle.0.1.pem",
        }
        assert {path.name for path in tmp_path.iterdir()} == {"out", "w.sock"}

    def test_links_are_not_followed(self, agent, capsys, tmp_path):
        """S67."""
        out = tmp_path / "out"
        out.mkdir()
        (out / "svid.0.key").symlink_to(tmp_path / "stolen")
        assert command("api", "fetch", "-write", str(out)) == 1
        assert not (tmp_path / "stolen").exists()
        (tmp_path / "link").symlink_to(out)
        assert command("api", "fetch", "-write", str(tmp_path / "link")) == 1
        assert "symbolic link" in capsys.readouterr().err

    def test_no_identity_says_what_to_do(self, agent, capsys):
        agent.responses, agent.fail = [], NoIdentityIssued()
        assert command("api", "fetch") == 1
        err = capsys.readouterr().err
        assert err.startswith("Error: no identity issued\n")
        assert f"unix:uid:{os.getuid()}" in err

    def test_an_agent_that_says_nothing_is_given_up(self, agent, capsys):
        agent.responses = []
        assert command("api", "fetch", "-timeout", "100ms") == 1
        assert "did not answer in time" in capsys.readouterr().err

    def test_an_agent_that_ends_the_stream(self, agent, capsys):
        agent.responses, agent.stays_open = [], False
        assert command("api", "fetch") == 1
        assert "without an answer" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("field", "value", "place"),
        [
            ("x509_svid", b"", "svids[0].x509_svid"),
            ("x509_svid", b"junk", "svids[0].x509_svid"),
            ("x509_svid", b"\x30\x03abc", "certificate that cannot be read"),
            ("bundle", b"\x30\x05a", "svids[0].bundle"),
        ],
    )
    def test_nonsense_from_the_agent_is_named(self, agent, capsys, field, value, place):
        response = agent.response("/web")
        setattr(response.svids[0], field, value)
        agent.responses = [response]
        assert command("api", "fetch") == 1
        assert place in capsys.readouterr().err

    def test_texts_from_the_agent_cannot_harm_the_terminal(self, agent, capsys):
        response = agent.response("/web")
        response.svids[0].hint = "\x1b[2Jgone"
        agent.responses = [response]
        assert command("api", "fetch") == 0
        assert "\x1b" not in capsys.readouterr().out

    def test_no_agent(self, tmp_path, capsys):
        assert command("api", "fetch", "-socketPath", f"unix://{tmp_path}/no.sock") == 1
        assert "start it with: node-agent run" in capsys.readouterr().err

    def test_no_tcp_agent(self, capsys):
        assert command("api", "fetch", "-socketPath", "tcp://127.0.0.1:1") == 1
        assert "Error: " in capsys.readouterr().err

    def test_spires_variable_wins_over_the_standard_one(self, agent, monkeypatch, capsys):
        monkeypatch.setenv("SPIRE_AGENT_PUBLIC_SOCKET", agent.path)
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///nowhere.sock")
        assert command("api", "fetch") == 0


@contextmanager
def watching(agent, *words):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "from node_agent.cli import main; main()", "api", "watch", *words],
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{agent.path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class TestWatch:
    def test_updates_are_printed_until_control_c(self, agent):
        agent.responses = [agent.response("/web"), agent.response("/web", "/db")]
        with watching(agent) as process:
            seen = ""
            while "Update 2 at" not in seen or seen.count("\n\n") < 5:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                seen += line
            assert "Update 1 at" in seen
            assert "2 svids" in seen
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr.read() == ""

    def test_json_has_one_line_for_each_update_and_no_keys(self, agent):
        with watching(agent, "-output", "json") as process:
            tree = json.loads(process.stdout.readline())
            assert tree["svids"][0]["x509_svid_key"] == ""
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0

    def test_it_asks_again_when_the_agent_restarts(self, agent):
        agent.fail = Unavailable("restarting")
        with watching(agent) as process:
            assert "restarting; asking again in 1s" in process.stderr.readline()
            agent.responses, agent.fail = [agent.response("/after")], None
            while "/after" not in (line := process.stdout.readline()):
                assert line
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0

    def test_losing_the_identity_ends_it(self, agent):
        agent.fail = NoIdentityIssued()
        with watching(agent) as process:
            assert process.wait(20) == 1
            assert "no identity issued" in process.stderr.read()

    def test_without_an_agent_it_does_not_start(self, tmp_path, capsys):
        assert command("api", "watch", "-socketPath", str(tmp_path / "no.sock")) == 1
        assert "there is no socket" in capsys.readouterr().err


class TestDaemonCommands:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "agent.toml"
        path.write_text('trust_domain = "example.org"\n')
        return str(path)

    def test_healthcheck(self, agent, capsys):
        assert command("healthcheck", "-shallow=true") == 0
        assert capsys.readouterr().out == "Agent is healthy.\n"

    def test_validate_prints_the_tree_with_the_flags_over_it(self, config, tmp_path, capsys):
        words = ["-serverAddress", "s.test", "-serverPort", "9", "-insecureBootstrap", "-dataDir", str(tmp_path)]
        assert command("validate", "-config", config, *words, "-output", "json") == 0
        captured = capsys.readouterr()
        tree = json.loads(captured.out)
        assert (tree["server_address"], tree["server_port"], tree["insecure_bootstrap"]) == ("s.test", 9, True)
        assert "INSECURE" in captured.err

    def test_a_join_token_on_the_command_line_is_accepted_warned_about_and_never_shown(self, config, capsys):
        assert command("validate", "-config", config, "-joinToken", SECRET) == 0
        captured = capsys.readouterr()
        assert "use join_token_file" in captured.err
        assert SECRET not in captured.out + captured.err

    def test_a_join_token_stays_out_of_error_messages(self, tmp_path, capsys):
        """S67: secrets in errors are redacted."""
        path = tmp_path / "bad.toml"
        path.write_text('trust_domain = "UP"\n')
        words = ["-joinToken", SECRET, "-joinTokenFile", "f"]
        for verb in ("run", "validate"):
            assert command(verb, "-config", str(path), *words) == 1
            assert SECRET not in "".join(capsys.readouterr())

    def test_token_file_and_bundle_become_settings(self, config, capsys):
        words = ["-joinTokenFile", "/t", "-trustBundle", "/b.pem", "--output=json"]
        assert command("validate", "-config", config, *words) == 0
        tree = json.loads(capsys.readouterr().out)
        assert (tree["join_token_file"], tree["trust_bundle_path"]) == ("/t", "/b.pem")

    def test_hcl_is_refused_with_a_pointer(self, tmp_path, capsys):
        path = tmp_path / "agent.conf"
        path.write_text('agent {\n  trust_domain = "x"\n}\n')
        assert command("run", "-config", str(path)) == 1
        err = capsys.readouterr().err
        assert "HCL" in err
        assert "TOML" in err


def commands(group, context, path=()):
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if hasattr(found, "list_commands"):
            yield from commands(found, context, (*path, name))
        else:
            yield (*path, name)


EVERY_COMMAND = list(commands(root, root.make_context("node-agent", ["api"])))


def test_the_commands_are_those_of_the_issue():
    assert {" ".join(path) for path in EVERY_COMMAND} == {
        "run",
        "validate",
        "healthcheck",
        "api fetch x509",
        "api fetch jwt",
        "api fetch wit",
        "api watch x509",
        "api watch jwt",
        "api watch wit",
        "api validate x509",
        "api validate jwt",
        "api validate wit",
        "files",
        "explain",
        "debug getinfo",
        "logger get",
        "logger set",
        "logger reset",
    }


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_an_example_and_its_exit_codes(path, capsys):
    assert command(*path, "--help") == 0
    out = capsys.readouterr().out
    assert f"Example:\n  node-agent {' '.join(path)}" in out
    assert "Exit codes: 0 it worked; 1 it did not" in out
