"""Keys that are made in a PKCS#11 token and never leave it. Needs the extra `muniment[pkcs11]`.

A slot's key pair is labelled `<key_label_prefix><slot>`. Its CKA_ID says whose it is and how new:

    4 bytes "mnmt", 12 bytes of SHA-256(server id, slot), 8 bytes counter

Only pairs with the right label *and* id are used, replaced or deleted; a foreign key under our label is left alone and
reported when it is in the way. A new pair gets the next count and then the older ones are removed, so a server killed
in between finds the newest whole pair, and what is left over goes with the next change. The private key must be
sensitive and not extractable, and prove itself with a trial signature before it is offered.

Public halves are kept in memory: `signer` and `list` never ask the token.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from identity_server.keys.slots import MAX_SLOTS, check_slot, well_formed
from identity_server.keys.token_keys import CURVES, RSA_BITS, der_signature, read_public_key, token_key
from identity_server.keys.token_link import Connection, TokenAddress, TokenLink
from spiffe_core.crypto.keys import KeyKind, PrivateKey, PublicKey
from spiffe_core.errors import Conflict, Internal, InvalidCertificate, InvalidRequest, Unavailable

log = logging.getLogger(__name__)

SIGN_SECONDS = 2.0
"""Signing is waited for on the event loop; a token that takes longer is cut off until it answers again."""
CHECK_SECONDS = 10.0
OPEN_SECONDS = 30.0
GENERATE_SECONDS = 120.0
MAX_OBJECTS = 10_000
"""Private keys looked through in a token that several programs share."""

_MAGIC = b"mnmt"
_OWNER_BYTES = 12
_COUNT_BYTES = 8
_TRIAL = b"Muniment: is this the private half?"


@dataclass(frozen=True, slots=True)
class _Held:
    """A slot's pair: its id in the token, and what signs with it."""

    key_id: bytes
    public_key: PublicKey
    signer: Any


