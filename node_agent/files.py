"""What the operator hands the agent as files: a join token, a trust bundle to begin with."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from pathlib import Path

from attestors.api import NodeProver
from attestors.node.join_token import MAX_TOKEN_BYTES, JoinTokenProver, NoSettings, ProverPorts
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import load_bundle, load_bundle_pem
from spiffe_core.errors import ConfigError, IdentityError, PreconditionFailed
from spiffe_core.spiffe_id import TrustDomain

log = logging.getLogger(__name__)

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
WHAT_TO_DO = (
    "a new join token is needed: run `identity-server token generate` on the server and put the token into the file "
    "that join_token_file names; it is read again without a restart"
)


class JoinTokenCredentials:
    """A join token: from a file that is read anew for each attempt, or given once on the command line."""

    advice = WHAT_TO_DO
    one_use = True

    def __init__(self, file: Path | None, value: str = "") -> None:
        self._file = file
        self._value = value
        self._salt = secrets.token_bytes(16)
        self._warned = False

    def fingerprint(self) -> str:
        """Differs whenever the token does; "" when there is none."""
        token = self._read()
        return hashlib.sha256(self._salt + token.encode()).hexdigest() if token else ""

    def prover(self) -> NodeProver:
        """Present the token as it stands now."""
        token = self._read()
        if not token:
            where = f"{self._file} holds no join token" if self._file is not None else "no join token was given"
            raise PreconditionFailed(where)
        return JoinTokenProver(NoSettings(), ProverPorts(token=lambda: token))

    def _read(self) -> str:
        if self._file is None:
            return self._value
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return self._value
        with os.fdopen(descriptor, "rb") as file:
            self._look_at_mode(os.fstat(descriptor).st_mode)
            data = file.read(MAX_TOKEN_BYTES + 64) or b""
        return data.decode("ascii", "replace").strip() or self._value

    def _look_at_mode(self, mode: int) -> None:
        if stat.S_ISREG(mode) and mode & 0o077 and not self._warned:
            self._warned = True
            log.warning("%s holds a join token and can be read by others; chmod 0600 it", self._file)


class ProverCredentials:
    """A node attestor that proves the node by what it finds on it, and may do so again and again."""

    one_use = False

    def __init__(self, prover: NodeProver) -> None:
        self._prover = prover
        self.advice: str = getattr(prover, "advice", f"look at [attestors.{prover.name}] and at the server's log")

    def fingerprint(self) -> str:
        """Differs whenever the evidence does, if the attestor can tell; "" if not."""
        return str(getattr(self._prover, "fingerprint", str)())

    def prover(self) -> NodeProver:
        """Present the evidence as it stands now."""
        return self._prover


class BundleFile:
    """The trust bundle an operator put on the node, read at each use: a new one needs no restart."""

    def __init__(self, path: Path | None, form: str, trust_domain: TrustDomain) -> None:
        self._path = path
        self._form = form
        self._trust_domain = trust_domain

    def bundle(self) -> TrustBundle | None:
        """As it stands now; None where no file is configured."""
        return None if self._path is None else read_trust_bundle(self._path, self._form, self._trust_domain)


def read_trust_bundle(path: Path, form: str, trust_domain: TrustDomain) -> TrustBundle:
    """The bundle an operator gave the agent to begin with: PEM certificates, or a SPIFFE bundle document.

    Raises:
        ConfigError: naming the path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"trust_bundle_path: {path} cannot be read: {error.strerror}; "
            "write it with `identity-server bundle show > FILE`",
            field="trust_bundle_path",
        ) from error
    if len(data) > MAX_BUNDLE_BYTES:
        raise ConfigError(
            f"trust_bundle_path: {path} is larger than {MAX_BUNDLE_BYTES} bytes", field="trust_bundle_path"
        )
    load = load_bundle_pem if form == "pem" else load_bundle
    try:
        loaded = load(data, trust_domain)
    except IdentityError as error:
        raise ConfigError(
            f"trust_bundle_path: {path} is not a trust bundle in the form {form!r}: {error.public}",
            field="trust_bundle_path",
        ) from error
    for warning in loaded.warnings:
        log.warning("%s: %s", path, warning)
    if not loaded.bundle.x509_authorities:
        raise ConfigError(f"trust_bundle_path: {path} holds no X.509 authority", field="trust_bundle_path")
    return loaded.bundle
