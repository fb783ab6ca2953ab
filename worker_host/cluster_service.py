"""Cluster over gRPC, as an instance answers: about itself alone."""

from collections.abc import Callable
from typing import Any

import grpc.aio

from core.errors import FieldViolation, InvalidRequest, Unsupported
from core.limits import MAX_TIMEOUT_S
from core.member import Member
from rpc.convert_report import integrity_to_pb, status_to_pb
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from rpc.status import status_boundary
from worker_host.host import WorkerHost

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """Carries bytes between whoever asks and the host."""

    def __init__(self, host: WorkerHost, member: Callable[[], Member]) -> None:
        self._host = host
        self._member = member

    async def Status(
        self, request: cluster_pb2.StatusRequest, context: Context
    ) -> cluster_pb2.StatusReply:
        """See cluster.proto."""
        async with status_boundary(context):
            return cluster_pb2.StatusReply(instances=[self._status()])
        raise AssertionError("the boundary aborts the call")

    async def Drain(
        self, request: cluster_pb2.DrainRequest, context: Context
    ) -> cluster_pb2.DrainReply:
        """See cluster.proto."""
        async with status_boundary(context):
            # NaN is not in between either.
            if not 0 <= request.timeout_s <= MAX_TIMEOUT_S:
                reason = f"must be 0 to {MAX_TIMEOUT_S}, got {request.timeout_s}"
                raise InvalidRequest((FieldViolation("timeout_s", reason),))
            self._host.ask_drain(request.timeout_s)
        return cluster_pb2.DrainReply()

    async def Explain(
        self, request: cluster_pb2.ExplainRequest, context: Context
    ) -> cluster_pb2.ExplainReply:
        """See cluster.proto."""
        async with status_boundary(context):
            raise Unsupported("an instance sees parts of a request: ask the router that took it")
        raise AssertionError("the boundary aborts the call")

    def _status(self) -> cluster_pb2.InstanceStatus:
        books = self._host.books
        status = status_to_pb(self._member(), books.load(), connected=True)
        status.integrity.CopyFrom(integrity_to_pb(books.integrity()))
        return status
