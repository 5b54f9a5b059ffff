"""`node-agent api` for JWT- and WIT-SVIDs against a real gRPC server with canned answers."""

import io
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from google.protobuf import struct_pb2

from node_agent.cli import main
from node_agent.cli.streams import SERVICE as WORKLOAD
from spiffe_core.errors import InvalidRequest, NoIdentityIssued, Unimplemented
from spiffe_core.wire._gen import workload_pb2
from tests.doubles.canned_daemon import canned_daemon, leave_code

WEB = "spiffe://example.org/web"


class Agent:
    """The token calls of the Workload API; `fail` is raised first."""

    def __init__(self):
        self.asked = []
        self.fail = None
        self.svids = [workload_pb2.JWTSVID(spiffe_id=WEB, svid="h.p.s", hint="main")]
        self.wits = [workload_pb2.WITSVID(spiffe_id=WEB, wit_svid="w.i.t", wit_svid_key='{"d":"secret"}', hint="main")]

    def _begin(self, request, context):
        self.asked.append(request)
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            raise InvalidRequest("security header missing from request")
        if self.fail:
            raise self.fail

    async def FetchJWTSVID(self, request, context):
        self._begin(request, context)
        return workload_pb2.JWTSVIDResponse(svids=self.svids)

    async def FetchJWTBundles(self, request, context):
        self._begin(request, context)
        yield workload_pb2.JWTBundlesResponse(bundles={"spiffe://example.org": b'{"keys":[]}'})

    async def ValidateJWTSVID(self, request, context):
        self._begin(request, context)
        claims = struct_pb2.Struct()
        claims.update({"sub": WEB, "aud": ["db"], "exp": 99})
        return workload_pb2.ValidateJWTSVIDResponse(spiffe_id=WEB, claims=claims)

    async def FetchWITSVID(self, request, context):
        self._begin(request, context)
        yield workload_pb2.WITSVIDResponse(svids=self.wits)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    answers = Agent()
    with canned_daemon(tmp_path / "w.sock", {WORKLOAD: answers}) as path:
        monkeypatch.delenv("SPIRE_AGENT_PUBLIC_SOCKET", raising=False)
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix://{path}")
        answers.path = path
        yield answers


def command(*words):
    return leave_code(main, *words)


def test_tokens_and_bundles_are_printed_as_spires_cli_prints_them(agent, capsys):
    assert command("api", "fetch", "jwt", "-audience", "db, api", "-spiffeID", WEB) == 0
    assert capsys.readouterr().out == (
        f'token({WEB}):\n\th.p.s\nhint({WEB}):\n\tmain\nbundle(spiffe://example.org):\n\t{{"keys":[]}}\n'
    )
    assert (list(agent.asked[0].audience), agent.asked[0].spiffe_id) == (["db", "api"], WEB)


@pytest.mark.parametrize("words", [("-output", "json"), ("--format=json",)])
def test_json_is_an_array_of_both_answers(agent, capsys, words):
    assert command("api", "fetch", "jwt", "--audience", "db", *words) == 0
    svids, bundles = json.loads(capsys.readouterr().out)
    assert svids["svids"] == [{"spiffe_id": WEB, "svid": "h.p.s", "hint": "main"}]
    assert bundles["bundles"] == {"spiffe://example.org": "eyJrZXlzIjpbXX0="}


def test_a_token_can_go_straight_into_a_private_file(agent, capsys, tmp_path):
    """S66: it never shows on the terminal."""
    target = tmp_path / "token"
    assert command("api", "fetch", "jwt", "--audience", "db", "--write", str(target)) == 0
    assert target.read_text() == "h.p.s"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "h.p.s" not in capsys.readouterr().out
    agent.svids *= 2
    assert command("api", "fetch", "jwt", "--audience", "db", "--write", str(target)) == 1
    assert "--spiffe-id" in capsys.readouterr().err


def test_an_audience_is_required(agent, capsys):
    assert command("api", "fetch", "jwt") == 1
    assert "--audience" in capsys.readouterr().err
    assert agent.asked == []


def test_no_identity_says_what_to_do(agent, capsys):
    agent.fail = NoIdentityIssued()
    for kind in (("jwt", "--audience", "db"), ("wit",)):
        assert command("api", "fetch", *kind) == 1
        assert f"unix:uid:{os.getuid()}" in capsys.readouterr().err


def test_a_valid_token_is_shown_with_its_claims(agent, capsys, monkeypatch):
    assert command("api", "validate", "jwt", "-audience", "db", "-svid", "h.p.s") == 0
    out = capsys.readouterr().out
    assert out == f'SVID is valid.\nSPIFFE ID : {WEB}\nClaims    : {{"aud":["db"],"exp":99.0,"sub":"{WEB}"}}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO("from.stdin.x\n"))
    assert command("api", "validate", "jwt", "--audience", "db", "--svid", "-", "--output", "json") == 0
    assert json.loads(capsys.readouterr().out)["spiffe_id"] == WEB
    assert agent.asked[-1].svid == "from.stdin.x"


def test_a_token_that_is_not_valid_is_a_failure(agent, capsys):
    agent.fail = InvalidRequest("svid: exp: the token has expired")
    assert command("api", "validate", "jwt", "-audience", "db", "-svid", "h.p.s") == 1
    assert "SVID is not valid: svid: exp: the token has expired" in capsys.readouterr().err


def test_wit_svids_are_shown_without_their_keys(agent, capsys, tmp_path):
    assert command("api", "fetch", "wit") == 0
    assert capsys.readouterr().out == f"wit({WEB}):\n\tw.i.t\nhint({WEB}):\n\tmain\n"
    assert command("api", "fetch", "wit", "-output", "json") == 0
    assert json.loads(capsys.readouterr().out)["svids"][0]["wit_svid_key"] == ""
    assert command("api", "fetch", "wit", "--write", str(tmp_path)) == 0
    key = tmp_path / "wit.0.key.jwk"
    assert key.read_text() == '{"d":"secret"}'
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "secret" not in capsys.readouterr().out


def test_a_profile_that_is_off_is_said_once(agent, capsys):
    agent.fail = Unimplemented("the WIT profile is not offered here")
    assert command("api", "fetch", "wit") == 1
    assert "the WIT profile is not offered here" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "text"), [("jwt", "bundle(spiffe://example.org):"), ("wit", f"wit({WEB}):")])
def test_watching_prints_each_update_until_control_c(agent, kind, text):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "from node_agent.cli import main; main()", "api", "watch", kind],
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{agent.path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("Update 1:")
        assert process.stdout.readline().strip() == text
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
