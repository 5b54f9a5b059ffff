"""The trust bundle in a file: replaced as a whole, so that whoever reads it finds the old one or the new one.

SPIFFE's document tells its sequence, so several servers may share such a file; the other formats cannot tell.
"""

from __future__ import annotations

import hashlib
import os
import stat

from identity_server.domain.publication import BundleFormat, Outcome, Present, Publication, may_write
from identity_server.settings_publish import PublishFileSection
from spiffe_core.bundle_document import MAX_DOCUMENT_BYTES, load_bundle
from spiffe_core.errors import ConfigError, InvalidBundle, Unavailable
from spiffe_core.runtime.durable import write_durably
from spiffe_core.spiffe_id import TrustDomain


class FileTarget:
    """One file."""

    def __init__(self, section: PublishFileSection) -> None:
        self._path = section.path
        self._mode = section.bits
        self.place = str(section.path)

    def put(self, ours: Publication) -> Outcome:
        """Replace the file unless it holds the same, or a newer one."""
        there, mode = self._present(ours.trust_domain, ours.format)
        if not may_write(ours, there, self.place) and mode == self._mode:
            return Outcome.UNCHANGED
        write_durably(self._path, ours.content, self._mode)
        return Outcome.WRITTEN

    def _present(self, trust_domain: TrustDomain, form: BundleFormat) -> tuple[Present | None, int]:
        """What the file holds, and its mode; None for something that is no bundle."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None, self._mode
        except OSError as error:
            kind = ConfigError if isinstance(error, PermissionError) else Unavailable
            raise kind(f"{self._path} could not be read: {error.strerror}; check its path, owner and mode") from None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            content = file.read(MAX_DOCUMENT_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
        sequence = None
        if form is BundleFormat.SPIFFE:
            try:
                sequence = load_bundle(content, trust_domain).bundle.sequence
            except InvalidBundle:
                sequence = None
        return Present(hashlib.sha256(content).hexdigest(), sequence), stat.S_IMODE(status.st_mode)
