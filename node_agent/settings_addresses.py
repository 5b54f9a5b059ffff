"""Addresses in the agent's settings: its servers, and who may be a delegate."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from spiffe_core.runtime.settings import parsed_by
from spiffe_core.runtime.settings_places import check_host
from spiffe_core.spiffe_id import SpiffeId

LARGEST_PORT = 65535
MAX_SERVERS = 32
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")


def server_address(text: str, port: int) -> tuple[str, int]:
    """A host name or an IP address, with `port` unless it names its own: `HOST:PORT`, `[IPV6]:PORT`."""
    found = _WITH_PORT.fullmatch(text)
    host = text if found is None else found[1] or found[2]
    port = port if found is None else int(found[3])
    if not 1 <= port <= LARGEST_PORT:
        raise ValueError(f"{text}: the port must lie between 1 and {LARGEST_PORT}")
    return check_host(host), port


def _listed(value: object) -> object:
    """One text, which may hold several addresses with commas between them, or a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


def _servers(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(texts) <= MAX_SERVERS:
        raise ValueError(f"must name between 1 and {MAX_SERVERS} servers")
    for text in texts:
        server_address(text, LARGEST_PORT)
    return texts


def _one_or_all(texts: tuple[str, ...]) -> str | tuple[str, ...]:
    return texts[0] if len(texts) == 1 else texts


Delegate = Annotated[SpiffeId, parsed_by(SpiffeId.parse), PlainSerializer(str)]
ServerAddresses = Annotated[
    tuple[str, ...], BeforeValidator(_listed), AfterValidator(_servers), PlainSerializer(_one_or_all)
]
