"""What the operator hands the agent to begin with: a join token, a trust bundle (file, URL, another agent)."""

from __future__ import annotations

import hashlib
import http
import http.client
import logging
import os
import secrets
import ssl
import stat
import time
from pathlib import Path

from attestors.api import NodeProver
from attestors.node.join_token import MAX_TOKEN_BYTES, JoinTokenProver, NoSettings, ProverPorts
from spiffe_core.bundle import TrustBundle
from spiffe_core.bundle_document import load_bundle, load_bundle_pem
from spiffe_core.errors import ConfigError, Forbidden, IdentityError, PreconditionFailed, Unavailable, Unbelieved
from spiffe_core.runtime.certificate_dates import dates_of
from spiffe_core.runtime.https_client import Exchange, TlsTarget, UnixTarget, cause_of
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.web_url import WebUrl
from spiffe_core.spiffe_id import TrustDomain
from workload_api.client import WorkloadApiClient

log = logging.getLogger(__name__)

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
FETCH_SECONDS = 30.0
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

    def read(self) -> TrustBundle | None:
        """As it stands now; None where no file is configured.

        Raises:
            ConfigError: naming the path.
        """
        return None if self._path is None else read_trust_bundle(self._path, self._form, self._trust_domain)

    async def bundle(self) -> TrustBundle | None:
        """The same."""
        return self.read()


class BundleUrl:
    """The trust bundle at a URL the operator named, fetched when the server has to be recognised and at no other time.

    Over https, believed for the certificates of the system's authorities and the URL's name; over http only on a Unix
    socket of this machine. No redirect is followed: it could lead anywhere.
    """

    def __init__(
        self,
        url: str,
        form: str,
        trust_domain: TrustDomain,
        *,
        unix_socket: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._where = WebUrl.parse(url, "https" if unix_socket is None else "http")
        self._form = form
        self._trust_domain = trust_domain
        self._unix_socket = unix_socket
        self._tls = tls
        self._fetching = Offload("bundle", 1)

    def read(self) -> TrustBundle | None:
        """Nothing: it is not known before it is needed."""
        return None

    async def bundle(self) -> TrustBundle | None:
        """As it stands now.

        Raises:
            ConfigError, Unavailable: naming the URL's host.
        """
        return await self._fetching(self._fetch)

    def _fetch(self) -> TrustBundle:
        where, deadline = self._where, time.monotonic() + FETCH_SECONDS
        name = f"trust_bundle_url: {where.authority}"
        target: TlsTarget | UnixTarget
        if self._unix_socket is None:
            target = TlsTarget(where.host, where.port, self._tls or ssl.create_default_context())
        else:
            target = UnixTarget(str(self._unix_socket))
        headers = {"Host": where.authority, "Accept": "*/*"}
        try:
            answer = Exchange(deadline=deadline, limit=MAX_BUNDLE_BYTES).run(target, "GET", where.path, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            text, reason = f"{name}: {cause_of(error)}", dates_of(error)
            raise (Unavailable(text) if reason is None else Unbelieved(text, reason)) from None
        if answer.status != http.HTTPStatus.OK:
            advice = "; redirects are not followed: name the last URL" if answer.location else ""
            raise Unavailable(f"{name}: answered with HTTP status {answer.status}{advice}")
        return _loaded(answer.body, self._form, self._trust_domain, name, "trust_bundle_url")


class BundleFromAgent:
    """The own trust domain's bundle as another agent's Workload API gives it, asked when a server is to be recognised.

    Whoever listens on that socket is believed, as the operator says by naming it.
    """

    def __init__(self, address: str, trust_domain: TrustDomain) -> None:
        self._address = address
        self._trust_domain = trust_domain

    def read(self) -> TrustBundle | None:
        """Nothing: it is not known before it is needed."""
        return None

    async def bundle(self) -> TrustBundle | None:
        """As it stands now.

        Raises:
            Unavailable: naming the address and what is wrong.
        """
        name = f"trust_bundle_spiffe_workload_api: {self._address}"
        try:
            async with WorkloadApiClient(self._address) as client:
                found = await client.fetch_x509_bundles(timeout=FETCH_SECONDS)
        except Forbidden as error:
            raise Unavailable(
                f"{name}: gives this process no bundles ({error.public}); register an entry for it below that agent, "
                "or set allow_unauthenticated_verifiers there"
            ) from error
        except IdentityError as error:
            raise Unavailable(f"{name}: {error.public}") from error
        bundle = found.get(self._trust_domain)
        if bundle is None or not bundle.x509_authorities:
            raise Unavailable(
                f"{name}: has no bundle of the trust domain {self._trust_domain}; ask an agent of that one"
            )
        return bundle


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
    return _loaded(data, form, trust_domain, f"trust_bundle_path: {path}", "trust_bundle_path")


def _loaded(data: bytes, form: str, trust_domain: TrustDomain, name: str, field: str) -> TrustBundle:
    load = load_bundle_pem if form == "pem" else load_bundle
    try:
        loaded = load(data, trust_domain)
    except IdentityError as error:
        raise ConfigError(f"{name} is not a trust bundle in the form {form!r}: {error.public}", field=field) from error
    for warning in loaded.warnings:
        log.warning("%s: %s", name, warning)
    if not loaded.bundle.x509_authorities:
        raise ConfigError(f"{name} holds no X.509 authority", field=field)
    return loaded.bundle
