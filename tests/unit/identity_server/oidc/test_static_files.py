"""The documents as files: both there, whole, readable by all, and touched only when they change."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from identity_server.domain.oidc_documents import Authority, Documents, Provider, render
from identity_server.oidc.static_files import write_files
from spiffe_core.bundle import JwtAuthority
from spiffe_core.crypto.keys import KeyKind, generate, spki_der
from spiffe_core.errors import ConfigError, CorruptState

PROVIDER = Provider((Authority("oidc.example.org"),))


def documents(*names: str, provider: Provider = PROVIDER) -> Documents:
    return render(provider, [JwtAuthority(name, spki_der(generate(KeyKind.EC_P256).public_key())) for name in names])


def test_the_directory_stands_for_the_issuers_url(tmp_path: Path) -> None:
    made = documents("k1")
    written = write_files(tmp_path / "site", made)
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "site/keys",
        "site/.well-known/openid-configuration",
    ]
    assert (tmp_path / "site/keys").read_bytes() == made.keys
    told = json.loads((tmp_path / "site/.well-known/openid-configuration").read_bytes())
    assert told["issuer"] == "https://oidc.example.org"
    for path in (*written, tmp_path / "site", tmp_path / "site/.well-known"):
        assert path.stat().st_mode & stat.S_IROTH, "a web server's user reads it"
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """A rotation touches the keys alone; a copying tool that goes by times uploads one file."""
    first = documents("k1")
    write_files(tmp_path, first)
    assert write_files(tmp_path, first) == ()
    assert write_files(tmp_path, documents("k1", "k2")) == (tmp_path / "keys",)
    (tmp_path / "keys").write_text("spoilt")
    assert write_files(tmp_path, first) == (tmp_path / "keys",)


def test_one_directory_is_one_issuer(tmp_path: Path) -> None:
    several = Provider((Authority("a.test"), Authority("b.test")))
    with pytest.raises(ConfigError, match="one issuer"):
        write_files(tmp_path, documents("k1", provider=several))
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_there_is_not_written_through(tmp_path: Path) -> None:
    """A link in place of a file would send our bytes elsewhere."""
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    site = tmp_path / "site"
    site.mkdir()
    (site / "keys").symlink_to(target)
    with pytest.raises(CorruptState, match="symbolic link"):
        write_files(site, documents("k1"))
    assert target.read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/site"):
        write_files(tmp_path / "file" / "site", documents("k1"))
