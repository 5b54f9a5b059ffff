"""An admin socket that answers as a test wants, and the command line that asks it."""

from grpc_health.v1 import health_pb2

from identity_server.cli import main
from spiffe_core.crypto.csr import parse_csr
from spiffe_core.errors import Conflict, NotFound
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.types import agent_pb2 as agent_types
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as bundle_types
from spiffe_core.wire._gen.spire.api.types import entry_pb2 as entry_types
from spiffe_core.wire._gen.spire.api.types import jointoken_pb2
from spiffe_core.wire.status import item_status
from tests.authority import SpiffeTestCA
from tests.doubles.canned_daemon import leave_code

ENTRY_SERVICE = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
AGENT_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
BUNDLE_SERVICE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
SVID_SERVICE = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
AGENT = agent_types.Agent(
    id={"trust_domain": "example.org", "path": "/spire/agent/join_token/t"},
    attestation_type="join_token",
    x509svid_serial_number="12345",
    x509svid_expires_at=1_800_000_000,
    selectors=[{"type": "a", "value": "b"}],
    agent_version="1.0",
)


class Server:
    """All services in one; remembers the requests, and raises `fail` when it is set."""

    def __init__(self):
        self.jwt_keys = []
        self.entries = []
        self.agents = [AGENT]
        self.requests = []
        self.fail = None
        self.endless = False
        self.ca = SpiffeTestCA("example.org")
        self.status = health_pb2.HealthCheckResponse.SERVING

    def seen(self, request):
        self.requests.append(request)
        if self.fail:
            raise self.fail

    async def ListEntries(self, request, context):
        self.seen(request)
        start = int(request.page_token or 0)
        page = self.entries[start : start + request.page_size]
        end = start + len(page)
        token = str(end) if end < len(self.entries) or self.endless else ""
        return entry_pb2.ListEntriesResponse(entries=page, next_page_token=token)

    async def GetEntry(self, request, context):
        self.seen(request)
        for entry in self.entries:
            if entry.id == request.id:
                return entry
        raise NotFound("entry not found")

    async def CountEntries(self, request, context):
        self.seen(request)
        return entry_pb2.CountEntriesResponse(count=len(self.entries))

    async def BatchCreateEntry(self, request, context):
        self.seen(request)
        answer = entry_pb2.BatchCreateEntryResponse()
        for entry in request.entries:
            similar = [known for known in self.entries if known.spiffe_id == entry.spiffe_id]
            if similar:
                status = item_status(Conflict("similar entry already exists"))
                answer.results.add(status=status, entry=similar[0])
            else:
                created = entry_types.Entry()
                created.CopyFrom(entry)
                created.id = entry.id or f"new{len(self.entries)}"
                self.entries.append(created)
                answer.results.add(status=item_status(None), entry=created)
        return answer

    async def BatchUpdateEntry(self, request, context):
        self.seen(request)
        answer = entry_pb2.BatchUpdateEntryResponse()
        for entry in request.entries:
            if any(known.id == entry.id for known in self.entries):
                answer.results.add(status=item_status(None), entry=entry)
            else:
                answer.results.add(status=item_status(NotFound("entry not found")))
        return answer

    async def BatchDeleteEntry(self, request, context):
        self.seen(request)
        known = {entry.id for entry in self.entries}
        answer = entry_pb2.BatchDeleteEntryResponse()
        for entry_id in request.ids:
            error = None if entry_id in known else NotFound("entry not found")
            answer.results.add(status=item_status(error), id=entry_id)
        return answer

    async def ListAgents(self, request, context):
        self.seen(request)
        return agent_pb2.ListAgentsResponse(agents=self.agents, next_page_token="again" if self.endless else "")

    async def CountAgents(self, request, context):
        self.seen(request)
        return agent_pb2.CountAgentsResponse(count=len(self.agents))

    async def GetAgent(self, request, context):
        self.seen(request)
        return AGENT

    async def BanAgent(self, request, context):
        self.seen(request)
        return b""

    async def DeleteAgent(self, request, context):
        self.seen(request)
        return b""

    async def CreateJoinToken(self, request, context):
        self.seen(request)
        return jointoken_pb2.JoinToken(value="the-token", expires_at=99)

    async def GetBundle(self, request, context):
        roots = [{"asn1": authority.der} for authority in self.ca.bundle().x509_authorities]
        return bundle_types.Bundle(
            trust_domain="example.org", x509_authorities=roots, jwt_authorities=self.jwt_keys, sequence_number=3
        )

    async def CountBundles(self, request, context):
        return bundle_pb2.CountBundlesResponse(count=1)

    async def MintX509SVID(self, request, context):
        self.seen(request)
        csr = parse_csr(request.csr)
        issued = self.ca.issue(csr.uri_sans[0])
        return svid_pb2.MintX509SVIDResponse(svid={"cert_chain": issued.chain, "expires_at": 99})

    async def Check(self, request, context):
        self.seen(request)
        return health_pb2.HealthCheckResponse(status=self.status)


def command(*words):
    return leave_code(main, *words)


def printed(capsys):
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out
