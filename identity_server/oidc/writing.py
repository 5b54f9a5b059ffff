"""`identity-server oidc write`: the documents as files, once or on every change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from identity_server.domain.oidc_documents import Documents, render
from identity_server.oidc.held_keys import HeldKeys
from identity_server.oidc.sources import KeySource, follow_for_good, keep_asking, source_of
from identity_server.oidc.static_files import write_files
from identity_server.settings_oidc import OidcSettings
from spiffe_core.clock import Clock
from spiffe_core.errors import IdentityError, Unavailable
from spiffe_core.runtime.offload import Offload
from spiffe_core.runtime.supervise import Supervisor

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0

Tell = Callable[[Sequence[Path]], None]
"""Hears which files were written."""


async def write_once(settings: OidcSettings, directory: Path, tell: Tell) -> None:
    """Ask the source and write.

    Raises:
        IdentityError: the keys cannot be had, there are none, or the files cannot be written.
    """
    async with aclosing(_Source(source_of(settings))) as source:
        documents = render(settings.names(), await source.keys.ask())
    if not documents.key_ids:
        raise Unavailable("the trust domain has no JWT keys, so nothing was written; see jwt.disabled")
    tell(write_files(directory, documents))


async def write_on_change(settings: OidcSettings, directory: Path, clock: Clock, tell: Tell) -> None:
    """Write now and whenever the keys change. Lives until cancelled; what cannot be written is tried again.

    While the source is away the files stay as they are: whoever reads them cannot be told.
    """
    files = _Files(directory, clock, tell)
    held = HeldKeys(settings.names(), clock, keep=settings.keep_keys.total_seconds(), on_change=files.want)
    async with aclosing(_Source(source_of(settings))) as source, Supervisor() as tasks:
        tasks.start(keep_asking(source.keys, held, clock, settings.poll_interval.total_seconds()), "ask")
        tasks.start(follow_for_good(source.keys, held), "follow")
        tasks.start(files.keep(), "write")


class _Source:
    """A source as `aclosing` wants it."""

    def __init__(self, keys: KeySource) -> None:
        self.keys = keys

    async def aclose(self) -> None:
        await self.keys.close()


class _Files:
    """Writes the newest documents, one set at a time."""

    def __init__(self, directory: Path, clock: Clock, tell: Tell) -> None:
        self._directory = directory
        self._clock = clock
        self._tell = tell
        self._wanted: Documents | None = None
        self._wake = asyncio.Event()
        self._disk = Offload("oidc-write", 1)

    def want(self, documents: Documents) -> None:
        self._wanted = documents
        self._wake.set()

    async def keep(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            assert self._wanted is not None
            try:
                self._tell(await self._disk(write_files, self._directory, self._wanted))
            except IdentityError as error:
                log.error("the files are not up to date, trying again in %.0f s: %s", RETRY_SECONDS, error.public)  # noqa: TRY400  # the message says it all
                self._wake.set()
                await self._clock.sleep(RETRY_SECONDS)
