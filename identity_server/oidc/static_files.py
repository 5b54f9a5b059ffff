"""Both documents as files below one directory, for a bucket or any web server that only serves files.

    DIR/.well-known/openid-configuration
    DIR/keys

The directory stands for the issuer's URL. Each file is replaced in one step (a reader has the old or the new one), the
keys before the configuration that points at them, and a file whose content is right is left alone, so that tools that
go by modification times upload nothing twice.
"""

from __future__ import annotations

from pathlib import Path

from identity_server.domain.oidc_documents import KEYS, WELL_KNOWN, Documents
from spiffe_core.errors import ConfigError
from spiffe_core.runtime.durable import write_durably

MODE = 0o644
DIRECTORY_MODE = 0o755


def write_files(directory: Path, documents: Documents) -> tuple[Path, ...]:
    """Bring the files up to date; those that were written.

    Raises:
        ConfigError: the documents are those of several issuers, or the directory cannot be used.
        Unavailable: the disk refused; what stood there stands there still.
    """
    found = set(documents.configuration.values())
    if len(found) != 1:
        raise ConfigError(
            "a directory holds the documents of one issuer; set jwt_issuer, or name one domain", field="domains"
        )
    wanted = {KEYS: documents.keys, WELL_KNOWN: found.pop()}
    written = []
    for name, data in wanted.items():
        path = directory / name.lstrip("/")
        _directory(directory)
        _directory(path.parent)
        if _content(path) != data:
            write_durably(path, data, MODE)
            written.append(path)
    return tuple(written)


def _directory(path: Path) -> None:
    try:
        path.mkdir(DIRECTORY_MODE)
        path.chmod(DIRECTORY_MODE)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}", field="directory") from None


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if not path.is_symlink() else None
    except OSError:
        return None
