"""What the composition root opens, and the slice of the settings each part receives.

Each function takes the whole tree of settings and answers with one thing: the store, the keys, the node attestors, the
authorities' settings, the server's id. `bootstrap` puts them together.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from attestors.api import NodeVerifier
from attestors.registry import NODE_VERIFIERS
from identity_server.domain.rates import Rate
from identity_server.keys import DiskKeys, MemoryKeys, set_aside
from identity_server.ports import KeyManager, Store
from identity_server.rpc.throttle import LOOKUP_RATE, ThrottleSettings
from identity_server.services.authorities import Authorities, CaSettings, TokenSettings
from identity_server.services.authority_spread import AuthoritySpread
from identity_server.services.followers import Followers
from identity_server.services.own_progress import OwnProgress
from identity_server.services.progress import Progress
from identity_server.services.shared_progress import SharedProgress
from identity_server.settings import CaSubject, Pkcs11Section, RateLimitSection, ServerSettings
from identity_server.store.database import Access
from identity_server.store.sql_store import SqlStore
from spiffe_core.clock import Clock
from spiffe_core.crypto.keys import KeyKind
from spiffe_core.errors import ConfigError, CorruptState
from spiffe_core.runtime.durable import read_private, write_durably
from spiffe_core.runtime.offload import Offload
from spiffe_core.wire.entry_bytes import entry_bytes

log = logging.getLogger(__name__)

_ID_BYTES = 64


async def open_store(settings: ServerSettings, server_id: str, clock: Clock) -> SqlStore:
    """On a thread: a database server may take its time, and signals must be heard meanwhile."""
    database = settings.database
    return await Offload("store-open", 1)(
        SqlStore.open,
        settings.database_place,
        trust_domain=settings.trust_domain,
        server_id=server_id,
        encode=entry_bytes,
        clock=clock,
        access=Access(
            password_file=database.password_file,
            tls=database.tls,
            tls_ca_file=database.tls_ca_file,
            tls_cert_file=database.tls_cert_file,
            tls_key_file=database.tls_key_file,
        ),
    )


def new_id() -> str:
    """A fresh id: random, and nobody else's (a UUID of version 4, RFC 9562 section 5.4)."""
    data = bytearray(os.urandom(16))
    data[6], data[8] = data[6] & 0x0F | 0x40, data[8] & 0x3F | 0x80
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def node_verifiers(settings: ServerSettings, clock: Clock) -> dict[str, NodeVerifier]:
    """Join tokens, and each node attestor that has a table in the configuration."""
    tables: dict[str, dict[str, Any]] = {"join_token": {}, **settings.attestors}
    return {
        name: NODE_VERIFIERS.build(name, options, _verifier_ports(name, settings, clock))
        for name, options in tables.items()
    }


def _verifier_ports(name: str, settings: ServerSettings, clock: Clock) -> object | None:
    """What an attestor needs besides its table; imported only if it is configured."""
    if name == "x509pop":
        from attestors.node.x509pop import VerifierPorts

        return VerifierPorts(settings.trust_domain, clock.now)
    return None


async def open_keys(settings: ServerSettings, server_id: str, clock: Clock, *, reset_keys: bool) -> KeyManager:
    """On a thread if they are in a token, which may take its time."""
    if settings.ca.key_manager == "memory":
        return MemoryKeys()
    if settings.ca.pkcs11 is not None:
        return await Offload("keys-open", 1)(_token_keys, settings.ca.pkcs11, settings.data_dir, server_id, clock)
    path = settings.data_dir / "keys.json"
    aside = set_aside(path) if reset_keys else None
    if aside is not None:
        log.warning("the authority keys were set aside as %s; new ones are made", aside)
    return DiskKeys(path)


def _token_keys(section: Pkcs11Section, data_dir: Path, server_id: str, clock: Clock) -> KeyManager:
    """`--reset-keys` has nothing to set aside here: keys of ours that are still in the token stay in use."""
    try:
        from identity_server.keys.pkcs11 import Pkcs11Keys
        from identity_server.keys.token_link import TokenAddress
    except ModuleNotFoundError as error:
        raise ConfigError(
            'ca.key_manager: "pkcs11" needs the package python-pkcs11; install it from the sources: '
            'pip install ".[pkcs11]"',
            field="ca.key_manager",
        ) from error
    address = TokenAddress(
        module=section.module,
        pin_file=section.pin_file,
        refused=data_dir / "pkcs11-pin-refused",
        token=section.token,
        slot=section.slot,
    )
    return Pkcs11Keys(address, prefix=section.key_label_prefix, server_id=server_id, monotonic=clock.monotonic)


def ca_settings(settings: ServerSettings, server_id: str, *, reset_keys: bool) -> CaSettings:
    """What the authorities are like."""
    return CaSettings(
        trust_domain=settings.trust_domain,
        server_id=server_id,
        ca_ttl=settings.ca.ttl,
        key_kind=KeyKind(settings.ca.key_type),
        subject=_subject(settings.ca.subject),
        x509_ttl=settings.svid.default_x509_ttl,
        agent_ttl=settings.agent_ttl,
        jwt=_jwt_settings(settings),
        wit=_wit_settings(settings),
        reset_keys=reset_keys,
    )


def _jwt_settings(settings: ServerSettings) -> TokenSettings | None:
    if settings.jwt.disabled:
        return None
    kind = KeyKind(settings.jwt.key_type or settings.ca.key_type)
    return TokenSettings(settings.jwt.default_ttl, kind, settings.jwt.issuer)


def _wit_settings(settings: ServerSettings) -> TokenSettings | None:
    if not settings.wit.enabled:
        return None
    return TokenSettings(settings.wit.default_ttl, KeyKind(settings.wit.key_type or settings.ca.key_type))


def throttle_settings(section: RateLimitSection) -> ThrottleSettings:
    """The rate limits (architecture A17)."""
    return ThrottleSettings(
        attestation=Rate(section.attestation_per_second, section.attestation_burst) if section.attestation else None,
        signing=Rate(section.signing_per_second, section.signing_burst) if section.signing else None,
        wait_seconds=section.wait_seconds,
        lookups=LOOKUP_RATE if section.signing else None,
    )


def _subject(subject: CaSubject) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COUNTRY_NAME, text) for text in subject.country]
    parts += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, text) for text in subject.organization]
    if subject.common_name:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name))
    return x509.Name(parts)


def server_id_of(data_dir: Path) -> str:
    """This server's name in the database (architecture A15): made once, kept in the data directory."""
    path = data_dir / "server-id"
    try:
        text = read_private(path, max_bytes=_ID_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        fresh = new_id()
        write_durably(path, f"{fresh}\n".encode())
        return fresh
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise CorruptState(
            f"{path}: does not hold this server's id; restore it from a backup, or delete it to join the database as a "
            "new server with a new authority",
            path=str(path),
        ) from None


def progress_of(
    settings: ServerSettings, server_id: str, store: Store, followers: Followers, authorities: Authorities, clock: Clock
) -> tuple[Progress, SharedProgress | None]:
    """How far agents are, which authorities need not wait for; and what tells other servers where there may be some."""
    own = OwnProgress(store=store, followers=followers, clock=clock)
    shared = None
    if settings.database.shared:
        shared = SharedProgress(store=store, clock=clock, server_id=server_id, own=own)
    progress = Progress(own=own, shared=shared, clock=clock)
    spread = AuthoritySpread(store=store, progress=progress, shared=shared, server_id=server_id, clock=clock)
    authorities.waits.acknowledged, authorities.waits.told = spread.acknowledged, spread.told
    return progress, shared
