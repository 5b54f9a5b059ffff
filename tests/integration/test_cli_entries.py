"""`identity-server entry`: lists, filters, files in batches, failures of single items (spire_features section 7.1)."""

import json

import pytest

from identity_server.cli import agent as agent_commands
from identity_server.cli import entry as entry_commands
from spiffe_core.terminal.health import SERVICE as HEALTH
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
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


def make_entry(number):
    return entry_types.Entry(
        id=f"e{number}",
        spiffe_id={"trust_domain": "example.org", "path": f"/w{number}"},
        parent_id={"trust_domain": "example.org", "path": "/node"},
        selectors=[{"type": "unix", "value": f"uid:{number}"}],
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Server()
    services = (ENTRY_SERVICE, AGENT_SERVICE, BUNDLE_SERVICE, SVID_SERVICE, HEALTH)
    with canned_daemon(tmp_path / "a.sock", dict.fromkeys(services, answers)) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        answers.path = path
        yield answers


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
