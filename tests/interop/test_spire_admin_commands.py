"""The commands of operators, four ways (`four`): authorities, federation, bundles, tokens, the log, both spellings."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.demo.stack import BIN
from spiffe_core.crypto.jose import read_compact
from tests.authority import SpiffeTestCA
from tests.interop.four import DOMAIN, Four, attest, running_four, shape
from tests.interop.spire import Commands, Failed, run, spire_binaries

pytestmark = pytest.mark.slow

FED = SpiffeTestCA("fed.test")


@pytest.fixture(scope="module")
def four(folder: Path) -> Iterator[Four]:
    with running_four(folder) as made:
        yield made


@pytest.fixture(scope="module")
def material(folder: Path) -> dict[str, Path]:
    """The bundle of another trust domain in both forms."""
    home = folder / "material"
    home.mkdir()
    pem, document = home / "fed.pem", home / "fed.json"
    certificate = x509.load_der_x509_certificate(FED.der)
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    numbers = certificate.public_key().public_numbers()  # type: ignore[union-attr]
    coordinate = {
        name: base64.urlsafe_b64encode(value.to_bytes(32)).rstrip(b"=").decode()
        for name, value in (("x", numbers.x), ("y", numbers.y))  # type: ignore[union-attr]
    }
    key = {"use": "x509-svid", "kty": "EC", "crv": "P-256", **coordinate, "x5c": [base64.b64encode(FED.der).decode()]}
    document.write_text(json.dumps({"keys": [key], "spiffe_sequence": 3, "spiffe_refresh_hint": 60}))
    return {"pem": pem, "spiffe": document}


def each(four: Four) -> Iterator[tuple[Any, Any]]:
    """Every server with every command line."""
    for side in four.sides:
        for commands in (side.stock, side.ours):
            yield side, commands


def alike(found: list[Any]) -> Any:
    """All four are the same."""
    assert len(found) == 4
    assert all(one == found[0] for one in found), found
    return found[0]


@pytest.mark.parametrize("form", ["pem", "spiffe"])
def test_bundles_are_set_listed_and_deleted_alike(four: Four, material: dict[str, Path], form: str) -> None:
    """BatchSet-, List-, Get- and BatchDeleteFederatedBundle, both forms, from a file and from stdin."""
    told = []
    for side, commands in each(four):
        words = ("bundle", "set", "-id", "fed.test", "-format", form)
        said = [commands(*words, "-path", str(material[form])), commands(*words, stdin=material[form].read_text())]
        shown = side.both("bundle", "list")
        pem = {one("bundle", "list", "-id", "fed.test") for one in (side.stock, side.ours)}
        documents = [
            json.loads(one("bundle", "list", "-id", "fed.test", "-format", "spiffe")) for one in (side.stock, side.ours)
        ]
        assert len(pem) == 1
        assert documents[0] == documents[1]
        gone = commands("bundle", "delete", "-id", "fed.test", "-mode", "restrict")
        assert side.both("bundle", "count") == {"count": 1}
        told.append([said, shape(shown), pem, documents[0]["keys"], gone])
    assert "bundle set." in alike(told)[0][0]


def test_setting_a_bundle_in_json_tells_the_same(four: Four, material: dict[str, Path]) -> None:
    found = []
    for _, commands in each(four):
        made = commands.json("bundle", "set", "-id", "fed.test", "-path", str(material["pem"]))
        gone = commands.json("bundle", "delete", "-id", "fed.test")
        found.append([shape(made), gone])
    assert alike(found)[1]["results"][0]["status"] == {"code": 0, "message": "OK"}


WEB = ("-bundleEndpointURL", "https://fed.test/bundle", "-bundleEndpointProfile", "https_web")
SPIFFE = ("-bundleEndpointURL", "https://fed.test/spiffe", "-bundleEndpointProfile", "https_spiffe")
ENDPOINT = ("-endpointSpiffeID", "spiffe://fed.test/spire/server")


def test_relationships_live_and_die_alike(four: Four, material: dict[str, Path]) -> None:
    """Create, show, list, update and delete, with a bundle; the JSON is the same to the last field."""
    found = []
    for side, commands in each(four):
        file = ("-trustDomainBundlePath", str(material["pem"]), "-trustDomainBundleFormat", "pem")
        made = commands.json("federation", "create", "-trustDomain", "fed.test", *SPIFFE, *ENDPOINT, *file)
        shown = side.both("federation", "show", "-trustDomain", "fed.test")
        listed = side.both("federation", "list")
        changed = commands.json("federation", "update", "-trustDomain", "fed.test", *WEB)
        again = side.both("federation", "show", "-trustDomain", "fed.test")
        gone = commands.json("federation", "delete", "-id", "fed.test")
        empty = side.both("federation", "list")
        commands("bundle", "delete", "-id", "fed.test", "-mode", "dissociate")
        texts = [shape(one) for one in (made, shown, listed, changed, again)]
        found.append([texts, gone, empty, again["bundle_endpoint_url"], "https_web" in again])
    assert alike(found)[3:] == ["https://fed.test/bundle", True]


def test_relationships_are_read_from_the_same_file(four: Four, folder: Path) -> None:
    data = folder / "relationships.json"
    given = {"trustDomain": "fed.test", "bundleEndpointURL": "https://fed.test/b", "bundleEndpointProfile": "https_web"}
    data.write_text(json.dumps({"federationRelationships": [given, {**given, "trustDomain": "fed2.test"}]}))
    found = []
    for _, commands in each(four):
        made = commands.json("federation", "create", "-data", str(data))
        gone = [commands.json("federation", "delete", "-id", name) for name in ("fed.test", "fed2.test")]
        found.append([made, gone])
    assert len(alike(found)[0]["results"]) == 2


@pytest.mark.parametrize("kind", ["x509", "jwt"])
def test_authorities_are_prepared_activated_tainted_and_revoked_alike(four: Four, kind: str) -> None:
    """The whole life by each command line on each server; what `show` prints is the same on one server."""
    found = []
    for side, commands in each(four):
        before = side.both("localauthority", kind, "show")
        old = before["active"]["authority_id"]
        prepared = commands.json("localauthority", kind, "prepare")
        fresh = prepared["prepared_authority"]["authority_id"]
        between = side.both("localauthority", kind, "show")
        assert between["prepared"]["authority_id"] == fresh
        activated = commands.json("localauthority", kind, "activate", "-authorityID", fresh)
        after = side.both("localauthority", kind, "show")
        assert (after["active"]["authority_id"], after["old"]["authority_id"]) == (fresh, old)
        tainted = commands.json("localauthority", kind, "taint", "-authorityID", old)
        revoked = commands.json("localauthority", kind, "revoke", "-authorityID", old)
        found.append([shape(one) for one in (prepared, between, activated, after, tainted, revoked)])
    alike(found)


def test_the_log_is_turned_alike(four: Four) -> None:
    """GetLogger, SetLogLevel, ResetLogLevel."""
    for side, commands in each(four):
        assert commands.json("logger", "set", "-level", "warn")["current_level"] == "WARN"
        assert side.both("logger", "get")["current_level"] == "WARN"
        texts = {one("logger", "get") for one in (side.stock, side.ours)}
        assert len(texts) == 1
        back = commands.json("logger", "reset")
        assert back["current_level"] == back["launch_level"]


def test_debug_information_has_the_same_shape(four: Four) -> None:
    """GetInfo, whose numbers are of the moment."""
    assert set(four.shapes("debug", "getinfo")) >= {"svid_chain", "uptime", "agents_count", "entries_count"}


def test_jwts_are_minted_alike(four: Four, folder: Path) -> None:
    """MintJWTSVID: the bare token on stdout, the same claims, and a private file."""
    found = []
    words = ("jwt", "mint", "-spiffeID", f"{DOMAIN}/minted", "-audience", "a", "-audience", "b", "-ttl", "90s")
    for number, (_, commands) in enumerate(each(four)):
        token = commands(*words).strip()
        claims = json.loads(read_compact(token).payload)
        target = folder / f"token-{number}"
        said = commands(*words, "-write", str(target)).replace(str(target), "FILE")
        assert target.stat().st_mode & 0o777 == 0o600
        read_compact(target.read_text().strip())
        assert claims["exp"] - claims["iat"] == 90
        found.append([sorted(claims), claims["sub"], claims["aud"], said, shape(commands.json(*words))])
    alike(found)


def test_agents_are_purged_alike(four: Four) -> None:
    """Nothing is old enough, and nothing of a join token can come back: both say so."""
    for side in four.sides:
        assert side.both("agent", "purge", "-dryRun") == side.both("agent", "purge", "-expiredFor", "1h")


@pytest.mark.parametrize(
    "words",
    [
        "entry show -entryID full",
        "entry count -downstream",
        "agent list",
        "bundle count",
        "federation list",
        "localauthority x509 show",
        "localauthority jwt show",
        "logger get",
    ],
)
def test_both_spellings_of_a_flag_mean_the_same(four: Four, words: str) -> None:
    """`-x` and `--x`, `-x v` and `-x=v`, by both command lines."""
    for side in four.sides:
        for commands in (side.stock, side.ours):
            one = run(commands.program, *words.split(), "-output", "json", "-socketPath", str(commands.socket))
            two = [word.replace("-", "--", 1) if word.startswith("-") else word for word in words.split()]
            other = run(commands.program, *two, "--output=json", f"--socketPath={commands.socket}")
            assert one == other


@pytest.mark.parametrize(
    "words",
    [
        "entry create",
        "entry update",
        "entry delete",
        f"entry create -spiffeID {DOMAIN}/x -selector a:b",
        f"entry create -spiffeID {DOMAIN}/x -parentID {DOMAIN}/n",
        "entry create -spiffeID nonsense -parentID x -selector a:b",
        "entry show -matchSelectorsOn nonsense -selector a:b",
        "agent show",
        "agent ban",
        "agent evict",
        "agent list -expiresBefore yesterday",
        "agent purge -expiredFor x",
        "bundle set",
        "bundle set -id fed.test -path /nonexistent",
        "bundle delete",
        "bundle delete -id unknown.test",
        "bundle list -id unknown.test",
        "bundle show -format xml",
        "federation create",
        "federation create -trustDomain fed.test -bundleEndpointURL http://plain.test -bundleEndpointProfile https_web",
        "federation show",
        "federation show -trustDomain unknown.test",
        "federation update -trustDomain unknown.test -bundleEndpointURL https://x.test -bundleEndpointProfile https_web",
        "federation delete",
        "federation delete -id unknown.test",
        "federation refresh",
        "federation refresh -id unknown.test",
        "jwt mint",
        f"jwt mint -spiffeID {DOMAIN}/x",
        "jwt mint -audience a",
        "x509 mint",
        "x509 mint -spiffeID nonsense",
        "localauthority x509 activate",
        "localauthority x509 activate -authorityID nonsense",
        "localauthority x509 taint -authorityID nonsense",
        "localauthority x509 revoke -authorityID nonsense",
        "localauthority jwt activate -authorityID nonsense",
        "localauthority jwt taint -authorityID nonsense",
        "localauthority jwt revoke -authorityID nonsense",
        "logger set",
        "logger set -level loud",
        "upstreamauthority taint",
        "upstreamauthority taint -subjectKeyID nonsense",
        "upstreamauthority revoke -subjectKeyID nonsense",
        "token generate -ttl -1",
        "entry show -nonsense",
    ],
)
def test_what_is_wrong_ends_with_exit_code_1_four_times(four: Four, words: str) -> None:
    """The same exit code whichever command line asks whichever server, and something said on stderr or stdout."""
    four.failures(*words.split())


def test_a_closed_door_is_told_alike(folder: Path) -> None:
    binaries = spire_binaries()
    for program in (binaries / "spire-server", BIN / "identity-server"):
        absent = Commands(program, folder / "absent.sock")
        for words in (("healthcheck",), ("entry", "show"), ("bundle", "show")):
            with pytest.raises(Failed) as caught:
                absent(*words)
            assert caught.value.done.returncode == 1


def test_agents_of_both_sides_are_evicted_by_the_other_command_line(four: Four, folder: Path) -> None:
    for side in four.sides:
        name = attest(side, folder)
        assert side.ours("agent", "evict", "-spiffeID", name) == "Agent evicted successfully\n"
        with pytest.raises(Failed):
            side.stock("agent", "show", "-spiffeID", name)
