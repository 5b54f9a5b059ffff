"""grpcio's xDS client and server with its file watcher; it runs in the foreign environment, without our packages.

    grpcio_xds.py WATCHER PORT PEER OTHER

A control plane of its own tells the client of one backend at PORT: as `xds:///web` it has to be PEER, as `xds:///other` it
has to be OTHER. The backend is an xDS server. Both find certificate, key and authorities in the files that WATCHER names,
the `config` of a `file_watcher`. Connections are short, so that the calls, one after the other, are handshakes too.

Whoever says PEER or OTHER is told what came of a call to `web` or `other`; `end` is answered with all that was done.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import any_pb2, wrappers_pb2

WHO = "/muniment.test.Who/Ask"
CONNECTION_MS = 200
PAUSE_SECONDS = 0.02
CALL_SECONDS = 10.0
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def packed(message: Any) -> any_pb2.Any:
    found = any_pb2.Any()
    found.Pack(message)
    return found


def transport(context: Any) -> base_pb2.TransportSocket:
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(context))


def tls(*peers: str) -> tls_pb2.CommonTlsContext:
    """All from the watched files, and the names one of which the peer has to have."""
    files = common_pb2.CertificateProviderPluginInstance(instance_name="files")
    return tls_pb2.CommonTlsContext(
        tls_certificate_provider_instance=files,
        validation_context=common_pb2.CertificateValidationContext(
            ca_certificate_provider_instance=files,
            match_subject_alt_names=[string_pb2.StringMatcher(exact=peer) for peer in peers],
        ),
    )


def routes(**action: Any) -> any_pb2.Any:
    route = route_components_pb2.Route(match=route_components_pb2.RouteMatch(prefix=""), **action)
    host = route_components_pb2.VirtualHost(name="all", domains=["*"], routes=[route])
    router = http_connection_manager_pb2.HttpFilter(name="router", typed_config=packed(router_pb2.Router()))
    return packed(
        http_connection_manager_pb2.HttpConnectionManager(
            route_config=route_pb2.RouteConfiguration(name="routes", virtual_hosts=[host]), http_filters=[router]
        )
    )


def told(port: int, peers: dict[str, str]) -> dict[tuple[str, str], Any]:
    """What the control plane knows, by type and name: two clusters with one endpoint, and the server that is there."""
    ads = config_source_pb2.ConfigSource(ads={}, resource_api_version=config_source_pb2.V3)
    place = address_pb2.Address(socket_address={"address": "127.0.0.1", "port_value": port})
    known: dict[tuple[str, str], Any] = {}
    for name, peer in peers.items():
        listener = api_listener_pb2.ApiListener(api_listener=routes(route={"cluster": name}))
        known[LISTENER, name] = listener_pb2.Listener(name=name, api_listener=listener)
        known[CLUSTER, name] = cluster_pb2.Cluster(
            name=name,
            type=cluster_pb2.Cluster.EDS,
            eds_cluster_config={"eds_config": ads},
            transport_socket=transport(tls_pb2.UpstreamTlsContext(common_tls_context=tls(peer))),
        )
        endpoint = endpoint_components_pb2.LbEndpoint(endpoint={"address": place}, health_status="HEALTHY")
        near = endpoint_components_pb2.LocalityLbEndpoints(
            locality={"zone": "here"}, lb_endpoints=[endpoint], load_balancing_weight={"value": 1}
        )
        known[ENDPOINT, name] = endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=[near])
    chain = listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name="manager", typed_config=routes(non_forwarding_action={}))],
        transport_socket=transport(
            tls_pb2.DownstreamTlsContext(
                common_tls_context=tls(), require_client_certificate=wrappers_pb2.BoolValue(value=True)
            )
        ),
    )
    name = f"server/127.0.0.1:{port}"
    known[LISTENER, name] = listener_pb2.Listener(name=name, address=place, filter_chains=[chain])
    return known


class ControlPlane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Answers each request for resources once, with the same version: nothing changes here but the files."""

    def __init__(self, known: dict[tuple[str, str], Any]) -> None:
        self._known = known

    def StreamAggregatedResources(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:
        asked: dict[str, frozenset[str]] = {}
        for request in requests:
            if request.HasField("error_detail"):
                say("refused", text=request.error_detail.message)
            names = frozenset(request.resource_names)
            if asked.get(request.type_url) == names:
                continue
            asked[request.type_url] = names
            found = [self._known[request.type_url, name] for name in names if (request.type_url, name) in self._known]
            yield discovery_pb2.DiscoveryResponse(
                version_info="1",
                nonce=str(len(names)),
                type_url=request.type_url,
                resources=[packed(one) for one in found],
            )


class Who(grpc.GenericRpcHandler):
    """Tells each caller the SPIFFE ID and the serial number that it showed."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._ask) if details.method == WHO else None

    def _ask(self, _: bytes, context: Any) -> bytes:
        shown = context.auth_context()
        leaf = x509.load_pem_x509_certificate(shown["x509_pem_cert"][0])
        facts = {"spiffe_id": shown["peer_spiffe_id"][0].decode(), "serial": f"{leaf.serial_number:x}"}
        return json.dumps(facts).encode()


class Caller(threading.Thread):
    """One call after the other, until it is stopped."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(daemon=True)
        self._ask = channel.unary_unary(WHO)
        self._end = threading.Event()
        self.calls = 0
        self.failed: list[str] = []

    def run(self) -> None:
        seen: set[str] = set()
        while not self._end.wait(PAUSE_SECONDS):
            try:
                found = json.loads(self._ask(b"", timeout=CALL_SECONDS))
            except grpc.RpcError as error:
                self.failed.append(f"{error.code().name}: {error.details()}")
                continue
            finally:
                self.calls += 1
            if found["serial"] not in seen:
                seen.add(found["serial"])
                say("served", **found)

    def stop(self) -> None:
        self._end.set()
        self.join()


def server(**options: Any) -> grpc.Server:
    return grpc.server(ThreadPoolExecutor(8), **options)


def main() -> None:
    watcher, port, peer, other = sys.argv[1:]
    peers = {"web": peer, "other": other}
    plane = server()
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(ControlPlane(told(int(port), peers)), plane)
    ads = plane.add_insecure_port("127.0.0.1:0")
    plane.start()
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": f"127.0.0.1:{ads}",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": "files"},
        "certificate_providers": {
            "files": {"plugin_name": "file_watcher", "config": json.loads(Path(watcher).read_text())}
        },
        "server_listener_resource_name_template": "server/%s",
    }
    os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps(bootstrap)
    ages = [("grpc.max_connection_age_ms", CONNECTION_MS), ("grpc.max_connection_age_grace_ms", 5000)]
    backend = server(xds=True, options=ages)
    backend.add_generic_rpc_handlers((Who(),))
    # Credentials to fall back on where the control plane asks for none: then these calls would fail.
    backend.add_secure_port(
        f"127.0.0.1:{port}", grpc.xds_server_credentials(grpc.ssl_server_credentials([(b"no", b"no")]))
    )
    backend.start()
    trusted = grpc.xds_channel_credentials(grpc.ssl_channel_credentials())
    with grpc.secure_channel("xds:///web", trusted) as web, grpc.secure_channel("xds:///other", trusted) as wrong:
        caller = Caller(web)
        caller.start()
        for line in sys.stdin:
            if line.strip() == "end":
                break
            try:
                wrong.unary_unary(WHO)(b"", timeout=CALL_SECONDS)
                say("answered")
            except grpc.RpcError as error:
                say("failed", code=error.code().name, text=error.details())
        caller.stop()
        say("ended", calls=caller.calls, failed=caller.failed)
    backend.stop(None).wait()
    plane.stop(None).wait()


if __name__ == "__main__":
    main()
