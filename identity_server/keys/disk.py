"""Keys in one private file.

The file is `{"keys": {slot: base64 of PKCS#8 DER}}`, mode 0600 in a 0700 directory, written by `write_durably`. It is
read once, at construction, and everything that is not exactly what `DiskKeys` writes is refused by path: a CA key is
never replaced silently.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from pathlib import Path

from identity_server.keys.slots import MAX_SLOTS, Keys, well_formed, with_key
from spiffe_core.crypto.keys import (
    AuthorityKey,
    AuthorityPublicKey,
    KeyKind,
    authority_from_pkcs8,
    generate_authority_key,
    to_pkcs8,
)
from spiffe_core.errors import ConfigError, CorruptState, InvalidCertificate
from spiffe_core.runtime.durable import private_directory, read_private, remove_leftovers, write_durably

MAX_FILE_BYTES = 256 * 1024
MAX_SET_ASIDE = 100


class DiskKeys:
    """Keys in one file that is rewritten whole on each change.

    A change is on the disk before it is visible here: if the write fails, the slot keeps its old key.
    """

    persistent = True
    trouble = ""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self.location = str(self._path)
        private_directory(self._path.parent)
        remove_leftovers(self._path)
        self._keys = _load(self._path)

    def check(self) -> None:
        """Nothing to ask: what signs is in memory."""

    def generate(self, slot: str, kind: KeyKind) -> AuthorityPublicKey:
        """Make a key in `slot`, replacing what was there. Blocks on the disk (and on RSA): not for the event loop."""
        key = generate_authority_key(kind)
        self._replace(with_key(self._keys, slot, key))
        return key.public_key()

    def signer(self, slot: str) -> AuthorityKey | None:
        """The key in `slot`, or None."""
        return self._keys.get(slot)

    def delete(self, slot: str) -> None:
        """Empty the slot. Blocks on the disk."""
        if slot in self._keys:
            self._replace({name: key for name, key in self._keys.items() if name != slot})

    def list(self) -> tuple[str, ...]:
        """The slots that hold a key, in order."""
        return tuple(sorted(self._keys))

    def _replace(self, keys: Keys) -> None:
        write_durably(self._path, _dump(keys))
        self._keys = keys


def set_aside(path: Path) -> Path | None:
    """Rename a keys file that is to be given up (`--reset-keys`); return its new name, or None if there was none.

    The operator decides when to delete it: it may hold keys whose certificates are still trusted.
    """
    path = Path(path)
    private_directory(path.parent)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CorruptState(
                f"{path} is not a regular file; find out who put it there, then remove it", path=str(path)
            )
        names = (path.with_name(f"{path.name}.set-aside-{number}") for number in range(1, MAX_SET_ASIDE + 1))
        aside = next((name for name in names if not os.path.lexists(name)), None)
        if aside is None:
            raise ConfigError(f"{path} was set aside {MAX_SET_ASIDE} times; delete old copies first", path=str(path))
        path.rename(aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} could not be set aside: {error.strerror}; check its owner and mode", path=str(path)
        ) from error
    return aside


def _dump(keys: Keys) -> bytes:
    encoded = {slot: base64.b64encode(to_pkcs8(key).reveal()).decode("ascii") for slot, key in sorted(keys.items())}
    return json.dumps({"keys": encoded}, indent=2).encode("ascii") + b"\n"


def _load(path: Path) -> Keys:
    try:
        data = read_private(path, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    except CorruptState as error:
        raise _refused(path, error.public) from None
    try:
        document = json.loads(data.decode("ascii"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):  # the cause is dropped: a JSONDecodeError carries the whole document
        raise _refused(path, "it is not the JSON document this server writes") from None
    if not isinstance(document, dict) or set(document) != {"keys"} or not isinstance(document["keys"], dict):
        raise _refused(path, 'it must be an object with the one member "keys", itself an object')
    if len(document["keys"]) > MAX_SLOTS:
        raise _refused(path, f"it holds more than {MAX_SLOTS} keys")
    return {slot: _load_key(path, slot, text) for slot, text in document["keys"].items()}


def _load_key(path: Path, slot: str, text: object) -> AuthorityKey:
    if not well_formed(slot):
        raise _refused(path, "a slot's name is not letters, digits and dashes")
    if not isinstance(text, str):
        raise _refused(path, f"the key in slot {slot} is not text")
    try:
        return authority_from_pkcs8(base64.b64decode(text, validate=True), field=slot)
    except binascii.Error:
        raise _refused(path, f"the key in slot {slot} is not base64") from None
    except InvalidCertificate as error:
        raise _refused(path, error.public) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _refused(path: Path, why: str) -> CorruptState:
    return CorruptState(
        f"{path}: {why}. Restore the file from a backup, or give its keys up and make a new authority with "
        "`identity-server run --reset-keys`",
        path=str(path),
    )
