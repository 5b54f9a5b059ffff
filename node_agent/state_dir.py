"""The agent's state on disk: one file, `agent-state.json`, old or new and never half, for this user alone.

    {"version": 1, "trust_domain": "example.org", "reattestable": false,
     "svid": {"chain": [base64 DER...], "key": base64 PKCS#8, "renew_at": unix seconds},
     "pending_key": base64 PKCS#8,
     "bundle": {"sequence": 1, "refresh_hint": 0, "x509_authorities": [{"der": base64, "tainted": false}]}}

What cannot be read, is of a newer version, or belongs to another trust domain is refused with the path and left as it
is (R8, R9), unless the caller sets a damaged one aside; an SVID whose key is not its own counts as lost, and the rest
is kept (R10). The directory has mode 0700 and is locked: a second agent on it is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_agent.domain.node_state import NodeState, without_keys
from spiffe_core.bundle import TrustBundle, X509Authority
from spiffe_core.crypto.keys import PrivateKeyDer, from_pkcs8
from spiffe_core.errors import CorruptState, IdentityError, InvalidRequest
from spiffe_core.runtime.durable import (
    DirectoryLock,
    lock_directory,
    private_directory,
    read_private,
    remove_leftovers,
    rename_durably,
    write_durably,
)
from spiffe_core.spiffe_id import TrustDomain
from spiffe_core.x509_svid import X509Svid

log = logging.getLogger(__name__)

FILE_NAME = "agent-state.json"
DAMAGED_NAME = "agent-state.json.damaged"
VERSION = 1
MAX_BYTES = 16 * 1024 * 1024


class DamagedState(CorruptState):
    """The file is ours and this agent's, and its content cannot be read."""


