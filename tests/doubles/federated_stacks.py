"""Trust domains as real processes on one machine, each with its bundle endpoint on loopback."""

from __future__ import annotations

import contextlib

import grpc

from deploy.demo.stack import LocalStack, free_port
from identity_server.rpc.services import BUNDLE
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.muniment.server.federation.v1 import federation_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire.services import Stub

FEDERATION = federation_pb2.DESCRIPTOR.services_by_name["Federation"]
WORKLOAD_API = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
HEADER = (("workload.spiffe.io", "true"),)


class FederatedStack(LocalStack):
    """A `LocalStack` with an https_spiffe endpoint, which may fetch from loopback. `tables` is added to [federation]."""

    def __init__(self, trust_domain, *, tables="", client="", hint="1s", **over):
        self.endpoint_port = free_port()
        self.url = f"https://127.0.0.1:{self.endpoint_port}/"
        self.own_id = f"spiffe://{trust_domain}/spire/server"
        federation = (
            f'[federation]\npublic_url = "{self.url}"\n'
            f'[federation.bundle_endpoint]\naddress = "127.0.0.1"\nport = {self.endpoint_port}\nrefresh_hint = "{hint}"\n'
            f'[federation.bundle_client]\nallowed_networks = ["127.0.0.0/8"]\nmin_interval = "1s"\n{client}\n{tables}\n'
        )
        over["server"] = over.get("server", "") + "\n" + federation
        super().__init__(trust_domain, **over)

    def invite(self):
        return self.admin("federation", "invite").strip()

    def accept(self, line):
        """Federate; the line for the way back."""
        return self.admin_json("federation", "accept", line, "--yes")["invitation"]

    def state_of(self, name):
        """What this server tells of its fetches."""
        answer = self.call(FEDERATION, "ListStates", federation_pb2.ListStatesRequest(trust_domain=name))
        return answer.states[0]

    def bundle_of(self, name):
        """The stored bundle of another trust domain."""
        return self.call(BUNDLE, "GetFederatedBundle", bundle_pb2.GetFederatedBundleRequest(trust_domain=name))

    def own_bundle(self):
        return self.call(BUNDLE, "GetBundle", bundle_pb2.GetBundleRequest())

    def keys_of(self, name):
        """Our view of another's X.509 authorities."""
        return x509_of(self.bundle_of(name))

    def call(self, service, method, request):
        """One call over the admin socket; a command line of its own would cost a hundred times as much."""
        with grpc.insecure_channel(f"unix:{self.admin_socket}") as channel:
            return getattr(Stub(channel, service), method)(request, timeout=20)

    def x509_svid(self):
        """The first message of a workload's stream."""
        with self._workload_api() as stub:
            stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=20, metadata=HEADER)
            return next(stream)

    def token(self, audience):
        """A JWT-SVID; of one audience the agent hands out the same until half of its life is over."""
        request = workload_pb2.JWTSVIDRequest(audience=[audience])
        with self._workload_api() as stub:
            return stub.FetchJWTSVID(request, timeout=20, metadata=HEADER).svids[0].svid

    def validate(self, audience, token):
        """Whether a workload of this trust domain may believe a token."""
        request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
        try:
            with self._workload_api() as stub:
                stub.ValidateJWTSVID(request, timeout=20, metadata=HEADER)
        except grpc.RpcError:
            return False
        return True

    @contextlib.contextmanager
    def _workload_api(self):
        with grpc.insecure_channel(f"unix:{self.api_socket}") as channel:
            yield Stub(channel, WORKLOAD_API)


def x509_of(bundle):
    return {one.asn1 for one in bundle.x509_authorities}


def federate(one, other):
    """One line in each direction."""
    one.accept(other.accept(one.invite()))
