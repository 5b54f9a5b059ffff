"""spire.api.server.debug.v1.Debug (spire_wire section 5.7), for local callers."""

from __future__ import annotations

from cryptography import x509

from identity_server.rpc.caller import Context
from identity_server.services.server_info import ServerInfo
from spiffe_core.errors import InvalidId
from spiffe_core.spiffe_id import SpiffeId
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
    certificate = x509.load_der_x509_certificate(der)
    shown = debug_pb2.GetInfoResponse.Cert(
        expires_at=int(certificate.not_valid_after_utc.timestamp()), subject=certificate.subject.rfc4514_string()
    )
    spiffe_id = _spiffe_id(certificate)
    if spiffe_id is not None:
        shown.id.CopyFrom(convert.spiffe_id_to_proto(spiffe_id))
    return shown


def _spiffe_id(certificate: x509.Certificate) -> SpiffeId | None:
    """The SPIFFE ID of a leaf or an authority; a root need not have one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uris[0]) if len(uris) == 1 else None
    except (x509.ExtensionNotFound, ValueError, InvalidId):
        return None
