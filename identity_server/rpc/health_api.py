"""grpc.health.v1.Health as SPIRE answers it (spire_wire section 5.8): overall health only, no watch, no list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health_pb2

from identity_server.rpc.caller import Context
from spiffe_core.errors import InvalidRequest


class HealthApi:
    """Says whether this server can do its work: it has a state, an active authority and is not going down."""

    def __init__(self, serving: Callable[[], bool]) -> None:
        self._serving = serving

    async def Check(self, request: Any, _context: Context) -> Any:
        """SERVING or NOT_SERVING."""
        if request.service:
            raise InvalidRequest("per-service health is not supported", field="service")
        status = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(status=status.SERVING if self._serving() else status.NOT_SERVING)


SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]
