"""Keys that are gone with the process."""

from __future__ import annotations

from identity_server.keys.slots import Keys, with_key
from spiffe_core.crypto.keys import AuthorityKey, AuthorityPublicKey, KeyKind, generate_authority_key


class MemoryKeys:
    """Keys that live as long as the process: after a restart the server makes a new authority."""

    persistent = False
    location = "memory"
    trouble = ""

    def __init__(self) -> None:
        self._keys: Keys = {}

    def check(self) -> None:
        """Nothing to ask: what signs is in memory."""

    def generate(self, slot: str, kind: KeyKind) -> AuthorityPublicKey:
        """Make a key in `slot`, replacing what was there."""
        key = generate_authority_key(kind)
        self._keys = with_key(self._keys, slot, key)
        return key.public_key()

    def signer(self, slot: str) -> AuthorityKey | None:
        """The key in `slot`, or None."""
        return self._keys.get(slot)

    def delete(self, slot: str) -> None:
        """Empty the slot."""
        self._keys = {name: key for name, key in self._keys.items() if name != slot}

    def list(self) -> tuple[str, ...]:
        """The slots that hold a key, in order."""
        return tuple(sorted(self._keys))