class Pkcs11Keys:
    """Keys in a token, found again by label and id after a restart."""

    persistent = True

    def __init__(self, address: TokenAddress, *, prefix: str, server_id: str, monotonic: Callable[[], float]) -> None:
        """Open the token and find this server's keys.

        Raises:
            ConfigError: module, token or PIN are wrong.
            Unavailable: the token does not work now.
        """
        self._prefix, self._server_id = prefix, server_id
        self.location = str(address)
        self._link = TokenLink(address, monotonic)
        self._link.open(OPEN_SECONDS)
        self._keys: dict[str, _Held] = self._link.call(self._find_all, OPEN_SECONDS)
        self._gone: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Pkcs11Keys in {self.location}>"

    @property
    def trouble(self) -> str:
        """Why a key cannot be used now; "" if all could the last time. Never waits."""
        if self._link.trouble:
            return self._link.trouble
        if gone := sorted(self._gone & self._keys.keys()):
            return (
                f"{self.location} lost the key {self._prefix}{gone[0]}; restore it, or make a new authority with "
                "`identity-server localauthority`"
            )
        return ""

    def check(self) -> None:
        """Ask the token whether it still has every key; `trouble` has the answer. Blocks on the token."""
        look = partial(_missing, self._keys)
        try:
            gone = self._link.call(look, CHECK_SECONDS)
            if gone:  # a token that was pulled out shows nothing and says nothing
                self._link.distrust()
                gone = self._link.call(look, CHECK_SECONDS)
        except Unavailable:
            return  # the link keeps the reason
        self._gone = frozenset(gone)

    def generate(self, slot: str, kind: KeyKind) -> PublicKey:
        """Make a key pair in the token, then remove the slot's older ones. Blocks on the token.

        Raises:
            InvalidRequest: the slot's name, or a kind of key that no token makes.
            Conflict: a key that is not ours has the slot's label.
            Unavailable: the token cannot be used now.
        """
        check_slot(slot, self._keys)
        if kind not in CURVES and kind not in RSA_BITS:
            raise InvalidRequest(
                f"ca.key_type: {kind.value} keys cannot be made in a PKCS#11 token; "
                "use ec-p256, or another key manager",
                field="ca.key_type",
            )
        held = self._link.call(partial(self._generate, slot, kind), GENERATE_SECONDS)
        self._keys = {**self._keys, slot: held}
        self._gone -= {slot}
        return held.public_key

    def signer(self, slot: str) -> PrivateKey | None:
        """What signs with the key in `slot`, or None."""
        held = self._keys.get(slot)
        if held is None:
            return None
        key: PrivateKey = held.signer
        return key

    def delete(self, slot: str) -> None:
        """Remove the slot's pairs from the token. Blocks on the token."""
        if slot in self._keys:
            self._link.call(partial(self._remove_older, slot, None), GENERATE_SECONDS)
            self._keys = {name: held for name, held in self._keys.items() if name != slot}

    def list(self) -> tuple[str, ...]:
        """The slots that hold a key, in order."""
        return tuple(sorted(self._keys))

    def _owner(self, slot: str) -> bytes:
        """How the id of every pair of this server in `slot` begins."""
        named = hashlib.sha256(f"{self._server_id}\0{slot}".encode()).digest()
        return _MAGIC + named[:_OWNER_BYTES]

    def _find_all(self, connection: Connection) -> dict[str, _Held]:
        """The newest whole pair of each slot."""
        newest: dict[str, bytes] = {}
        for found in _bounded(connection.session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})):
            label, key_id = found[Attribute.LABEL], found[Attribute.ID]
            slot = label.removeprefix(self._prefix)
            if not label.startswith(self._prefix) or not well_formed(slot) or not key_id.startswith(self._owner(slot)):
                continue
            if key_id > newest.get(slot, b"") and self._whole(connection, slot, key_id):
                newest[slot] = key_id
        if len(newest) > MAX_SLOTS:
            raise Internal("the token holds more keys of this server than it has slots", slots=sorted(newest))
        return {slot: self._held(connection, slot, key_id) for slot, key_id in newest.items()}

    def _whole(self, connection: Connection, slot: str, key_id: bytes) -> bool:
        """Whether a pair can be used; a line in the log if not."""
        try:
            self._held(connection, slot, key_id)
        except (ValueError, InvalidCertificate, InvalidSignature, Unavailable, pkcs11.NoSuchKey) as error:
            facts = {"label": self._prefix + slot, "id": key_id.hex()}
            log.warning("a key pair in the token cannot be used", exc_info=error, extra={"facts": facts})
            return False
        return True

    def _held(self, connection: Connection, slot: str, key_id: bytes) -> _Held:
        """Read the public half and let the private half prove itself."""
        session = connection.session
        public = list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id}))
        private = _handle(connection, key_id)
        if len(public) != 1:
            raise ValueError(f"there are {len(public)} public keys of this id instead of one")
        if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
            raise ValueError("the private key may leave the token")
        key = read_public_key(public[0])
        _prove(connection, key_id, key)
        sign = partial(self._sign, slot, key_id)
        return _Held(key_id, key, token_key(f"{self._prefix}{slot} in {self.location}", key, sign))

    def _sign(self, slot: str, key_id: bytes, data: bytes, mechanism: Mechanism) -> bytes:
        def work(connection: Connection) -> bytes:
            try:
                signature: bytes = _handle(connection, key_id).sign(data, mechanism=mechanism)
            except (pkcs11.ObjectHandleInvalid, pkcs11.KeyHandleInvalid):
                connection.handles.pop(key_id, None)
                signature = _handle(connection, key_id).sign(data, mechanism=mechanism)
            return signature

        try:
            signature = self._link.call(work, SIGN_SECONDS)
        except Unavailable as error:
            if isinstance(error.__cause__, pkcs11.NoSuchKey):
                self._gone |= {slot}
            raise
        if slot in self._gone:
            self._gone -= {slot}
        return signature

    def _generate(self, slot: str, kind: KeyKind, connection: Connection) -> _Held:
        label, owner = self._prefix + slot, self._owner(slot)
        present = [
            found[Attribute.ID]
            for which in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
            for found in _bounded(connection.session.get_objects({Attribute.CLASS: which, Attribute.LABEL: label}))
        ]
        if not all(key_id.startswith(owner) for key_id in present):
            raise Conflict(
                f"{self.location} already holds a key labelled {label} that this server did not make; set another "
                "ca.pkcs11.key_label_prefix, or delete that key with the tool of the token's vendor"
            )
        count = max((int.from_bytes(key_id[len(owner) :]) for key_id in present), default=0) + 1
        key_id = owner + count.to_bytes(_COUNT_BYTES)
        _make_pair(connection, kind, label, key_id)
        try:
            held = self._held(connection, slot, key_id)
        except (ValueError, InvalidCertificate, InvalidSignature) as error:
            _destroy(connection, key_id)
            raise Unavailable(f"{self.location} made a key that cannot be used: {error}") from error
        try:
            self._remove_older(slot, key_id, connection)
        except pkcs11.PKCS11Error as error:  # the new key is good; the next change tries again
            log.warning("older keys could not be removed from the token", exc_info=error)
        return held

    def _remove_older(self, slot: str, keep: bytes | None, connection: Connection) -> None:
        label, owner = self._prefix + slot, self._owner(slot)
        for which in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            for found in _bounded(connection.session.get_objects({Attribute.CLASS: which, Attribute.LABEL: label})):
                key_id = found[Attribute.ID]
                if key_id.startswith(owner) and key_id != keep:
                    connection.handles.pop(key_id, None)
                    found.destroy()


