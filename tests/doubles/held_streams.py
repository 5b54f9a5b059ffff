"""Streams of the Workload API that stay open, as a workload's library holds them: what came on each, and how it ended."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Self

import grpc

from spiffe_core.wire._gen import workload_pb2

_HEADER = (("workload.spiffe.io", "true"),)
METHODS = {
    "FetchX509SVID": (workload_pb2.X509SVIDRequest, workload_pb2.X509SVIDResponse),
    "FetchX509Bundles": (workload_pb2.X509BundlesRequest, workload_pb2.X509BundlesResponse),
    "FetchJWTBundles": (workload_pb2.JWTBundlesRequest, workload_pb2.JWTBundlesResponse),
}


class HeldStream:
    """One stream, read to its end by a thread of its own."""

    def __init__(self, channel: grpc.Channel, method: str) -> None:
        request, response = METHODS[method]
        self.method = method
        self.messages: list[Any] = []
        self.end: grpc.StatusCode | None = None
        self._call = channel.unary_stream(
            f"/SpiffeWorkloadAPI/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(request(), metadata=_HEADER)
        self._reader = threading.Thread(target=self._read, name=method, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for message in self._call:
                self.messages.append(message)
        except grpc.RpcError as error:
            self.end = error.code()
        else:
            self.end = grpc.StatusCode.OK

    def close(self) -> None:
        self._call.cancel()
        self._reader.join(10)


class HeldStreams:
    """One stream of each kind on one connection."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self.each = [HeldStream(self._channel, method) for method in METHODS]

    @property
    def begun(self) -> bool:
        return all(one.messages for one in self.each)

    @property
    def ends(self) -> list[grpc.StatusCode | None]:
        return [one.end for one in self.each]

    @property
    def ids(self) -> set[str]:
        """The SPIFFE IDs of the newest X.509 state."""
        return {svid.spiffe_id for svid in self.each[0].messages[-1].svids}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.each:
            one.close()
        self._channel.close()
