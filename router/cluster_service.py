"""What this router knows of the cluster, and its own drain."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from core.errors import FieldViolation, InvalidRequest, Unsupported
from core.limits import MAX_TIMEOUT_S
from core.term import Terms
from router.admission import Admission
from router.link import Health, InstanceLink
from router.membership import Membership
from router.steering import Steering
from router.unary import readable, unary
from rpc.codec import Undecodable
from rpc.convert_report import status_to_pb
from rpc.pb import cluster_pb2
from rpc.status import status_boundary

logger = logging.getLogger(__name__)

SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["Cluster"].full_name
ASK_TIMEOUT_S = 1.0
"""For one instance's books; who does not answer in time is shown without them."""
MAX_ASKED_AT_ONCE = 32

Context = grpc.aio.ServicerContext[Any, Any]


class Records(NamedTuple):
    """What is answered from what was recorded of requests."""

    explain: Callable[[str], cluster_pb2.ExplainReply]
    """Raises UnknownRequest."""
    workload: Callable[[cluster_pb2.WorkloadRequest], cluster_pb2.WorkloadReply]
    """Raises InvalidRequest."""


class ClusterService:
    """Answers of the router; the instances are asked for their own books."""

    def __init__(
        self,
        membership: Membership,
        admission: Admission,
        steering: Steering,
        drain: Callable[[float], None],
        *,
        records: Records,
        http_address: str,
    ) -> None:
        """`drain` begins the drain of this process, which may take so many seconds."""
        self._membership = membership
        self._admission = admission
        self._steering = steering
        self._drain = drain
        self._records = records
        self._http_address = http_address
        self._terms = Terms()
        self._slots = asyncio.Semaphore(MAX_ASKED_AT_ONCE)

    async def status(
        self, request: cluster_pb2.StatusRequest | Undecodable, context: Context
    ) -> cluster_pb2.StatusReply:
        """Members, their load and their integrity."""
        async with status_boundary(context):
            readable(request)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(link)) for link in self._membership.links]
            return cluster_pb2.StatusReply(
                instances=[task.result() for task in tasks],
                num_requests=self._admission.num_running,
                num_queued=self._admission.num_queued,
                settings_version=self._steering.version,
                http_address=self._http_address,
            )
        raise AssertionError("status_boundary ends the call")

    async def drain(
        self, request: cluster_pb2.DrainRequest | Undecodable, context: Context
    ) -> cluster_pb2.DrainReply:
        """Take no new requests and finish the old, unless an outdated controller asks."""
        async with status_boundary(context):
            message = readable(request)
            if not 0 <= message.timeout_s <= MAX_TIMEOUT_S:
                reason = f"must be 0 to {MAX_TIMEOUT_S:g} seconds, got {message.timeout_s:g}"
                raise InvalidRequest((FieldViolation("timeout_s", reason),))
            self._terms.hear(message.term)
            logger.info("drain asked for timeout_s=%g", message.timeout_s)
            self._drain(message.timeout_s)
        return cluster_pb2.DrainReply()

    async def change_role(
        self, request: cluster_pb2.ChangeRoleRequest | Undecodable, context: Context
    ) -> cluster_pb2.ChangeRoleReply:
        """Only instances can."""
        async with status_boundary(context):
            readable(request)
            raise Unsupported("a router has one role for ever: ask an instance for another")
        raise AssertionError("status_boundary ends the call")

    async def explain(
        self, request: cluster_pb2.ExplainRequest | Undecodable, context: Context
    ) -> cluster_pb2.ExplainReply:
        """What became of one request."""
        async with status_boundary(context):
            return self._records.explain(readable(request).request_id)
        raise AssertionError("status_boundary ends the call")

    async def workload(
        self, request: cluster_pb2.WorkloadRequest | Undecodable, context: Context
    ) -> cluster_pb2.WorkloadReply:
        """The last requests that ended, for planning."""
        async with status_boundary(context):
            return self._records.workload(readable(request))
        raise AssertionError("status_boundary ends the call")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve here."""
        methods: dict[str, Any] = {
            "Status": unary(self.status, cluster_pb2.StatusRequest),
            "Drain": unary(self.drain, cluster_pb2.DrainRequest),
            "ChangeRole": unary(self.change_role, cluster_pb2.ChangeRoleRequest),
            "Explain": unary(self.explain, cluster_pb2.ExplainRequest),
            "Workload": unary(self.workload, cluster_pb2.WorkloadRequest),
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, methods)
        server.add_generic_rpc_handlers((handler,))

    async def _ask(self, link: InstanceLink) -> cluster_pb2.InstanceStatus:
        status = _known(link)
        if link.health is not Health.UP:
            return status
        try:
            async with self._slots:
                reply = await link.cluster.Status(
                    cluster_pb2.StatusRequest(), timeout=ASK_TIMEOUT_S
                )
        except grpc.aio.AioRpcError as error:
            logger.debug("no books of %s: %s", link.member.instance_id, error.code())
            return status
        for own in reply.instances:
            if own.instance_id == link.member.instance_id and own.HasField("integrity"):
                status.integrity.CopyFrom(own.integrity)
        return status


def _known(link: InstanceLink) -> cluster_pb2.InstanceStatus:
    return status_to_pb(link.member, link.sight.load, connected=link.health is Health.UP)
