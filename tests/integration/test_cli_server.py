"""`identity-server` against a real gRPC server with canned answers, over its socket."""

import json
import os
import socket
import stat

import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2

from identity_server.cli import agent as agent_commands
from identity_server.cli import entry as entry_commands
from identity_server.cli import main, root
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.errors import Conflict, Exhausted, Forbidden, InvalidRequest, NotFound, Unavailable
from spiffe_core.terminal.health import SERVICE as HEALTH
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import jointoken_pb2
from spiffe_core.wire.status import item_status
from tests.authority import SpiffeTestCA
from tests.doubles.canned_daemon import canned_daemon, leave_code

ENTRY_SERVICE = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
AGENT_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
BUNDLE_SERVICE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
SVID_SERVICE = svid_pb2.DESCRIPTOR.services_by_name["SVID"]

AGENT_ID = "spiffe://example.org/spire/agent/join_token/t"


def make_entry(number):
    return entry_types.Entry(
        id=f"e{number}",
        spiffe_id={"trust_domain": "example.org", "path": f"/w{number}"},
        parent_id={"trust_domain": "example.org", "path": "/node"},
        selectors=[{"type": "unix", "value": f"uid:{number}"}],
    )


AGENT = agent_types.Agent(
    id={"trust_domain": "example.org", "path": "/spire/agent/join_token/t"},
    attestation_type="join_token",
    x509svid_serial_number="12345",
    x509svid_expires_at=1_800_000_000,
    selectors=[{"type": "a", "value": "b"}],
    agent_version="1.0",
)


class Server:
    """All services in one; remembers the requests, and raises `fail` when it is set."""

    def __init__(self):
        self.entries = []
        self.agents = [AGENT]
        self.requests = []
        self.fail = None
        self.endless = False
        self.ca = SpiffeTestCA("example.org")
        self.status = health_pb2.HealthCheckResponse.SERVING

    def seen(self, request):
        self.requests.append(request)
        if self.fail:
            raise self.fail

    async def ListEntries(self, request, context):
        self.seen(request)
        start = int(request.page_token or 0)
        page = self.entries[start : start + request.page_size]
        end = start + len(page)
        token = str(end) if end < len(self.entries) or self.endless else ""
        return entry_pb2.ListEntriesResponse(entries=page, next_page_token=token)

    async def GetEntry(self, request, context):
        self.seen(request)
        for entry in self.entries:
            if entry.id == request.id:
                return entry
        raise NotFound("entry not found")

    async def CountEntries(self, request, context):
        self.seen(request)
        return entry_pb2.CountEntriesResponse(count=len(self.entries))

    async def BatchCreateEntry(self, request, context):
        self.seen(request)
        answer = entry_pb2.BatchCreateEntryResponse()
        for entry in request.entries:
            similar = [known for known in self.entries if known.spiffe_id == entry.spiffe_id]
            if similar:
                status = item_status(Conflict("similar entry already exists"))
                answer.results.add(status=status, entry=similar[0])
            else:
                created = entry_types.Entry()
                created.CopyFrom(entry)
                created.id = entry.id or f"new{len(self.entries)}"
                self.entries.append(created)
                answer.results.add(status=item_status(None), entry=created)
        return answer

    async def BatchUpdateEntry(self, request, context):
        self.seen(request)
        answer = entry_pb2.BatchUpdateEntryResponse()
        for entry in request.entries:
            if any(known.id == entry.id for known in self.entries):
                answer.results.add(status=item_status(None), entry=entry)
            else:
                answer.results.add(status=item_status(NotFound("entry not found")))
        return answer

    async def BatchDeleteEntry(self, request, context):
        self.seen(request)
        known = {entry.id for entry in self.entries}
        answer = entry_pb2.BatchDeleteEntryResponse()
        for entry_id in request.ids:
            error = None if entry_id in known else NotFound("entry not found")
            answer.results.add(status=item_status(error), id=entry_id)
        return answer

    async def ListAgents(self, request, context):
        self.seen(request)
        return agent_pb2.ListAgentsResponse(agents=self.agents, next_page_token="again" if self.endless else "")

    async def CountAgents(self, request, context):
        self.seen(request)
        return agent_pb2.CountAgentsResponse(count=len(self.agents))

    async def GetAgent(self, request, context):
        self.seen(request)
        return AGENT

    async def BanAgent(self, request, context):
        self.seen(request)
        return b""

    async def DeleteAgent(self, request, context):
        self.seen(request)
        return b""

    async def CreateJoinToken(self, request, context):
        self.seen(request)
        return jointoken_pb2.JoinToken(value="the-token", expires_at=99)

    async def GetBundle(self, request, context):
        roots = [{"asn1": authority.der} for authority in self.ca.bundle().x509_authorities]
        return bundle_types.Bundle(trust_domain="example.org", x509_authorities=roots, sequence_number=3)

    async def CountBundles(self, request, context):
        return bundle_pb2.CountBundlesResponse(count=1)

    async def MintX509SVID(self, request, context):
        self.seen(request)
        csr = parse_csr(request.csr)
        issued = self.ca.issue(csr.uri_sans[0])
        return svid_pb2.MintX509SVIDResponse(svid={"cert_chain": issued.chain, "expires_at": 99})

    async def Check(self, request, context):
        self.seen(request)
        return health_pb2.HealthCheckResponse(status=self.status)


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Server()
    services = (ENTRY_SERVICE, AGENT_SERVICE, BUNDLE_SERVICE, SVID_SERVICE, HEALTH)
    with canned_daemon(tmp_path / "a.sock", dict.fromkeys(services, answers)) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        answers.path = path
        yield answers


