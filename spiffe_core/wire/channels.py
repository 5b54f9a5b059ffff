"""gRPC options that every server and channel of ours shares, and the plain channel to a Unix socket."""

from __future__ import annotations

import os

import grpc.aio

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_STREAMS_PER_CONNECTION = 100

LAST_CALLS_SECONDS = 10.0
"""So long calls on a connection that is too old may take."""

MOST_CALLS_WAITING = 20_000
"""Calls that nobody has looked at yet. With more gRPC cancels at random, and clients take that for their own doing."""

Option = tuple[str, int | str]


def server_options(
    *,
    max_connection_age: float | None,
    max_stream_age: float = 0.0,
    max_message: int = MAX_MESSAGE_BYTES,
    max_streams: int = MAX_STREAMS_PER_CONNECTION,
) -> list[Option]:
    """Bounds of a private listener (architecture A5). `max_connection_age` in seconds, None for no limit.

    A connection of that age is told to take no new calls, so that its client opens another one; streams that are open
    on it go on until `max_stream_age`, or for LAST_CALLS_SECONDS if that is longer.
    """
    options: list[Option] = [
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.server.max_pending_requests", MOST_CALLS_WAITING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MOST_CALLS_WAITING),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.http2.hpack_table_size.decoder", 4096),
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if max_connection_age is not None:
        options += [
            ("grpc.max_connection_age_ms", int(max_connection_age * 1000)),
            (
                "grpc.max_connection_age_grace_ms",
                int(max(LAST_CALLS_SECONDS, max_stream_age - max_connection_age) * 1000),
            ),
        ]
    return options


def channel_options(*, max_message: int = 64 * 1024 * 1024) -> list[Option]:
    """Options of every channel: its own connections, quick to come back, room for large entry pages."""
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        ("grpc.max_receive_message_length", max_message),
        ("grpc.enable_http_proxy", 0),
    ]


def unix_channel(path: str | os.PathLike[str]) -> grpc.aio.Channel:
    """A plaintext channel to the Unix socket at `path`."""
    return grpc.aio.insecure_channel(f"unix:{os.fspath(path)}", options=channel_options())