class StateDirectory:
    """The directory of one agent, held for this process until `close()`.

    `keys`: whether keys stand on disk. Without, those of an earlier life are erased when they are found.
    """

    def __init__(self, path: Path, lock: DirectoryLock, *, keys: bool = True) -> None:
        self._lock = lock
        self._keys = keys
        self.path = path / FILE_NAME
        self._damaged = path / DAMAGED_NAME

    @classmethod
    def open(cls, path: Path, *, keys: bool = True) -> StateDirectory:
        """Make sure of the directory and lock it.

        Raises:
            ConfigError: it cannot be used. Conflict: another process uses it. CorruptState: something planted in it.
        """
        directory = private_directory(path)
        state = cls(directory, lock_directory(directory), keys=keys)
        remove_leftovers(state.path)
        return state

    def close(self) -> None:
        """Let the directory go."""
        self._lock.close()

    def load(self, trust_domain: TrustDomain) -> NodeState:
        """What the agent knew when it last ran; an empty state when it never did.

        Raises:
            CorruptState: naming the path and what to do.
        """
        try:
            data = read_private(self.path, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            return NodeState(trust_domain)
        state = parse_state(data, trust_domain, self.path)
        if self._keys or state == without_keys(state):
            return state
        log.info("%s: key_manager is memory; the key of an earlier life is erased", self.path)
        self.save(state)
        return without_keys(state)

    def set_aside(self, trust_domain: TrustDomain) -> NodeState:
        """Keep a file that cannot be read beside the one to come, and begin with nothing known."""
        if not self._keys:
            self.clear()
            log.error("%s could not be read and was erased; this agent joins anew as if it never had", self.path)
            return NodeState(trust_domain)
        rename_durably(self.path, self._damaged)
        log.error(
            "%s could not be read; it was renamed to %s, and this agent joins anew as if it never had",
            self.path,
            self._damaged.name,
        )
        return NodeState(trust_domain)

    def save(self, state: NodeState) -> None:
        """Replace what stands there, atomically and durably."""
        write_durably(self.path, dump_state(state if self._keys else without_keys(state)))

    def clear(self) -> None:
        """Delete it, and what was set aside: first nothing of value stands there, then nothing at all."""
        for path in (self.path, self._damaged):
            if path.exists():
                write_durably(path, b"{}")
                path.unlink()


def dump_state(state: NodeState) -> bytes:
    """The file's content."""
    document: dict[str, Any] = {
        "version": VERSION,
        "trust_domain": state.trust_domain.name,
        "reattestable": state.reattestable,
    }
    if state.svid is not None:
        document["svid"] = {
            "chain": [_text(der) for der in state.svid.chain],
            "key": _text(state.svid.key.reveal()),
            "renew_at": state.renew_at.timestamp() if state.renew_at is not None else 0,
        }
    if state.pending_key is not None:
        document["pending_key"] = _text(state.pending_key.reveal())
    if state.bundle is not None:
        document["bundle"] = {
            "sequence": state.bundle.sequence,
            "refresh_hint": state.bundle.refresh_hint,
            "x509_authorities": [
                {"der": _text(one.der), "tainted": one.tainted} for one in state.bundle.x509_authorities
            ],
        }
    return json.dumps(document, indent=1).encode()


def parse_state(data: bytes, trust_domain: TrustDomain, path: Path) -> NodeState:
    """Read the file's content, all of it or none.

    Raises:
        CorruptState: naming `path`; no part of the content is quoted.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _corrupt(path, "it is not JSON") from None
    if not isinstance(document, dict):
        raise _corrupt(path, "it is not a JSON object")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _corrupt(path, "it has no version number")
    if version > VERSION:
        raise CorruptState(
            f"{path} was written by a newer release (version {version}, this one knows {VERSION}); "
            "run that release, or move the file away to join anew",
            path=str(path),
        )
    if document.get("trust_domain") != trust_domain.name:
        raise CorruptState(
            f"{path} belongs to another trust domain than the configured {trust_domain}; "
            "correct trust_domain, or name another data_dir",
            path=str(path),
        )
    try:
        return _read(document, trust_domain, path)
    except (KeyError, TypeError, ValueError, OverflowError, OSError, binascii.Error) as error:
        raise _corrupt(path, f"a field is missing or has the wrong form ({type(error).__name__})") from None
    except IdentityError as error:
        raise _corrupt(path, error.public) from None


def _read(document: dict[str, Any], trust_domain: TrustDomain, path: Path) -> NodeState:
    reattestable = document.get("reattestable", False)
    if not isinstance(reattestable, bool):
        raise TypeError
    svid: X509Svid | None = None
    renew_at: datetime | None = None
    if "svid" in document:
        section = document["svid"]
        chain = tuple(_bytes(text) for text in section["chain"])
        key = PrivateKeyDer(_bytes(section["key"]))
        renew_at = datetime.fromtimestamp(section["renew_at"], UTC)
        svid = _svid(chain, key, trust_domain, path)
    pending: PrivateKeyDer | None = None
    if "pending_key" in document:
        pending = PrivateKeyDer(_bytes(document["pending_key"]))
        from_pkcs8(pending, field="pending_key")
    bundle: TrustBundle | None = None
    if "bundle" in document:
        section = document["bundle"]
        authorities = tuple(
            X509Authority(_bytes(one["der"]), tainted=one["tainted"] is True) for one in section["x509_authorities"]
        )
        bundle = TrustBundle(
            trust_domain, authorities, sequence=int(section["sequence"]), refresh_hint=int(section["refresh_hint"])
        )
    return NodeState(trust_domain, svid, renew_at if svid else None, reattestable, pending, bundle)


def _svid(chain: tuple[bytes, ...], key: PrivateKeyDer, trust_domain: TrustDomain, path: Path) -> X509Svid | None:
    """The agent's SVID; None, with a word in the log, when key and certificate do not belong together (R10)."""
    from_pkcs8(key, field="svid.key")
    try:
        svid = X509Svid.load(chain, key)
    except InvalidRequest as error:
        if error.field != "key":
            raise
        log.error("%s: the agent's SVID cannot be used and counts as lost: %s", path, error.public)  # noqa: TRY400  # the text says it all
        return None
    if svid.spiffe_id.trust_domain != trust_domain:
        raise InvalidRequest("the SVID is of another trust domain")
    return svid


def _corrupt(path: Path, why: str) -> DamagedState:
    return DamagedState(
        f"{path} cannot be read: {why}; restore it from a backup, or move it away to join anew", path=str(path)
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError
    return base64.b64decode(text, validate=True)
