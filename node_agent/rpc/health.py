"""grpc.health.v1.Health as SPIRE answers it (spire_wire section 5.8): overall health only, no watch, no list.

Served on the workload socket without the security header, because probes cannot send it (architecture A4, D8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from spiffe_core.errors import InvalidRequest
from spiffe_core.wire.services import handlers

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]


class Health:
    """Says whether this agent is a member of its trust domain, knows its entries, and is not going down."""

    def __init__(self, serving: Callable[[], bool]) -> None:
        self._serving = serving

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the front door."""
        return handlers(SERVICE, self)

    async def Check(self, request: Any, _context: Any) -> Any:
        """SERVING or NOT_SERVING."""
        if request.service:
            raise InvalidRequest("per-service health is not supported", field="service")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self._serving() else status.NOT_SERVING)
