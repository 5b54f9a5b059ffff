"""`identity-server` against a real gRPC server with canned answers, over its socket: agents, tokens, bundles, minting."""

import json
import os
import stat

import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2

from spiffe_core.crypto.csr import parse_csr
from spiffe_core.terminal.health import SERVICE as HEALTH
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from tests.doubles.canned_daemon import canned_daemon
from tests.doubles.scripted_server import (
    AGENT,
    AGENT_SERVICE,
    BUNDLE_SERVICE,
    ENTRY_SERVICE,
    SVID_SERVICE,
    Server,
    command,
    printed,
)

AGENT_ID = "spiffe://example.org/spire/agent/join_token/t"


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Server()
    services = (ENTRY_SERVICE, AGENT_SERVICE, BUNDLE_SERVICE, SVID_SERVICE, HEALTH)
    with canned_daemon(tmp_path / "a.sock", dict.fromkeys(services, answers)) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        answers.path = path
        yield answers


class TestAgents:
    def test_list(self, server, capsys):
        assert command("agent", "list") == 0
        assert printed(capsys).splitlines() == [
            "Found 1 attested agent:",
            "",
            f"SPIFFE ID        : {AGENT_ID}",
            "Attestation type : join_token",
            "Expiration time  : 2027-01-15 08:00:00 UTC",
            "Serial number    : 12345",
            "Can re-attest    : false",
            "Agent version    : 1.0",
            "",
        ]

    def test_none(self, server, capsys):
        server.agents = []
        assert command("agent", "list") == 0
        assert printed(capsys) == "No attested agents found\n"

    def test_a_banned_agent_shows_no_serial(self, server, capsys):
        server.agents = [agent_types.Agent(id=AGENT.id, banned=True)]
        assert command("agent", "list") == 0
        out = printed(capsys)
        assert "Banned           : true" in out
        assert "Serial number" not in out

    def test_filters_reach_the_server(self, server, capsys):
        words = ["-selector", "a:b", "-matchSelectorsOn", "exact", "-banned=false", "-canReattest"]
        words += ["-expiresBefore", "2026-01-02 15:04:05 -0700 -07", "-attestationType", "join_token"]
        for verb in ("list", "count"):
            assert command("agent", verb, *words) == 0
        first, second = (request.filter for request in server.requests)
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
        assert first.by_banned.value is False
        assert first.HasField("by_banned")
        assert first.by_can_reattest.value is True
        assert first.by_expires_before == "2026-01-02 15:04:05 -0700 -07"
        assert first.by_selector_match.match == 0

    def test_count(self, server, capsys):
        assert command("agent", "count") == 0
        assert printed(capsys) == "1 attested agent\n"
        assert command("agent", "count", "-output", "json") == 0
        assert printed(capsys) == '{"count":1}\n'

    def test_show_names_the_node_selectors(self, server, capsys):
        assert command("agent", "show", "-spiffeID", AGENT_ID) == 0
        out = printed(capsys)
        assert out.startswith("Found an attested agent given its SPIFFE ID\n\n")
        assert "Selectors        : a:b" in out

    @pytest.mark.parametrize(("verb", "line"), [("ban", "Agent banned"), ("evict", "Agent evicted")])
    def test_ban_and_evict(self, server, capsys, verb, line):
        assert command("agent", verb, "-spiffeID", AGENT_ID) == 0
        assert printed(capsys) == f"{line} successfully\n"
        assert server.requests[0].id.path == "/spire/agent/join_token/t"
        assert command("agent", verb, "-spiffeID", AGENT_ID, "-output", "json") == 0
        assert printed(capsys) == "{}\n"
        assert command("agent", verb) == 1
        assert "--spiffe-id" in capsys.readouterr().err


class TestTokensAndBundles:
    def test_token(self, server, capsys):
        assert command("token", "generate", "-spiffeID", "spiffe://example.org/node") == 0
        assert printed(capsys) == "Token: the-token\n"
        assert server.requests[0].ttl == 600
        assert server.requests[0].agent_id.path == "/node"
        assert command("token", "generate", "-ttl", "60", "-output", "json") == 0
        assert printed(capsys) == '{"value":"the-token","expires_at":"99"}\n'
        assert server.requests[1].ttl == 60
        assert not server.requests[1].HasField("agent_id")

    def test_a_token_goes_into_a_new_private_file_and_is_not_shown(self, server, capsys, tmp_path):
        """S66, S67: 0600 from the start, never over something that is there, gone again when nothing came of it."""
        target = tmp_path / "token"
        assert command("token", "generate", "-write", str(target)) == 0
        shown = capsys.readouterr()
        assert "the-token" not in shown.out + shown.err
        assert target.read_text() == "the-token"
        assert target.stat().st_mode & 0o777 == 0o600
        assert command("token", "generate", "--write", str(target), "--output", "json") == 1
        assert "exists already" in capsys.readouterr().out
        assert len(server.requests) == 1, "nothing was made for a file that cannot be written"
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "elsewhere")
        assert command("token", "generate", "--write", str(link)) == 1
        assert not (tmp_path / "elsewhere").exists()
        assert command("token", "generate", "--write", str(tmp_path / "json"), "--output", "json") == 0
        capsys.readouterr()
        absent = str(tmp_path / "absent.sock")
        assert command("token", "generate", "--write", str(tmp_path / "none"), "-socketPath", absent) == 1
        assert not (tmp_path / "none").exists()

    def test_a_token_without_life_is_refused(self, server, capsys):
        assert command("token", "generate", "-ttl", "0") == 1
        assert "--ttl" in capsys.readouterr().err

    def test_bundle_as_pem_document_and_json(self, server, capsys):
        assert command("bundle", "show") == 0
        roots = x509.load_pem_x509_certificates(printed(capsys).encode())
        assert len(roots) == 1
        assert command("bundle", "show", "-format", "spiffe") == 0
        assert json.loads(printed(capsys))["keys"][0]["use"] == "x509-svid"
        assert command("bundle", "show", "-output", "json") == 0
        assert json.loads(printed(capsys))["sequence_number"] == "3"

    def test_bundle_count(self, server, capsys):
        assert command("bundle", "count") == 0
        assert printed(capsys) == "1 bundle\n"


