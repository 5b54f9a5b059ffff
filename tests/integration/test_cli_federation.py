"""The commands for bundles, federation, log and server against a real server, over its admin socket."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from dataclasses import replace

import pytest

from identity_server.cli import main
from spiffe_core.bundle_document import dump_bundle
from spiffe_core.terminal.pem_files import certificates_pem
from tests.builders import make_bundle
from tests.doubles.canned_daemon import leave_code
from tests.doubles.live_server import entry, live_server

FED = make_bundle(trust_domain="fed.test", sequence=7, refresh_hint=60)
PEM = certificates_pem(list(FED.x509_roots))


@pytest.fixture
async def live():
    async with live_server() as server:
        yield server


@pytest.fixture
def run(live, capsys, monkeypatch):
    """Run a command; its exit code, standard output and standard error."""
    monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", str(live.server.settings.socket_path))

    async def command(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = await asyncio.to_thread(leave_code, main, *words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


async def printed(run, *words, stdin=b""):
    code, out, err = await run(*words, stdin=stdin)
    assert (code, err) == (0, "")
    return out


async def test_bundles_are_set_listed_and_deleted(live, run, tmp_path):
    """FED-38, spire_features section 7.1: both formats, a file or standard input, SPIRE's texts."""
    pem, document = tmp_path / "fed.pem", tmp_path / "b.json"
    pem.write_text(PEM)
    document.write_bytes(dump_bundle(replace(FED)))
    assert await printed(run, "bundle", "list") == ""
    assert await printed(run, "bundle", "set", "-id", "spiffe://fed.test", "-path", str(pem)) == "bundle set.\n"
    assert await printed(run, "bundle", "list", "-id", "fed.test") == PEM
    assert await printed(run, "bundle", "set", "-id", "a.test", stdin=PEM.encode()) == "bundle set.\n"
    stars = "*" * 40
    assert await printed(run, "bundle", "list") == (
        f"{stars}\n* a.test\n{stars}\n{PEM}\n{stars}\n* fed.test\n{stars}\n{PEM}"
    )
    words = ("bundle", "set", "-id", "fed.test", "-format", "spiffe", "-path", str(document), "-output", "json")
    (result,) = json.loads(await printed(run, *words))["results"]
    assert result["status"] == {"code": 0, "message": "OK"}
    shown = json.loads(await printed(run, "bundle", "list", "-id", "fed.test", "-format", "spiffe"))
    assert shown == json.loads(dump_bundle(FED))
    listed = json.loads(await printed(run, "bundle", "list", "-output", "json"))["bundles"]
    assert [(one["trust_domain"], one["sequence_number"]) for one in listed] == [("a.test", "0"), ("fed.test", "7")]
    assert await printed(run, "bundle", "count") == "3 bundles\n"
    await live.entries(entry(federates_with=["fed.test"]))
    code, _, err = await run("bundle", "delete", "-id", "fed.test")
    assert (code, "federated with 1 registration entries" in err) == (1, True)
    code, out, _ = await run("bundle", "delete", "-id", "fed.test", "-output", "json")
    assert (code, json.loads(out)["results"][0]["status"]["code"]) == (1, 9)
    assert await printed(run, "bundle", "delete", "-id", "fed.test", "-mode", "dissociate") == "bundle deleted.\n"


async def test_what_is_no_bundle_is_refused_before_it_is_sent(run, tmp_path):
    for words, text in (
        (("-id", "fed.test"), "CERTIFICATE"),
        (("-id", "Fed.test"), "fed.test"),
        (("-id", "fed.test", "-format", "spiffe"), "JSON"),
        (("-id", "fed.test", "-path", str(tmp_path / "absent")), "No such file"),
    ):
        code, _, err = await run("bundle", "set", *words, stdin=b"junk")
        assert (code, text in err) == (1, True), err


WEB = ("-trustDomain", "fed.test", "-bundleEndpointURL", "https://fed.invalid/b", "-bundleEndpointProfile", "https_web")


async def test_relationships_live_their_life(run, tmp_path):
    bundle = tmp_path / "fed.pem"
    bundle.write_text(PEM)
    text = (
        "\nTrust domain              : fed.test\nBundle endpoint URL       : https://fed.invalid/b\n"
        "Bundle endpoint profile   : https_web\n"
    )
    assert await printed(run, "federation", "list") == "Found 0 federation relationships\n"
    assert await printed(run, "federation", "create", *WEB, "-trustDomainBundlePath", str(bundle)) == text
    state = (
        "Where it stands           : in the database\nBundle                    : sequence 0, 1 X.509 authority, 0 JWT "
        "authorities\nLast fetch                : never\nNext fetch                : due\n"
    )
    assert await printed(run, "federation", "list") == "Found 1 federation relationship\n" + text + state
    assert await printed(run, "bundle", "list", "-id", "fed.test") == PEM
    code, _, err = await run("federation", "create", *WEB)
    assert (code, "(code: Internal, msg: " in err) == (1, True)
    spiffe = ("-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", "spiffe://fed.test/s")
    out = await printed(run, "federation", "update", *WEB[:4], *spiffe)
    assert out.endswith("https_spiffe\nEndpoint SPIFFE ID        : spiffe://fed.test/s\n")
    shown = json.loads(await printed(run, "federation", "show", "-trustDomain", "fed.test", "-output", "json"))
    assert shown["https_spiffe"] == {"endpoint_spiffe_id": "spiffe://fed.test/s"}
    assert (await printed(run, "federation", "show", "-trustDomain", "fed.test")).startswith(
        "Found a federation relationship with trust domain fed.test:\n\n"
    )
    code, _, err = await run("federation", "refresh", "-id", "fed.test")
    assert (code, "no bundle of fed.test" in err or "cannot be resolved" in err) == (1, True), err
    shown = await printed(run, "federation", "show", "-trustDomain", "fed.test")
    assert "Last error                : fed.invalid: the name cannot be resolved" in shown, shown
    assert await printed(run, "federation", "delete", "-id", "fed.test") == "federation relationship deleted.\n"
    for words in (("delete", "-id"), ("refresh", "-id"), ("show", "-trustDomain")):
        assert (await run("federation", *words, "fed.test"))[0] == 1


