"""`identity-server logger`: how much the running server logs."""

from __future__ import annotations

from typing import Any, Final

from identity_server.cli.server import Service, server_channel, server_flags
from spiffe_core.terminal.logger import logger_group
from spiffe_core.wire._gen.spire.api.server.logger.v1 import logger_pb2

SERVICE: Final = logger_pb2.DESCRIPTOR.services_by_name["Logger"]


def _ask(method: str, request: Any, place: dict[str, Any]) -> Any:
    with server_channel(**place) as channel:
        return Service(channel, SERVICE)(method, request)


group = logger_group("identity-server", "server", SERVICE, server_flags, _ask)
