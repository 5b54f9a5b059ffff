"""The keys of this server's authorities: made, matched with the journal, given up, destroyed (architecture A12).

What touches a key store runs on the keys' own thread: RSA keys, disks and tokens take their time.
"""

from __future__ import annotations

from collections.abc import Iterable

from identity_server.domain.authority import Authority, SlotName, Slots, Status, key_slot
from identity_server.domain.issuance import parent_of
from identity_server.domain.orders import key_digest
from identity_server.ports import KeyManager
from identity_server.services.authority_lines import Line, belongs
from identity_server.services.tls_self_test import SelfTest
from spiffe_core.crypto.keys import AuthorityKey, ml_dsa_kind, spki_der
from spiffe_core.errors import CorruptState, Internal, PreconditionFailed
from spiffe_core.runtime.offload import Offload


class AuthorityKeys:
    """Knows which key is whose. `reset` gives up authorities whose keys are lost."""

    def __init__(self, manager: KeyManager, self_test: SelfTest, *, reset: bool) -> None:
        self._manager, self._self_test, self._reset = manager, self_test, reset
        self.offload = Offload("keys", 1)

    @property
    def trouble(self) -> str:
        """Why a key cannot be used now, "" if all can. For health."""
        return self._manager.trouble

    async def check(self) -> None:
        """Look whether the keys can be used, for `trouble`."""
        await self.offload(self._manager.check)

    def of(self, authority: Authority) -> AuthorityKey | None:
        """The authority's own key; None if its slot is empty or holds another one."""
        key = self._manager.signer(authority.key_slot)
        return key if belongs(authority, key) else None

    def lost(self, slots: Slots) -> tuple[Authority, ...]:
        """Authorities in force without their key, if they may be given up.

        Raises:
            CorruptState: they may not: the key store keeps its keys, and nobody said that they are lost.
        """
        lost = tuple(one for one in slots if one.status is not Status.OLD and self.of(one) is None)
        if lost and self._manager.persistent and not self._reset:
            raise CorruptState(
                f"{self._manager.location}: the key of the {lost[0].status.value} signing authority "
                f"{lost[0].authority_id} (slot {lost[0].key_slot}) is missing or another one. Restore it from a "
                "backup, or give the authority up and make a new one with `identity-server run --reset-keys`",
                authorities=[one.authority_id for one in lost],
            )
        return lost

    async def fresh(self, line: Line, slot: SlotName) -> AuthorityKey:
        """A new key in `slot`, in place of what was there."""
        return await self.offload(self._fresh, line, slot)

    def _fresh(self, line: Line, slot: SlotName) -> AuthorityKey:
        if line.key_kind.post_quantum:
            self._self_test(line.key_kind)
        name = key_slot(line.kind, slot)
        self._manager.generate(name, line.key_kind)
        key = self._manager.signer(name)
        if key is None:
            raise Internal("the key manager lost a key it just made", slot=name)
        return key

    async def require_verifiable(self, authority: Authority) -> None:
        """Refuse an authority of an experimental kind that our own TLS could not verify."""
        if authority.kind != "x509":
            return
        kind = ml_dsa_kind(parent_of(authority.certificate).public_key)
        if kind is not None:
            await self.offload(self._self_test, kind)

    async def delete(self, authorities: Iterable[Authority]) -> None:
        """Destroy the keys of authorities that are forgotten, as far as their slots still hold them."""
        for one in authorities:
            if self.of(one) is not None:
                await self.offload(self._manager.delete, one.key_slot)

    async def destroy(self, digest: bytes, journal: Iterable[Authority]) -> str:
        """Destroy the key with this digest; its slot, "" if there is none.

        Raises:
            PreconditionFailed: an authority of the journal has it.
        """
        for slot in self._manager.list():
            key = self._manager.signer(slot)
            if key is None or key_digest(spki_der(key.public_key())) != digest:
                continue
            if any(belongs(one, key) for one in journal):
                raise PreconditionFailed("the key belongs to an authority of the journal; revoke that first")
            await self.offload(self._manager.delete, slot)
            return slot
        return ""
