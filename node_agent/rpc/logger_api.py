"""spire.api.agent.logger.v1.Logger, on the admin socket (spire_wire section 6.5)."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from spiffe_core.errors import InvalidRequest
from spiffe_core.runtime.logs import LogLevel
from spiffe_core.wire._gen.spire.api.agent.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.types import logger_pb2 as logger_types
from spiffe_core.wire.services import handlers

log = logging.getLogger(__name__)

SERVICE = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
_LEVELS = {number: name.lower() for name, number in logger_types.LogLevel.items() if number}


class LoggerApi:
    """The level of the agent's log."""

    def __init__(self, level: LogLevel) -> None:
        self._level = level

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the admin socket's front door."""
        return handlers(SERVICE, self)

    async def GetLogger(self, _request: Any, _context: Any) -> Any:
        """The level now and the level at the start."""
        return self._shown()

    async def SetLogLevel(self, request: Any, _context: Any) -> Any:
        """Turn the level."""
        if not request.new_level:
            raise InvalidRequest("newLevel value cannot be LogLevel_UNSPECIFIED", field="new_level")
        name = _LEVELS.get(request.new_level)
        if name is None:
            raise InvalidRequest("unsupported log level", field="new_level")
        return self._turned(name)

    async def ResetLogLevel(self, _request: Any, _context: Any) -> Any:
        """Back to the level at the start."""
        return self._turned(self._level.launch)

    def _turned(self, name: str) -> Any:
        log.warning("the log level is turned from %s to %s", self._level.current, name)
        self._level.turn(name)
        return self._shown()

    def _shown(self) -> Any:
        return logger_types.Logger(current_level=self._level.current.upper(), launch_level=self._level.launch.upper())