def _make_pair(connection: Connection, kind: KeyKind, label: str, key_id: bytes) -> None:
    options: dict[str, Any] = {
        "id": key_id,
        "label": label,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": {
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.SIGN: True,
        },
    }
    if kind in CURVES:
        parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters(CURVES[kind])}
        connection.session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair(**options)
    else:
        connection.session.generate_keypair(KeyType.RSA, RSA_BITS[kind], **options)


def _handle(connection: Connection, key_id: bytes) -> Any:
    """The private key with this id in this session.

    Raises:
        NoSuchKey: there is not exactly one.
    """
    known = connection.handles.get(key_id)
    if known is not None:
        return known
    query = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}
    found: list[Any] = list(connection.session.get_objects(query))
    if len(found) != 1:
        raise pkcs11.NoSuchKey
    connection.handles[key_id] = found[0]
    return found[0]


def _missing(held: dict[str, _Held], connection: Connection) -> list[str]:
    """The slots whose private key the token does not show."""
    gone = []
    for slot, one in held.items():
        query = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: one.key_id}
        if not list(connection.session.get_objects(query)):
            gone.append(slot)
    return gone


def _prove(connection: Connection, key_id: bytes, key: PublicKey) -> None:
    """Raises InvalidSignature or ValueError if the private key is not this public key's."""
    private = _handle(connection, key_id)
    if isinstance(key, ec.EllipticCurvePublicKey):
        algorithm = ec.ECDSA(hashes.SHA256())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(_TRIAL)
        raw = private.sign(digest.finalize(), mechanism=Mechanism.ECDSA)
        key.verify(der_signature(raw, key.key_size), _TRIAL, algorithm)
    else:
        signature = private.sign(_TRIAL, mechanism=Mechanism.SHA256_RSA_PKCS)
        key.verify(signature, _TRIAL, padding.PKCS1v15(), hashes.SHA256())


def _destroy(connection: Connection, key_id: bytes) -> None:
    connection.handles.pop(key_id, None)
    for found in list(connection.session.get_objects({Attribute.ID: key_id})):
        found.destroy()


def _bounded(objects: Iterable[Any]) -> list[Any]:
    found = list(objects)
    if len(found) > MAX_OBJECTS:
        raise Internal(f"the token holds more than {MAX_OBJECTS} keys; give this server a token of its own")
    return found
