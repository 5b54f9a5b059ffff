"""The descriptors of the services this server offers."""

from spiffe_core.wire._gen.muniment.server.authorityorders.v1 import authorityorders_pb2
from spiffe_core.wire._gen.muniment.server.explain.v1 import explain_pb2
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2
from spiffe_core.wire._gen.muniment.server.propagation.v1 import propagation_pb2
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.debug.v1 import debug_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.localauthority.v1 import localauthority_pb2
from spiffe_core.wire._gen.spire.api.server.logger.v1 import logger_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire._gen.spire.api.server.trustdomain.v1 import trustdomain_pb2

AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
AUTHORITY_ORDERS = authorityorders_pb2.DESCRIPTOR.services_by_name["AuthorityOrders"]
BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
DEBUG = debug_pb2.DESCRIPTOR.services_by_name["Debug"]
ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
EXPLAIN = explain_pb2.DESCRIPTOR.services_by_name["Explain"]
FEDERATION = federation_pb2.DESCRIPTOR.services_by_name["Federation"]
LOGGER = logger_pb2.DESCRIPTOR.services_by_name["Logger"]
LOCAL_AUTHORITY = localauthority_pb2.DESCRIPTOR.services_by_name["LocalAuthority"]
PROPAGATION = propagation_pb2.DESCRIPTOR.services_by_name["Propagation"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
TRUST_DOMAIN = trustdomain_pb2.DESCRIPTOR.services_by_name["TrustDomain"]
