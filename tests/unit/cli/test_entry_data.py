"""Files of entries for `entry create -data`: SPIRE's documented keys, and what `entry show -output json` prints."""

import io
import json
import sys

import pytest

from identity_server.cli.entry_data import read_entries, read_ids
from spiffe_core.errors import InvalidRequest
from spiffe_core.terminal.failures import Failure
from spiffe_core.terminal.printing import as_json
from spiffe_core.wire._gen.spire.api.types import entry_pb2

SPIRES = {
    "entry_id": "one",
    "selectors": [{"type": "unix", "value": "uid:1"}, "unix:gid:2"],
    "parent_id": "spiffe://example.org/node",
    "spiffe_id": "spiffe://example.org/web",
    "x509_svid_ttl": 60,
    "jwt_svid_ttl": 30,
    "federates_with": ["spiffe://a.test"],
    "admin": True,
    "downstream": True,
    "entryExpiry": 99,
    "dns_names": ["web"],
    "store_svid": True,
    "hint": "h",
    "additional_attributes": {"jwt_svid_include_jti": True},
}

ENTRY = entry_pb2.Entry(
    id="one",
    selectors=[{"type": "unix", "value": "uid:1"}, {"type": "unix", "value": "gid:2"}],
    parent_id={"trust_domain": "example.org", "path": "/node"},
    spiffe_id={"trust_domain": "example.org", "path": "/web"},
    x509_svid_ttl=60,
    jwt_svid_ttl=30,
    federates_with=["spiffe://a.test"],
    admin=True,
    downstream=True,
    expires_at=99,
    dns_names=["web"],
    store_svid=True,
    hint="h",
    additional_attributes={"jwt_svid_include_jti": True},
)


@pytest.fixture
def write(tmp_path):
    def put(tree):
        path = tmp_path / "data.json"
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
        return str(path)

    return put


def test_every_documented_key(write):
    assert read_entries(write({"entries": [SPIRES]})) == [ENTRY]


def test_what_show_prints_can_be_read_back(write):
    """Entries can be carried to another server; what only a server sets is left behind."""
    shown = entry_pb2.Entry()
    shown.CopyFrom(ENTRY)
    shown.revision_number, shown.created_at = 7, 8
    assert read_entries(write({"entries": [as_json(shown)], "next_page_token": ""})) == [ENTRY]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps({"entries": [SPIRES]}).encode())))
    assert read_entries("-") == [ENTRY]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spifeid": "x"}, "entries[0].spifeid: is not a field of an entry; did you mean spiffe_id?"),
        ({"zzz": 1}, "entries[0].zzz: is not a field of an entry"),
        ({"admin": "yes"}, "entries[0].admin: must be true or false"),
        ({"hint": 5}, "entries[0].hint: must be text"),
        ({"x509_svid_ttl": "soon"}, "entries[0].x509_svid_ttl: must be a whole number"),
        ({"x509_svid_ttl": 1.5}, "entries[0].x509_svid_ttl: must be a whole number"),
        ({"x509_svid_ttl": True}, "entries[0].x509_svid_ttl: must be a whole number"),
        ({"x509_svid_ttl": 2**31}, "entries[0].x509_svid_ttl: is out of range"),
        ({"entryExpiry": "9" * 5000}, "entries[0].entryExpiry: must be a whole number"),
        ({"dns_names": "web"}, "entries[0].dns_names: must be a list of text"),
        ({"selectors": "unix:uid:1"}, "entries[0].selectors: must be a list"),
        ({"selectors": [5]}, "entries[0].selectors[0]: must be text"),
        ({"selectors": [{"type": "unix"}]}, "entries[0].selectors[0]: must be text"),
        ({"selectors": [{"type": 1, "value": "x"}]}, "entries[0].selectors: must be text"),
        ({"spiffe_id": {"trust_domain": 1}}, "entries[0].spiffe_id: must be text"),
        ({"parent_id": None}, "entries[0].parent_id: must be text"),
        ({"additional_attributes": []}, "entries[0].additional_attributes: must be an object"),
        ({"additional_attributes": {"x": True}}, "entries[0].additional_attributes.x: is not an attribute"),
        (
            {"additional_attributes": {"jwt_svid_include_jti": 1}},
            "entries[0].additional_attributes.jwt_svid_include_jti: must be true or false",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(write, change, message):
    with pytest.raises(Failure) as caught:
        read_entries(write({"entries": [{**SPIRES, **change}]}))
    assert caught.value.what.endswith(message)
    assert "data.json" in caught.value.what


@pytest.mark.parametrize("change", [{"spiffe_id": "http://x"}, {"parent_id": {"path": "/x"}}, {"selectors": ["unix"]}])
def test_ids_and_selectors_are_checked_before_anything_is_sent(write, change):
    with pytest.raises(InvalidRequest):
        read_entries(write({"entries": [{**SPIRES, **change}]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "entries: must be a list"),
        ('{"entries": []}', "entries: must be a list"),
        ('{"entries": [1]}', "entries[0]: must be an object"),
        ('{"entries": {}}', "entries: must be a list"),
    ],
)
def test_a_wrong_document_is_refused(write, text, message):
    with pytest.raises(Failure) as caught:
        read_entries(write(text))
    assert message in caught.value.what


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Failure, match="No such file"):
        read_entries(str(tmp_path / "no"))


def test_ids(write):
    assert read_ids(write({"ids": ["a", "b"]})) == ["a", "b"]
    for wrong in ({}, {"ids": []}, {"ids": "a"}, {"ids": [1]}):
        with pytest.raises(Failure, match="ids: must be a list"):
            read_ids(write(wrong))
