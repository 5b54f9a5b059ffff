"""Two command lines and two servers: SPIRE's and ours, each with each, on the same data (architecture A13, `four`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from tests.interop.four import DOMAIN, PARENT, Four, agent_id, attest, running_four, shape
from tests.interop.spire import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(folder: Path) -> Iterator[Four]:
    """Both servers with the same entries and with one attested agent each."""
    with running_four(folder) as made:
        yield made


@pytest.mark.parametrize(
    "filters",
    [
        "",
        "-entryID full",
        "-entryID plain",
        f"-spiffeID {DOMAIN}/full",
        f"-parentID {DOMAIN}/node",
        "-selector unix:uid:1",
        "-selector unix:uid:1 -matchSelectorsOn exact",
        "-selector unix:uid:1 -selector unix:gid:2 -selector a:b -matchSelectorsOn subset",
        "-selector unix:uid:1 -selector a:b -matchSelectorsOn any",
        "-hint h",
        "-downstream",
        f"-spiffeID {DOMAIN}/none",
    ],
)
def test_entries_are_shown_alike(four: Four, filters: str) -> None:
    """ListEntries, GetEntry and every filter: the same entries in the same JSON, on both servers."""
    ours, stock = (side.both("entry", "show", *filters.split()) for side in four.sides)
    for entry in ours["entries"] + stock["entries"]:
        assert int(entry.pop("created_at")) > 0
    assert ours == stock
    if "-entryID" not in filters:
        assert four.json("entry", "count", *filters.split()) == {"count": len(ours["entries"])}


def test_entries_are_created_updated_and_deleted_alike(four: Four) -> None:
    """The results of each of the four ways have the same shape, and each way's entry can be shown by the others."""
    for side in four.sides:
        found = []
        for commands in (side.stock, side.ours):
            words = (*PARENT, "-spiffeID", f"{DOMAIN}/life", "-selector", "unix:uid:7", "-entryID", "life")
            made = commands.json("entry", "create", *words)
            assert made["results"][0]["status"] == {"code": 0, "message": "OK"}
            again = (*PARENT, "-spiffeID", f"{DOMAIN}/life2", "-selector", "unix:uid:8", "-entryID", "life")
            changed = commands.json("entry", "update", *again, "-hint", "changed", "-storeSVID")
            (shown,) = side.both("entry", "show", "-entryID", "life")["entries"]
            assert shown == changed["results"][0]["entry"]
            assert (shown["hint"], shown["revision_number"], shown["store_svid"]) == ("changed", "1", True)
            gone = commands.json("entry", "delete", "-entryID", "life")
            assert gone == {"results": [{"status": {"code": 0, "message": "OK"}, "id": "life"}]}
            found.append([shape(made), shape(changed), shape(gone)])
        assert found[0] == found[1], side.name


def test_entries_are_read_from_the_same_file(four: Four, folder: Path) -> None:
    """`entry create -data` and `entry delete -file` take SPIRE's JSON."""
    entries = [
        {
            "parent_id": f"{DOMAIN}/node",
            "spiffe_id": f"{DOMAIN}/data/{number}",
            "selectors": [{"type": "unix", "value": f"uid:{number}"}],
            "x509_svid_ttl": 60,
            "dns_names": ["data.same.test"],
            "hint": "data",
            "entry_id": f"data-{number}",
        }
        for number in range(3)
    ]
    data, ids = folder / "entries.json", folder / "ids.json"
    data.write_text(json.dumps({"entries": entries}))
    ids.write_text(json.dumps({"ids": [entry["entry_id"] for entry in entries]}))
    for side in four.sides:
        for commands in (side.stock, side.ours):
            assert len(commands.json("entry", "create", "-data", str(data))["results"]) == 3
            assert len(side.both("entry", "show", "-hint", "data")["entries"]) == 3
            gone = commands.json("entry", "delete", "-file", str(ids))["results"]
            assert [one["status"]["code"] for one in gone] == [0, 0, 0]


