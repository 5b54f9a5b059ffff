"""Whether what an attestor asks, such as a kubelet or a container engine, answered when it was asked last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spiffe_core.errors import Unavailable


class Source:
    """One that is asked. `trouble` says why it could not tell, and what to do; "" while it tells. For any thread."""

    __slots__ = ("trouble",)

    def __init__(self) -> None:
        self.trouble = ""

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What is raised in here as Unavailable is the source's trouble; what ends well ends it."""
        try:
            yield
        except Unavailable as error:
            self.trouble = error.public
            raise
        self.trouble = ""


def trouble_of(*sources: Source) -> str:
    """All that is wrong with them, in one line."""
    return "; ".join(source.trouble for source in sources if source.trouble)