def command(*words):
    return leave_code(main, *words)


def printed(capsys):
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


class TestEntries:
    def test_none_is_found_with_the_line_that_scripts_grep(self, server, capsys):
        """integrations 6a: the text "Found 0 entries" is part of the contract."""
        assert command("entry", "show") == 0
        assert printed(capsys) == "Found 0 entries\n"

    def test_one_is_shown_as_a_block(self, server, capsys):
        server.entries = [make_entry(1)]
        assert command("entry", "show") == 0
        lines = printed(capsys).splitlines()
        assert lines[:4] == [
            "Found 1 entry",
            "Entry ID         : e1",
            "SPIFFE ID        : spiffe://example.org/w1",
            "Parent ID        : spiffe://example.org/node",
        ]
        assert "X509-SVID TTL    : default" in lines
        assert "Selector         : unix:uid:1" in lines

    def test_every_page_is_read(self, server, capsys):
        server.entries = [make_entry(number) for number in range(1201)]
        assert command("entry", "show", "-output", "json") == 0
        shown = json.loads(printed(capsys))
        assert sorted(entry["id"] for entry in shown["entries"]) == sorted(entry.id for entry in server.entries)
        assert [request.page_size for request in server.requests] == [500, 500, 500]

    @pytest.mark.parametrize(
        ("module", "words"), [(entry_commands, ["entry", "show"]), (agent_commands, ["agent", "list"])]
    )
    def test_a_server_whose_pages_never_end_is_given_up(self, server, capsys, monkeypatch, module, words):
        monkeypatch.setattr(module, "MAX_PAGES", 3)
        server.endless = True
        assert command(*words) == 1
        assert "more than 3 pages" in capsys.readouterr().err
        assert len(server.requests) == 3

    def test_json_is_the_list_response(self, server, capsys):
        server.entries = [make_entry(1)]
        assert command("entry", "show", "-entryID", "e1", "-output=json") == 0
        tree = json.loads(printed(capsys))
        assert tree["next_page_token"] == ""
        assert tree["entries"][0]["spiffe_id"] == {"trust_domain": "example.org", "path": "/w1"}
        assert tree["entries"][0]["revision_number"] == "0"
        assert "additional_attributes" not in tree["entries"][0]

    def test_filters_reach_the_server(self, server, capsys):
        words = [
            *("-spiffeID", "spiffe://example.org/a", "-parentID", "spiffe://example.org/b", "-hint", "h"),
            *("-selector", "unix:uid:1", "-selector", "unix:gid:2", "-matchSelectorsOn", "any"),
            *("-federatesWith", "spiffe://a.test", "-matchFederatesWithOn", "exact", "-downstream=false"),
        ]
        for verb in ("show", "count"):
            assert command("entry", verb, *words) == 0
        first, second = (request.filter for request in server.requests)
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
        assert first.by_spiffe_id.path == "/a"
        assert first.by_parent_id.path == "/b"
        assert first.by_hint.value == "h"
        assert first.by_downstream.value is False
        assert first.HasField("by_downstream")
        assert [selector.value for selector in first.by_selectors.selectors] == ["uid:1", "gid:2"]
        assert first.by_selectors.match == 3
        assert list(first.by_federates_with.trust_domains) == ["a.test"]
        assert first.by_federates_with.match == 0

    def test_no_filter_is_no_filter(self, server, capsys):
        assert command("entry", "show") == 0
        assert server.requests[0].filter == entry_pb2.ListEntriesRequest.Filter()

    def test_an_id_excludes_filters(self, server, capsys):
        assert command("entry", "show", "-entryID", "x", "-selector", "a:b") == 1
        assert "cannot be combined" in capsys.readouterr().err

    def test_count(self, server, capsys):
        server.entries = [make_entry(1)]
        assert command("entry", "count") == 0
        assert printed(capsys) == "1 registration entry\n"
        assert command("entry", "count", "-output", "json") == 0
        assert printed(capsys) == '{"count":1}\n'

    def test_create_sends_every_flag(self, server, capsys):
        words = [
            *("-parentID", "spiffe://example.org/node", "--spiffe-id", "spiffe://example.org/web"),
            *("-selector", "unix:uid:1", "-selector=unix:gid:2", "-x509SVIDTTL", "60", "-jwtSVIDTTL=5m"),
            *("-federatesWith", "a.test", "-admin", "-downstream=true", "-storeSVID", "-entryExpiry", "99"),
            *("-dns", "web", "-dns", "web2", "-hint", "h", "-entryID", "mine"),
            *("-disableX509SVIDPrefetch=false", "-jwtSVIDIncludeJTI"),
        ]
        assert command("entry", "create", *words) == 0
        (request,) = server.requests
        assert request.entries[0] == entry_types.Entry(
            id="mine",
            spiffe_id={"trust_domain": "example.org", "path": "/web"},
            parent_id={"trust_domain": "example.org", "path": "/node"},
            selectors=[{"type": "unix", "value": "uid:1"}, {"type": "unix", "value": "gid:2"}],
            x509_svid_ttl=60,
            jwt_svid_ttl=300,
            federates_with=["a.test"],
            admin=True,
            downstream=True,
            store_svid=True,
            expires_at=99,
            dns_names=["web", "web2"],
            hint="h",
            additional_attributes={"jwt_svid_include_jti": True},
        )
        out = printed(capsys)
        for line in ("Entry ID         : mine", "Admin            : true", "Downstream       : true", "Hint"):
            assert line in out

    def test_node_entries_hang_below_the_server(self, server, capsys):
        words = ["-node", "-spiffeID", "spiffe://example.org/n", "-selector", "a:b"]
        assert command("entry", "create", *words) == 0
        assert server.requests[0].entries[0].parent_id.path == "/spire/server"

    def test_what_exists_already_is_reported_with_its_id(self, server, capsys):
        server.entries = [make_entry(1)]
        words = ["-parentID", "spiffe://example.org/node", "-spiffeID", "spiffe://example.org/w1", "-selector", "a:b"]
        assert command("entry", "create", *words) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "(code: AlreadyExists, msg: 'similar entry already exists')" in captured.err
        assert "entry e1" in captured.err
        assert "failed to create 1 of 1 entries" in captured.err

    def test_json_of_a_failure_is_the_response_and_the_code_is_1(self, server, capsys):
        server.entries = [make_entry(1)]
        words = ["-parentID", "spiffe://example.org/node", "-spiffeID", "spiffe://example.org/w1", "-selector", "a:b"]
        assert command("entry", "create", *words, "-output", "json") == 1
        assert json.loads(printed(capsys))["results"][0]["status"]["code"] == 6

    def test_files_are_sent_in_batches(self, server, capsys, tmp_path):
        items = [
            {
                "spiffe_id": f"spiffe://example.org/x{number}",
                "parent_id": "spiffe://example.org/node",
                "selectors": ["a:b"],
            }
            for number in range(501)
        ]
        (tmp_path / "data.json").write_text(json.dumps({"entries": items}))
        assert command("entry", "create", "-data", str(tmp_path / "data.json"), "-output", "json") == 0
        assert [len(request.entries) for request in server.requests] == [500, 1]
        assert len(json.loads(printed(capsys))["results"]) == 501

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "--selector is needed"),
            (["-selector", "a:b"], "--spiffe-id is needed"),
            (["-selector", "a:b", "-spiffeID", "spiffe://example.org/x"], "--parent-id is needed"),
            (["-selector", "ab", "-spiffeID", "spiffe://x/x", "-parentID", "spiffe://x/y"], "type:value"),
            (["-selector", "a:b", "-spiffeID", "x", "-parentID", "spiffe://x/y"], "--spiffe-id"),
            (["-selector", "a:b", "-spiffeID", "spiffe://X/x", "-parentID", "spiffe://x/y"], "write 'x'"),
            (["-selector", "a:b", "-spiffeID", "spiffe://x/x", "-node", "-federatesWith", "y"], "do not federate"),
            (["-selector", "a:b", "-x509SVIDTTL", "-1"], "--x509-svid-ttl"),
        ],
    )
    def test_nonsense_is_refused_before_anything_is_sent(self, server, capsys, words, message):
        assert command("entry", "create", *words) == 1
        assert message in capsys.readouterr().err
        assert server.requests == []

    def test_update_replaces_by_id(self, server, capsys):
        server.entries = [make_entry(1)]
        words = ["-parentID", "spiffe://example.org/n", "-spiffeID", "spiffe://example.org/w1", "-selector", "a:b"]
        assert command("entry", "update", *words) == 1
        assert "--entry-id is needed" in capsys.readouterr().err
        assert command("entry", "update", "-entryID", "e1", *words) == 0
        assert not server.requests[0].HasField("input_mask")
        assert command("entry", "update", "-entryID", "e2", *words) == 1
        assert "NotFound" in capsys.readouterr().err

    def test_delete(self, server, capsys, tmp_path):
        server.entries = [make_entry(1)]
        assert command("entry", "delete", "-entryID", "e1") == 0
        assert printed(capsys) == "Deleted entry with ID: e1\n"
        (tmp_path / "ids.json").write_text('{"ids": ["e1", "e2"]}')
        assert command("entry", "delete", "-file", str(tmp_path / "ids.json")) == 1
        captured = capsys.readouterr()
        assert captured.out == "Deleted entry with ID: e1\n"
        assert captured.err == "Failed to delete entry with ID e2: entry not found\n"
        assert command("entry", "delete") == 1
        assert "--entry-id" in capsys.readouterr().err


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


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "what", "advice"),
        [
            (NotFound("entry not found"), "entry not found", ""),
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


def test_the_commands_are_those_of_the_issue():
    assert {" ".join(path) for path in EVERY_COMMAND} == {
        "run",
        "validate",
        "healthcheck",
        *(f"entry {verb}" for verb in ("create", "show", "update", "delete", "count")),
        *(f"agent {verb}" for verb in ("list", "show", "count", "ban", "evict", "purge")),
        "token generate",
        *(f"bundle {verb}" for verb in ("show", "count", "list", "set", "delete")),
        *(f"federation {verb}" for verb in ("create", "update", "list", "show", "delete", "refresh")),
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
