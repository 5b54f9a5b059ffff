"""spire.api.server.svid.v1.SVID (spire_wire section 5.4): X.509."""

from __future__ import annotations

from identity_server.rpc.agent_api import svid_to_proto
from identity_server.rpc.caller import Context, current_caller
from identity_server.services.issue_svids import IssueSvids, Terms, Wanted
from spiffe_core.errors import IdentityError
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire.status import item_status


class SvidApi:
    """X.509-SVIDs for workloads and for administrators."""

    def __init__(self, issue: IssueSvids) -> None:
        self._issue = issue

    async def MintX509SVID(
        self, request: svid_pb2.MintX509SVIDRequest, _context: Context
    ) -> svid_pb2.MintX509SVIDResponse:
        """Sign what an administrator's CSR asks for."""
        issued = self._issue.mint(current_caller(), request.csr, request.ttl)
        return svid_pb2.MintX509SVIDResponse(svid=svid_to_proto(issued))

    async def BatchNewX509SVID(
        self, request: svid_pb2.BatchNewX509SVIDRequest, _context: Context
    ) -> svid_pb2.BatchNewX509SVIDResponse:
        """One result per item: the entry's SPIFFE ID for the CSR's key."""
        wanted = [Wanted(item.entry_id, item.csr) for item in request.params]
        response = svid_pb2.BatchNewX509SVIDResponse()
        for answer in await self._issue.for_entries(current_caller(), wanted):
            if isinstance(answer, IdentityError):
                response.results.add(status=item_status(answer))
            else:
                response.results.add(status=item_status(None), svid=svid_to_proto(answer))
        return response


def terms_of(wire: bytes) -> Terms:
    """What of an entry's wire bytes goes into a certificate."""
    message = entry_types.Entry.FromString(wire)
    return Terms(message.x509_svid_ttl, tuple(message.dns_names))