def test_a_similar_entry_is_refused_with_the_same_status(four: Four) -> None:
    """AlreadyExists, from both servers to both command lines."""
    words = ("entry", "create", *PARENT, "-spiffeID", f"{DOMAIN}/plain", "-selector", "unix:uid:1")
    for refusal in four.failures(*words).values():
        assert "code: AlreadyExists, msg:" in refusal.done.stderr
        assert "similar entry already exists" in refusal.done.stderr


@pytest.mark.parametrize("filters", ["", "-attestationType join_token", "-banned=false", "-canReattest=true"])
def test_agents_are_listed_and_counted_alike(four: Four, filters: str) -> None:
    """ListAgents and CountAgents with SPIRE's filters."""
    listed = [side.both("agent", "list", *filters.split())["agents"] for side in four.sides]
    assert [len(agents) for agents in listed] == [0 if "canReattest" in filters else 1] * 2
    assert shape(listed[0]) == shape(listed[1])
    assert four.json("agent", "count", *filters.split()) == {"count": len(listed[0])}


def test_an_agent_is_shown_alike(four: Four) -> None:
    """GetAgent."""
    ours, stock = (side.both("agent", "show", "-spiffeID", agent_id(side)) for side in four.sides)
    assert shape(ours) == shape(stock)
    assert ours["agent_version"] == stock["agent_version"]


def test_an_agent_is_banned_and_evicted_alike(four: Four, folder: Path) -> None:
    """BanAgent and DeleteAgent by one command line, seen by the other."""
    for side in four.sides:
        for commands in (side.stock, side.ours):
            name = attest(side, folder)
            assert commands.json("agent", "ban", "-spiffeID", name) == {}
            assert side.both("agent", "show", "-spiffeID", name)["banned"] is True
            assert side.both("agent", "count", "-banned=true") == {"count": 1}
            assert commands.json("agent", "evict", "-spiffeID", name) == {}
            assert side.both("agent", "count") == {"count": 1}


def test_tokens_are_generated_alike(four: Four) -> None:
    """CreateJoinToken; the value is a UUID and the same token is never given twice."""
    assert four.shapes("token", "generate", "-ttl", "60") == {"value": "str", "expires_at": "str"}
    for side in four.sides:
        values = [commands.json("token", "generate")["value"] for commands in (side.stock, side.ours)]
        assert len({*values}) == 2
        assert {len(value) for value in values} == {36}


def test_the_bundle_is_shown_and_counted_alike(four: Four) -> None:
    """GetBundle and CountBundles; PEM to the byte, SPIFFE's document by its content."""
    assert four.json("bundle", "count") == {"count": 1}
    for side in four.sides:
        shown = side.both("bundle", "show")
        assert shown["trust_domain"] == "same.test"
        assert side.ours("bundle", "show") == side.stock("bundle", "show")
        document = ("bundle", "show", "-format", "spiffe")
        assert json.loads(side.ours(*document)) == json.loads(side.stock(*document))
    ours, stock = (side.stock.json("bundle", "show") for side in four.sides)
    assert list(ours) == list(stock)
    assert shape(ours["x509_authorities"]) == shape(stock["x509_authorities"])


def test_svids_are_minted_alike(four: Four, folder: Path) -> None:
    """MintX509SVID: the same JSON, the same files with the same modes, and a key that fits."""
    words = ("x509", "mint", "-spiffeID", f"{DOMAIN}/minted", "-dns", "minted.same.test", "-ttl", "2m")
    assert four.shapes(*words) == {"x509_svid": ['"str"'], "private_key": "str", "root_cas": ['"str"']}
    for side in four.sides:
        for name, commands in (("stock", side.stock), ("ours", side.ours)):
            target = folder / f"{side.name} {name}"
            target.mkdir()
            commands(*words, "-write", str(target))
            files = {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()}
            assert set(files) == {"svid.pem", "key.pem", "bundle.pem"}
            assert files["key.pem"] == 0o600
            svid = x509.load_pem_x509_certificate((target / "svid.pem").read_bytes())
            key = load_pem_private_key((target / "key.pem").read_bytes(), None)
            assert svid.public_key() == key.public_key()
            names = svid.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["minted.same.test"]
            assert round((svid.not_valid_after_utc - svid.not_valid_before_utc).total_seconds()) == 130
            assert (target / "bundle.pem").read_text() == side.stock("bundle", "show")


