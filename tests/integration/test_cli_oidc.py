"""`identity-server oidc write` against an admin socket: files, flags, and what it says when it cannot."""

from __future__ import annotations

import json

import pytest

from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import Forbidden
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from tests.doubles.canned_daemon import canned_daemon
from tests.doubles.scripted_server import BUNDLE_SERVICE, command

KEY = spki_der(generate(KeyKind.EC_P256).public_key())


class Bundle:
    """GetBundle with these key IDs."""

    def __init__(self):
        self.key_ids, self.fail, self.asked = ["k1"], None, []

    async def GetBundle(self, request, _context):
        self.asked.append(request)
        if self.fail:
            raise self.fail
        keys = [{"key_id": name, "public_key": KEY} for name in self.key_ids]
        return bundle_types.Bundle(trust_domain="example.org", jwt_authorities=keys)


@pytest.fixture
def server(tmp_path, monkeypatch):
    answers = Bundle()
    with canned_daemon(tmp_path / "a.sock", {BUNDLE_SERVICE: answers}) as path:
        monkeypatch.setenv("SPIRE_SERVER_PRIVATE_SOCKET", path)
        answers.path = path
        yield answers


def test_both_files_are_written_and_then_left_alone(server, tmp_path, capsys):
    site = tmp_path / "site"
    assert command("oidc", "write", "-issuer", "https://oidc.example.org", str(site)) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {site}/keys",
        f"wrote {site}/.well-known/openid-configuration",
    ]
    assert [key["kid"] for key in json.loads((site / "keys").read_bytes())["keys"]] == ["k1"]
    told = json.loads((site / ".well-known/openid-configuration").read_bytes())
    assert (told["issuer"], told["jwks_uri"]) == ("https://oidc.example.org", "https://oidc.example.org/keys")
    assert command("oidc", "write", "--issuer", "https://oidc.example.org", str(site)) == 0
    assert capsys.readouterr().out == "the files are up to date\n"
    (request, _) = server.asked
    assert request.output_mask.jwt_authorities
    assert not request.output_mask.x509_authorities


def test_a_file_of_settings_names_issuer_and_source_and_flags_win(server, tmp_path, capsys):
    config = tmp_path / "oidc.toml"
    config.write_text(
        f'jwt_issuer = "https://oidc.example.org"\nset_key_use = false\n[server_api]\naddress = "{server.path}"\n'
    )
    words = ("oidc", "write", "--config", str(config), "--jwks-uri", "https://cdn.example.org/keys", str(tmp_path))
    assert command(*words) == 0
    told = json.loads((tmp_path / ".well-known/openid-configuration").read_bytes())
    assert told["jwks_uri"] == "https://cdn.example.org/keys"
    assert "use" not in json.loads((tmp_path / "keys").read_bytes())["keys"][0]
    assert command(*words[:4], "--socket-path", server.path, str(tmp_path)) == 1
    assert "--config names the source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --issuer URL"),
        (("--issuer", "http://oidc.example.org"), 'must begin with "https://"'),
        (("--issuer", "https://oidc.example.org", "--jwks-uri", "keys"), "jwks_uri"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(server, tmp_path, capsys, words, said):
    assert command("oidc", "write", *words, str(tmp_path / "site")) == 1
    assert said in capsys.readouterr().err
    assert not server.asked
    assert not (tmp_path / "site").exists()


def test_a_server_without_keys_or_with_a_refusal_writes_nothing(server, tmp_path, capsys):
    site = tmp_path / "site"
    server.key_ids = []
    assert command("oidc", "write", "--issuer", "https://oidc.example.org", str(site)) == 1
    assert "no JWT keys" in capsys.readouterr().err
    server.fail = Forbidden("not for you")
    assert command("oidc", "write", "--issuer", "https://oidc.example.org", str(site)) == 1
    assert "not for you" in capsys.readouterr().err
    assert not site.exists()
