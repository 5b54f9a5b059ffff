"""spire.api.server.debug.v1.Debug (spire_wire section 5.7), for local callers."""

from __future__ import annotations

from identity_server.rpc.caller import Context
from identity_server.services.server_info import ServerInfo
from spiffe_core.crypto.summary import summary_of
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.server.debug.v1 import debug_pb2

_MOST = 2**31 - 1


class DebugApi:
    """What the server is and what it holds."""

    def __init__(self, info: ServerInfo) -> None:
        self._info = info

    async def GetInfo(self, _request: debug_pb2.GetInfoRequest, _context: Context) -> debug_pb2.GetInfoResponse:
        """Certificates, uptime and counts."""
        info = await self._info.get()
        return debug_pb2.GetInfoResponse(
            svid_chain=[_certificate(der) for der in info.chain],
            uptime=min(info.uptime_seconds, _MOST),
            agents_count=min(info.agents, _MOST),
            entries_count=min(info.entries, _MOST),
            federated_bundles_count=min(info.bundles, _MOST),
        )


def _certificate(der: bytes) -> debug_pb2.GetInfoResponse.Cert:
    certificate = summary_of(der)
    shown = debug_pb2.GetInfoResponse.Cert(expires_at=certificate.expires_at, subject=certificate.subject)
    if certificate.spiffe_id is not None:
        shown.id.CopyFrom(convert.spiffe_id_to_proto(certificate.spiffe_id))
    return shown