class TestMint:
    WORDS = ("x509", "mint", "-spiffeID", "spiffe://example.org/op")

    def test_write(self, server, capsys, tmp_path):
        target = tmp_path / "out"
        target.mkdir()
        assert command(*self.WORDS, "-ttl", "1h", "-dns", "op.test", "-write", str(target)) == 0
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()}
        assert modes == {"svid.pem": 0o644, "key.pem": 0o600, "bundle.pem": 0o644}
        assert f"Private key written to {target}/key.pem" in printed(capsys)
        request = parse_csr(server.requests[0].csr)
        assert request.uri_sans == ("spiffe://example.org/op",)
        assert request.dns_names == ("op.test",)
        assert server.requests[0].ttl == 3600
        assert b"BEGIN PRIVATE KEY" in (target / "key.pem").read_bytes()

    def test_a_name_that_is_not_ascii_is_refused(self, server, capsys):
        assert command(*self.WORDS, "-dns", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.test") == 1
        assert "--dns" in capsys.readouterr().err
        assert server.requests == []

    def test_written_files_are_named_in_json(self, server, capsys, tmp_path):
        (tmp_path / "out").mkdir()
        assert command(*self.WORDS, "-write", str(tmp_path / "out"), "-output", "json") == 0
        names = [os.path.basename(path) for path in json.loads(printed(capsys))["written"]]
        assert names == ["svid.pem", "key.pem", "bundle.pem"]

    def test_screen_and_json(self, server, capsys):
        assert command(*self.WORDS) == 0
        out = printed(capsys)
        assert out.startswith("X509-SVID:\n-----BEGIN CERTIFICATE-----\n")
        assert "Private key:\n-----BEGIN PRIVATE KEY-----\n" in out
        assert command(*self.WORDS, "-output", "json") == 0
        found = json.loads(printed(capsys))
        assert set(found) == {"x509_svid", "private_key", "root_cas"}
        assert len(found["x509_svid"]) == 1
        assert found["private_key"].startswith("MI")
        assert "".join(found["root_cas"]) in "".join(out.split()), "DER in base64, as SPIRE prints it"

    @pytest.mark.parametrize("where", ["link", "a/../out", "missing"])
    def test_a_doubtful_directory_is_refused_before_a_key_is_signed(self, server, capsys, tmp_path, where):
        """S67."""
        (tmp_path / "out").mkdir()
        (tmp_path / "a").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "out")
        assert command(*self.WORDS, "-write", f"{tmp_path}/{where}") == 1
        assert "--write" in capsys.readouterr().err
        assert server.requests == []

    def test_a_planted_link_is_not_followed(self, server, capsys, tmp_path):
        """S67: symlinked output."""
        out = tmp_path / "out"
        out.mkdir()
        (out / "key.pem").symlink_to(tmp_path / "stolen")
        assert command(*self.WORDS, "-write", str(out)) == 1
        assert "symbolic link" in capsys.readouterr().err
        assert not (tmp_path / "stolen").exists()


class TestHealth:
    def test_well(self, server, capsys):
        assert command("healthcheck", "-shallow") == 0
        assert printed(capsys) == "Server is healthy.\n"

    def test_unwell(self, server, capsys):
        server.status = health_pb2.HealthCheckResponse.NOT_SERVING
        assert command("healthcheck") == 1
        said = capsys.readouterr().err
        assert said == "Server is unhealthy: it says NOT_SERVING\n  the last lines of the server's log say why\n"

    def test_verbose_says_where(self, server, capsys):
        assert command("healthcheck", "-verbose", "-socketPath", server.path) == 0
        assert server.path in capsys.readouterr().err

    def test_not_there(self, tmp_path, capsys):
        assert command("healthcheck", "-socketPath", str(tmp_path / "no.sock")) == 1
        assert "Server is unhealthy: there is no socket" in capsys.readouterr().err
