"""spire.agent.debug.v1.Debug, on the admin socket (spire_wire section 6.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from spiffe_core.crypto.summary import CertificateSummary, summary_of
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.agent.debug.v1 import debug_pb2
from spiffe_core.wire.services import handlers

SERVICE = debug_pb2.DESCRIPTOR.services_by_name["Debug"]
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What the agent is and what it holds. Times are unix seconds; 0 for never."""

    svid_chain: tuple[bytes, ...]
    uptime_seconds: int
    last_sync_success: int
    x509_svids: int
    jwt_svids: int


class DebugApi:
    """Answers with what `look` sees now."""

    def __init__(self, look: Callable[[], AgentInfo]) -> None:
        self._look = look

    def handler(self) -> grpc.GenericRpcHandler:
        """For the gRPC server behind the admin socket's front door."""
        return handlers(SERVICE, self)

    async def GetInfo(self, _request: Any, _context: Any) -> Any:
        """The agent's own certificates, uptime and counts."""
        info = self._look()
        return debug_pb2.GetInfoResponse(
            svid_chain=[_shown(summary_of(der)) for der in info.svid_chain],
            uptime=min(info.uptime_seconds, _MOST),
            svids_count=min(info.x509_svids, _MOST),
            last_sync_success=info.last_sync_success,
            cached_x509_svids_count=min(info.x509_svids, _MOST),
            cached_jwt_svids_count=min(info.jwt_svids, _MOST),
        )


def _shown(certificate: CertificateSummary) -> Any:
    shown = debug_pb2.GetInfoResponse.Cert(expires_at=certificate.expires_at, subject=certificate.subject)
    if certificate.spiffe_id is not None:
        shown.id.CopyFrom(convert.spiffe_id_to_proto(certificate.spiffe_id))
    return shown
