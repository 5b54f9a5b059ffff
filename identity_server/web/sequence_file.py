"""The published sequence number in a file of the data directory, which a restored database does not set back."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from identity_server.domain.bundle_sequence import Published
from spiffe_core.errors import IdentityError
from spiffe_core.runtime.durable import read_private, write_durably
from spiffe_core.runtime.offload import Offload

log = logging.getLogger(__name__)

_MAX_BYTES = 256


class SequenceFile:
    """The `SequenceMemory` of a server."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offload = Offload("sequence", 1)

    async def read(self) -> Published | None:
        """What was written last; None if nothing was, or it cannot be read."""
        return await self._offload(self._load)

    async def write(self, published: Published) -> None:
        """Durably."""
        data = json.dumps({"sequence": published.sequence, "seen_at": published.seen_at}) + "\n"
        await self._offload(write_durably, self._path, data.encode())

    def _load(self) -> Published | None:
        try:
            document = json.loads(read_private(self._path, max_bytes=_MAX_BYTES))
            return Published(int(document["sequence"]), int(document["seen_at"]))
        except FileNotFoundError:
            return None
        except (IdentityError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read, the trust bundle gets a new sequence number: %s", self._path, error)
            return None
