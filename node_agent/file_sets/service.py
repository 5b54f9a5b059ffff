"""Follows the Workload API and keeps every set of files current.

A set is written when its content differs from what was written last: the X.509 state arrived or changed, or a token
passed half of its life. A set that fails (a full disk, a reload that did not work) is tried again with growing pauses
and does not hold up the others; a token that cannot be had does not hold up the certificate beside it. While the agent
is away the files stay as they are. When the identity is taken away they stay as well, until they expire, and the log
says so: whoever reads them cannot be told.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from node_agent.file_sets.content import Content, chosen, token_files, x509_files
from node_agent.file_sets.notify import run_command, send_signal
from node_agent.file_sets.settings import FileSet, FilesSettings
from node_agent.file_sets.swap import Ownership, swap
from node_agent.services.steady_time import SteadyTime
from spiffe_core.clock import Clock
from spiffe_core.crypto.jose import read_compact, read_object
from spiffe_core.errors import ConfigError, Forbidden, IdentityError, InvalidRequest, Unavailable
from spiffe_core.runtime.durable import read_private
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import spawn
from spiffe_core.spiffe_id import SpiffeId
from workload_api.client import FetchedJwt, Redacted, WorkloadApiClient
from workload_api.x509_context import X509Context

log = logging.getLogger(__name__)

FIRST_RETRY = 1.0
LONGEST_RETRY = 30.0
LEAST_SECONDS = 0.1
MAX_PASSWORD_BYTES = 1024
_LEAST_TOKEN_LIFE = 2.0
T = TypeVar("T")


@dataclass(slots=True)
class _State:
    """One set: what stands in its directory, when it is to be looked at again, and how often it failed in a row."""

    wanted: FileSet
    owner: Ownership
    x509: tuple[tuple[X509Context, bytes, bytes], dict[str, Content]] | None = field(default=None, repr=False)
    written: dict[str, Content] = field(default_factory=dict, repr=False)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    tokens_for: SpiffeId | None = None
    tokens_due: float = 0.0
    to_notify: bool = False
    retry_at: float = 0.0
    failures: int = 0


class FileSets:
    """Belongs to the event loop's thread."""

    def __init__(self, settings: FilesSettings, client: WorkloadApiClient, clock: Clock) -> None:
        self._settings, self._client, self._clock = settings, client, clock
        self._steady = SteadyTime(clock)
        self._sets = [_State(one, ownership(one)) for one in settings.sets]
        self._context: X509Context | None = None
        self._wake = asyncio.Event()
        self._disk = Offload("files", 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._fatal: IdentityError | None = None

    async def run(self) -> None:
        """Live until cancelled.

        Raises:
            InvalidRequest, Unimplemented: the agent will never answer.
        """
        following = spawn(self._follow(), "follow the Workload API", self._tasks)
        try:
            while True:
                due = await self.write_due()
                if self._fatal is not None:
                    raise self._fatal
                await self._rest(due)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def once(self, seconds: float) -> None:
        """Write every set one time; an agent that is not up yet, and an entry that is not there yet, are waited for.

        Raises:
            IdentityError: a set could not be written, or there was no identity within `seconds`.
        """
        until = self._clock.monotonic() + seconds
        if any(one.wanted.wants_x509 for one in self._sets):
            self._context = await self._in_time(until, partial(self._first_context, until))
        for one in self._sets:
            try:
                await self._in_time(until, partial(self._bring_up_to_date, one))
            except OSError as error:
                raise Unavailable(_said(error)) from error

    async def _first_context(self, until: float) -> X509Context:
        return await self._client.fetch_x509(timeout=max(until - self._clock.monotonic(), LEAST_SECONDS))

    async def _in_time(self, until: float, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` gives, tried until it works or the time is up."""
        while True:
            left = until - self._clock.monotonic()
            try:
                return await attempt()
            except (Unavailable, Forbidden):
                if left <= FIRST_RETRY:
                    raise
            await self._clock.sleep(FIRST_RETRY)

    async def write_due(self) -> float | None:
        """Write what is due now; when to look again, on the steady line."""
        looks: list[float] = []
        for one in self._sets:
            now = self._steady.now()
            if one.wanted.wants_x509 and self._context is None:
                continue
            if now >= one.retry_at:
                try:
                    await self._bring_up_to_date(one)
                    one.failures, one.retry_at = 0, 0.0
                except (IdentityError, OSError) as error:
                    self._failed(one, error)
            if one.retry_at:
                looks.append(one.retry_at)
            elif one.wanted.jwt or one.wanted.jwt_bundle:
                looks.append(one.tokens_due)
        return min(looks, default=None)

    async def _bring_up_to_date(self, one: _State) -> None:
        trouble = await self._refresh_tokens(one)
        files = self._content(one)
        if files != one.written:
            await self._disk(swap, one.wanted.directory, files, one.owner)
            one.written, one.to_notify = files, True
            log.info("wrote %d files", len(files), extra={"facts": {"directory": str(one.wanted.directory)}})
        if one.to_notify:
            await self._notify(one.wanted)
            one.to_notify = False
        if trouble is not None:
            raise trouble

    def _content(self, one: _State) -> dict[str, Content]:
        files: dict[str, Content] = {}
        wanted = one.wanted
        if wanted.wants_x509 and self._context is not None:
            files.update(self._x509_files(one, self._context))
        files.update(token_files(one.tokens))
        if wanted.jwt_bundle:
            files[wanted.jwt_bundle] = Content(files[wanted.jwt_bundle].data)  # no secret
        return files

    async def _refresh_tokens(self, one: _State) -> IdentityError | None:
        """Fetch tokens that are due; why that failed, where those at hand still go with the certificate.

        Raises:
            IdentityError: it failed, and the set would not be whole, or of one identity, with what is at hand.
        """
        wanted = one.wanted
        spiffe_id = SpiffeId.parse(wanted.spiffe_id) if wanted.spiffe_id else None
        if wanted.wants_x509 and self._context is not None:
            spiffe_id = chosen(self._context, wanted).spiffe_id
        if not wanted.jwt and not wanted.jwt_bundle:
            return None
        if spiffe_id == one.tokens_for and self._steady.now() < one.tokens_due:
            return None
        try:
            await self._fetch_tokens(one, spiffe_id)
        except IdentityError as error:
            if not one.tokens or one.tokens_for != spiffe_id:
                raise
            return error
        return None

    def _x509_files(self, one: _State, context: X509Context) -> dict[str, Content]:
        """As before while nothing they are made of has changed: stores differ each time they are made."""
        wanted = one.wanted
        made_of = (
            context,
            _password(wanted.pkcs12_password_file, "pkcs12_password_file"),
            _password(wanted.jks_password_file, "jks_password_file"),
        )
        if one.x509 is None or one.x509[0] != made_of:
            one.x509 = made_of, x509_files(context, wanted, *made_of[1:])
        return one.x509[1]

    async def _fetch_tokens(self, one: _State, spiffe_id: SpiffeId | None) -> None:
        tokens: dict[str, str] = {}
        life = 600.0
        for file in one.wanted.jwt:
            fetched = _chosen_token(await self._client.fetch_jwt(file.audience, spiffe_id=spiffe_id), one.wanted)
            tokens[file.name] = fetched.token
            life = min(life, _end_of(fetched.token) - self._clock.now().timestamp())
        if one.wanted.jwt_bundle:
            bundles = await self._client.fetch_jwt_bundles()
            owner = spiffe_id or (await self._client.fetch_x509()).default.spiffe_id
            tokens[one.wanted.jwt_bundle] = _own_bundle(bundles, str(owner.trust_domain.id))
            life = min(life, 120.0)
        one.tokens, one.tokens_for = tokens, spiffe_id
        one.tokens_due = self._steady.now() + max(life / 2, _LEAST_TOKEN_LIFE)

    async def _notify(self, wanted: FileSet) -> None:
        if wanted.command:
            await run_command(wanted.command, self._settings.command_seconds)
        if wanted.signal and wanted.pid_file is not None:
            send_signal(wanted.signal, wanted.pid_file)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._client.watch_x509(self._heard)) as updates:
                async for update in updates:
                    if isinstance(update, Redacted):
                        log.error("no identity is issued to this process; the files stay as they are until they expire")
                    else:
                        self._context = update
                        self._wake.set()
        except IdentityError as error:
            self._fatal = error
            self._wake.set()

    def _heard(self, error: IdentityError) -> None:
        if not isinstance(error, Forbidden):
            log.warning("the agent gives nothing new: %s", error.public)

    def _failed(self, one: _State, error: IdentityError | OSError) -> None:
        pause = min(FIRST_RETRY * 2.0**one.failures, LONGEST_RETRY)
        one.failures = min(one.failures + 1, 20)
        one.retry_at = self._steady.now() + pause
        text = error.public if isinstance(error, IdentityError) else _said(error)
        facts = {"directory": str(one.wanted.directory)}
        log.error("a set of files is not up to date, trying again in %.0f s: %s", pause, text, extra={"facts": facts})

    async def _rest(self, until: float | None) -> None:
        while not self._wake.is_set() and (until is None or self._steady.now() < until):
            await self._steady.wait(until, self._wake, keep=True)
        self._wake.clear()


def _said(error: OSError) -> str:
    """What the disk refused, and for which file if that is known."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename is not None else text


def ownership(wanted: FileSet) -> Ownership:
    """Names of users and groups as numbers.

    Raises:
        ConfigError: there is no such user or group, or this process may not give files away.
    """
    try:
        uid = pwd.getpwnam(wanted.owner).pw_uid if wanted.owner else None
        gid = grp.getgrnam(wanted.group).gr_gid if wanted.group else None
    except KeyError as error:
        raise ConfigError(f"{wanted.directory}: {error.args[0]}", field="owner") from None
    if uid is not None and uid != os.geteuid() and os.geteuid() != 0:
        raise ConfigError(f"{wanted.directory}: only root can give files to {wanted.owner}", field="owner")
    return Ownership(uid, gid, int(wanted.mode, 8), int(wanted.key_mode, 8))


def _password(path: Path | None, name: str) -> bytes:
    """What stands in the file now; empty without one."""
    if path is None:
        return b""
    password = read_private(path, max_bytes=MAX_PASSWORD_BYTES).strip()
    if not password:
        raise ConfigError(f"{path}: holds no password", field=name)
    return password


def _chosen_token(fetched: Sequence[FetchedJwt], wanted: FileSet) -> FetchedJwt:
    """The token of the identity a set is written for; which one that is, its certificate has told if it has one.

    Raises:
        ConfigError: no identity of this process has that hint.
    """
    if wanted.wants_x509 or not wanted.hint:
        return fetched[0]
    for one in fetched:
        if one.hint == wanted.hint:
            return one
    raise ConfigError(f"{wanted.directory}: no identity of this process has the hint {wanted.hint}", field="hint")


def _end_of(token: str) -> float:
    """When a token ends, by what it says itself; it is not verified here."""
    end = read_object(read_compact(token).payload, "payload").get("exp")
    if not isinstance(end, int | float):
        raise InvalidRequest("the agent's token has no end")
    return float(end)


def _own_bundle(bundles: Mapping[str, bytes], trust_domain: str) -> str:
    found = bundles.get(trust_domain)
    if found is None:
        raise Unavailable("the agent sent no JWT bundle of the own trust domain")
    return found.decode("utf-8")
