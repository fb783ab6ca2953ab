"""gRPC's settings, each with its reason."""

from enum import StrEnum
from typing import TypeAlias

from core.limits import (
    KV_FRAME_HEADER_BYTES,
    MAX_CLIENT_MESSAGE_BYTES,
    MAX_CONTROL_MESSAGE_BYTES,
    MAX_KV_FRAME_BYTES,
    MAX_METADATA_BYTES,
)

Options: TypeAlias = dict[str, int]


class Plane(StrEnum):
    """Who talks: it decides how large a message may be."""

    CLIENT = "client"
    """Clients and routers."""
    WORKER = "worker"
    """Routers and instances, and instances among themselves."""


MAX_MESSAGE_BYTES = {
    Plane.CLIENT: MAX_CLIENT_MESSAGE_BYTES,
    Plane.WORKER: max(MAX_CONTROL_MESSAGE_BYTES, MAX_KV_FRAME_BYTES + KV_FRAME_HEADER_BYTES),
}


def _keepalive(every_s: float, patience_s: float) -> Options:
    """Pings while a call is open and nothing else is heard; an idle channel costs nothing.

    gRPC answers pings in its own threads: a process whose interpreter is busy is not taken for
    dead. One ping a second is about 0.1 ms of processor time.
    """
    return {
        "grpc.keepalive_time_ms": int(every_s * 1000),
        "grpc.keepalive_timeout_ms": int(patience_s * 1000),
        # gRPC 1.85 lets a keepalive ping live as long as any ping: 60 s unless this is said too.
        "grpc.http2.ping_timeout_ms": int(patience_s * 1000),
        "grpc.keepalive_permit_without_calls": 0,
        # The default stops pinging after two without data: as if the silence were over.
        "grpc.http2.max_pings_without_data": 0,
    }


# Inside the cluster a link gone silent (host gone, packets dropped: no RST) is noticed after one
# interval and one patience: 3 s, the bar. A link so slow that an answer queues for 2 s behind KV
# is given up as well, which is what its requests need.
_CLUSTER = _keepalive(1.0, 2.0)
# Clients may be far away and slow; what a vanished one can cost is bounded by its deadline anyway.
_FAR = _keepalive(10.0, 10.0)
_METADATA: Options = {
    "grpc.max_metadata_size": MAX_METADATA_BYTES,
    "grpc.absolute_max_metadata_size": 2 * MAX_METADATA_BYTES,
}


def client_options(plane: Plane) -> Options:
    """Of a channel."""
    return {
        **_CLUSTER,
        **_METADATA,
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES[plane],
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES[plane],
        # Peers are addressed directly; a proxy from the environment would see every prompt.
        "grpc.enable_http_proxy": 0,
        # Each channel its own connection: equal ones would share one otherwise.
        "grpc.use_local_subchannel_pool": 1,
        # A restarted peer is back within a second; the default grows to two minutes.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
        # Despite its name also the bound of one connection attempt (default 20 s): two lost SYNs.
        "grpc.min_reconnect_backoff_ms": 2000,
        # Streams are resumed by us and nothing else may be repeated behind our back.
        "grpc.enable_retries": 0,
    }


def server_options(plane: Plane) -> Options:
    """Of a server."""
    return {
        **(_FAR if plane is Plane.CLIENT else _CLUSTER),
        **_METADATA,
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES[plane],
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES[plane],
        # Two processes on one port would each get half of the calls.
        "grpc.so_reuseport": 0,
        # Our own clients ping every second; by default that ends the connection as abuse.
        "grpc.http2.min_recv_ping_interval_without_data_ms": 500,
        "grpc.http2.max_ping_strikes": 0,
    }
