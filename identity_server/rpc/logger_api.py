"""spire.api.server.logger.v1.Logger (spire_wire section 5.7), for local callers."""

from __future__ import annotations

from identity_server.rpc.caller import Context, current_caller
from identity_server.services.server_log import ServerLog
from spiffe_core.errors import InvalidRequest
from spiffe_core.wire._gen.spire.api.server.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.types import logger_pb2 as logger_types

_LEVELS = {number: name.lower() for name, number in logger_types.LogLevel.items() if number}


class LoggerApi:
    """The level of the server's log."""

    def __init__(self, server_log: ServerLog) -> None:
        self._log = server_log

    async def GetLogger(self, _request: logger_pb2.GetLoggerRequest, _context: Context) -> logger_types.Logger:
        """The level now and the level at the start."""
        return self._shown()

    async def SetLogLevel(self, request: logger_pb2.SetLogLevelRequest, _context: Context) -> logger_types.Logger:
        """Turn the level."""
        if not request.new_level:
            raise InvalidRequest("newLevel value cannot be LogLevel_UNSPECIFIED", field="new_level")
        name = _LEVELS.get(request.new_level)
        if name is None:
            raise InvalidRequest("unsupported log level", field="new_level")
        self._log.turn(current_caller(), name)
        return self._shown()

    async def ResetLogLevel(self, _request: logger_pb2.ResetLogLevelRequest, _context: Context) -> logger_types.Logger:
        """Back to the level at the start."""
        self._log.reset(current_caller())
        return self._shown()

    def _shown(self) -> logger_types.Logger:
        return logger_types.Logger(
            current_level=self._log.current.upper(),
            launch_level=self._log.launch.upper(),
        )
