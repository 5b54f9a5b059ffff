"""The URL of one document, taken apart: what an operator names as a place to read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

MAX_URL: Final = 2048
_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class WebUrl:
    """Whom to ask and for what. `path` holds the query too; `authority` is the host as the URL writes it."""

    host: str
    port: int
    path: str
    authority: str

    @classmethod
    def parse(cls, text: str, scheme: Literal["https", "http"]) -> WebUrl:
        """A URL of exactly that scheme.

        Raises:
            ValueError: which rule it breaks.
        """
        if not 0 < len(text) <= MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError(f"must have 1 to {MAX_URL} printable ASCII characters and no blanks")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme != scheme:
            raise ValueError(f"must begin with {scheme}://")
        if not host or "@" in parts.netloc or parts.fragment or port == 0:
            raise ValueError("must name a host, and no user and no fragment")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host, port or _PORTS[scheme], path, parts.netloc)