def test_health_is_told_alike(four: Four) -> None:
    """grpc.health on the admin socket, as SPIRE's healthcheck asks for it."""
    for side in four.sides:
        for commands in (side.stock, side.ours):
            for more in ((), ("-shallow",), ("-verbose",)):
                assert "Server is healthy." in commands("healthcheck", *more)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("entry show -entryID missing", "entry not found"),
        ("entry delete -entryID missing", "entry not found"),
        (f"agent show -spiffeID {DOMAIN}/spire/agent/x", "agent not found"),
        (f"agent ban -spiffeID {DOMAIN}/spire/agent/x", "agent not found"),
        (f"agent evict -spiffeID {DOMAIN}/spire/agent/x", "agent not found"),
        (f"agent evict -spiffeID {DOMAIN}/x", "invalid agent ID"),
        ("x509 mint -spiffeID spiffe://other.test/x", "CSR URI SAN is invalid"),
        (f"entry create -parentID {DOMAIN}/n -selector a:b -spiffeID spiffe://other.test/x", "failed to convert entry"),
        (f"entry create -parentID {DOMAIN}/n -selector a:b -spiffeID {DOMAIN}/x -dns a..b", "failed to convert entry"),
        (f"entry update -parentID {DOMAIN}/n -selector a:b -spiffeID {DOMAIN}/x -entryID no", "failed to update entry"),
    ],
)
def test_what_cannot_be_is_refused_alike(four: Four, words: str, text: str) -> None:
    """Exit code 1 and the server's words, whichever command line asks whichever server."""
    for way, refusal in four.failures(*words.split()).items():
        assert text in refusal.done.stderr, way


@pytest.mark.parametrize("words", ["entry show", "entry count", "agent list", "agent count", "bundle count"])
def test_the_first_line_for_people_is_the_same(four: Four, words: str) -> None:
    """Scripts grep for SPIRE's count lines."""
    for side in four.sides:
        first = [commands(*words.split()).splitlines()[0] for commands in (side.stock, side.ours)]
        assert first[0] == first[1]


def test_spires_environment_variable_names_the_socket(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPIRE_SERVER_PRIVATE_SOCKET, for both command lines and both servers."""
    for side in four.sides:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", str(side.ours.socket))
        for commands in (side.stock, side.ours):
            assert run(commands.program, "bundle", "count").strip() == "1 bundle"


def test_minted_json_holds_der(four: Four) -> None:
    """What `x509 mint -output json` prints can be used: DER in base64, a key that fits its leaf."""
    for side in four.sides:
        found = side.ours.json("x509", "mint", "-spiffeID", f"{DOMAIN}/minted")
        leaf = x509.load_der_x509_certificate(base64.b64decode(found["x509_svid"][0]))
        key = load_der_private_key(base64.b64decode(found["private_key"]), None)
        assert leaf.public_key() == key.public_key()


@pytest.mark.parametrize(("kind", "words"), [("x509", "X.509"), ("jwt", "JWT")])
def test_localauthority_prints_what_spires_does(four: Four, kind: str, words: str) -> None:
    """spire_features 7.1 and 20: texts letter by letter, JSON field by field, the same refusal."""
    for side in four.sides:
        prepared = [shape_of_text(one("localauthority", kind, "prepare")) for one in (side.ours, side.stock)]
        assert prepared[0] == prepared[1]
        assert side.ours("localauthority", kind, "show") == side.stock("localauthority", kind, "show")
    four.json("localauthority", kind, "show")
    for refused in four.failures("localauthority", kind, "taint", "-authorityID", "nope").values():
        assert f"could not taint {words} authority: " in refused.done.stderr


def shape_of_text(text: str) -> list[str]:
    """Everything but the values, which are new each time."""
    return [
        line if ": " not in line or "No upstream" in line else line.partition(": ")[0] for line in text.splitlines()
    ]
