"""Cluster over gRPC, as an instance answers: about itself alone."""

from typing import Any

import grpc.aio

from core.errors import FieldViolation, InvalidRequest, Unsupported, WrongState
from core.limits import MAX_TIMEOUT_S
from core.member import Role
from core.term import Terms
from rpc.convert_report import integrity_to_pb, role_from_pb, role_to_pb, status_to_pb
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from rpc.status import status_boundary
from worker_host.host import WorkerHost
from worker_host.role import INSTANCE_ROLES, Post

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """Carries bytes between whoever asks and the host; obeys only the newest controller."""

    def __init__(self, host: WorkerHost, post: Post) -> None:
        self._host = host
        self._post = post
        self._terms = Terms()

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
            self._terms.hear(request.term)
            self._host.ask_drain(request.timeout_s)
        return cluster_pb2.DrainReply()

    async def ChangeRole(
        self, request: cluster_pb2.ChangeRoleRequest, context: Context
    ) -> cluster_pb2.ChangeRoleReply:
        """See cluster.proto."""
        async with status_boundary(context):
            role = _role_of(request)
            self._terms.hear(request.term)
            if self._host.is_draining:
                raise WrongState(f"draining: it ends as {self._post.member.role}")
            return cluster_pb2.ChangeRoleReply(previous=role_to_pb(self._post.change(role)))
        raise AssertionError("the boundary aborts the call")

    async def Explain(
        self, request: cluster_pb2.ExplainRequest, context: Context
    ) -> cluster_pb2.ExplainReply:
        """See cluster.proto."""
        async with status_boundary(context):
            raise Unsupported("an instance sees parts of a request: ask the router that took it")
        raise AssertionError("the boundary aborts the call")

    async def Workload(
        self, request: cluster_pb2.WorkloadRequest, context: Context
    ) -> cluster_pb2.WorkloadReply:
        """See cluster.proto."""
        async with status_boundary(context):
            raise Unsupported("an instance sees parts of a request: ask routers for the workload")
        raise AssertionError("the boundary aborts the call")

    def _status(self) -> cluster_pb2.InstanceStatus:
        books = self._host.books
        status = status_to_pb(self._post.member, books.load(), connected=True)
        status.integrity.CopyFrom(integrity_to_pb(books.integrity()))
        return status


def _role_of(request: cluster_pb2.ChangeRoleRequest) -> Role:
    role = role_from_pb(request.role)
    if role not in INSTANCE_ROLES:
        reason = f"must be {', '.join(INSTANCE_ROLES)}, got {role}"
        raise InvalidRequest((FieldViolation("role", reason),))
    return role