async def test_relationships_are_read_from_a_file(run, tmp_path):
    """SPIRE's form, PEM and documents inside it."""
    items = [
        {
            "trustDomain": "fed.test",
            "bundleEndpointURL": "https://fed.test/",
            "bundleEndpointProfile": "https_web",
            "trustDomainBundle": PEM,
            "trustDomainBundleFormat": "pem",
        },
        {
            "trustDomain": "b.test",
            "bundleEndpointURL": "https://b.test/",
            "bundleEndpointProfile": "https_spiffe",
            "endpointSPIFFEID": "spiffe://b.test/s",
            "trustDomainBundle": json.loads(dump_bundle(FED)),
            "trustDomainBundleFormat": "spiffe",
        },
    ]
    data = json.dumps({"federationRelationships": items}).encode()
    words = ("federation", "create", "-data", "-", "-output", "json")
    results = json.loads(await printed(run, *words, stdin=data))["results"]
    assert [one["status"]["code"] for one in results] == [0, 0]
    assert results[0]["federation_relationship"]["https_web"] == {}
    assert results[1]["federation_relationship"]["trust_domain_bundle"]["sequence_number"] == "7"
    for spoiled, text in (
        ({"extra": "x"}, "extra: is not a field"),
        ({"trustDomain": ""}, "trustDomain is required"),
        ({"trustDomain": 5}, "must be text"),
        ({"bundleEndpointProfile": "web"}, "neither https_web nor https_spiffe"),
        ({"trustDomainBundleFormat": "der"}, "neither pem nor spiffe"),
        ({"trustDomainBundle": {}}, "must be text in PEM"),
    ):
        wrong = json.dumps({"federationRelationships": [items[0] | spoiled]}).encode()
        code, _, err = await run("federation", "create", "-data", "-", stdin=wrong)
        assert (code, text in err) == (1, True), err
    code, _, err = await run("federation", "create", "-data", "-", *WEB)
    assert (code, "cannot use other flags" in err) == (1, True)


async def test_what_a_list_prints_can_be_read_back(run):
    """Relationships and their bundles are carried to another server, from SPIRE's too, in the form of its API."""
    await printed(run, "federation", "create", *WEB[:4], *("-bundleEndpointProfile", "https_web"))
    shown = json.loads(await printed(run, "federation", "list", "-output", "json"))
    shown["federation_relationships"][0]["trust_domain"] = "b.test"
    data = json.dumps(shown).encode()
    await printed(run, "federation", "create", "-data", "-", stdin=data)
    copied = json.loads(await printed(run, "federation", "show", "-trustDomain", "b.test", "-output", "json"))
    assert copied == shown["federation_relationships"][0]
    shown["federation_relationships"][0]["profile"] = "x"
    code, _, err = await run("federation", "create", "-data", "-", stdin=json.dumps(shown).encode())
    assert (code, "federation_relationships: " in err, '"profile"' in err) == (1, True, True), err


async def test_the_log_is_turned_and_turned_back(run):
    root = logging.getLogger()
    before = root.level
    try:
        out = await printed(run, "logger", "set", "-level", "warning")
        assert out == "Logger Level : warning\nLaunch Level : info\n\n"
        assert await printed(run, "logger", "get", "-output", "json") == (
            '{"current_level":"WARN","launch_level":"INFO"}\n'
        )
        assert await printed(run, "logger", "reset") == "Logger Level : info\nLaunch Level : info\n\n"
        assert (await run("logger", "set", "-level", "loud"))[0] == 1
    finally:
        root.setLevel(before)


async def test_the_server_tells_what_it_holds(run):
    out = await printed(run, "debug", "getinfo")
    assert out.startswith("Server Debug Info:\n  Uptime:                  ")
    assert "  Registered Agents:       0\n" in out
    assert "[0] SPIFFE ID:  spiffe://example.org/spire/server" in out
    shown = json.loads(await printed(run, "debug", "getinfo", "-output", "json"))
    assert (shown["agents_count"], len(shown["svid_chain"])) == (0, 2)


async def test_agents_that_expired_long_ago_are_purged(live, run):
    """Only those that can attest again by themselves; a dry run changes nothing."""
    old, young, once = [await live.join() for _ in range(3)]

    def age(uow):
        for agent, can_reattest, expires_at in ((old, True, 1000), (young, True, 4_000_000_000), (once, False, 1000)):
            record = uow.agents.get(agent.path)
            uow.agents.put(replace(record, can_reattest=can_reattest, expires_at=expires_at))

    await live.server.store.execute(age)
    who = f"spiffe://example.org{old.path}"
    out = await printed(run, "agent", "purge", "-dryRun")
    assert out == f"Found 1 expired agent\n\n\nAgents that can be purged:\nSPIFFE ID         : {who}\n"
    out = await printed(run, "agent", "purge", "-expiredFor", "48h", "-output", "json")
    assert json.loads(out) == {"expired_agents": [{"agent_id": who, "deleted": True}]}
    assert await printed(run, "agent", "purge") == "No agents to purge.\n"
    assert sorted(live.state.agents) == sorted([young.path, once.path])
