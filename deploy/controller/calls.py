"""What the controller asks members over gRPC, with its term: an older controller is refused."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc.aio

from core.member import Role
from rpc.convert_report import role_from_pb, role_to_pb
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from rpc.status import error_from

CALL_TIMEOUT_S = 5.0
"""All are answered from memory; a step that holds the loop of a busy host takes a second or two."""


class Calls(Protocol):
    """Every call raises a BatonError when it is refused, or not answered in time."""

    async def drain(self, address: str, timeout_s: float, term: int) -> None:
        """Begin the drain of one member, which then ends by itself."""
        ...

    async def change_role(self, address: str, role: Role, term: int) -> None:
        """Give an instance another role."""
        ...

    async def role(self, address: str) -> Role:
        """Of an instance, now."""
        ...

    async def http_address(self, address: str) -> str:
        """Of a router's OpenAI API."""
        ...

    async def workload(self, address: str, after: int) -> cluster_pb2.WorkloadReply:
        """Of a router: what ended since a place in its list."""
        ...


class GrpcCalls:
    """One connection per call: they are rare, and members come and go."""

    async def drain(self, address: str, timeout_s: float, term: int) -> None:
        """See Calls."""
        request = cluster_pb2.DrainRequest(timeout_s=timeout_s, term=term)
        await _ask(address, lambda stub: stub.Drain(request, timeout=CALL_TIMEOUT_S))

    async def change_role(self, address: str, role: Role, term: int) -> None:
        """See Calls."""
        request = cluster_pb2.ChangeRoleRequest(role=role_to_pb(role), term=term)
        await _ask(address, lambda stub: stub.ChangeRole(request, timeout=CALL_TIMEOUT_S))

    async def role(self, address: str) -> Role:
        """See Calls."""
        return role_from_pb((await _status(address)).instances[0].role)

    async def http_address(self, address: str) -> str:
        """See Calls."""
        return str((await _status(address)).http_address)

    async def workload(self, address: str, after: int) -> cluster_pb2.WorkloadReply:
        """See Calls."""
        request = cluster_pb2.WorkloadRequest(after=after)
        reply = await _ask(address, lambda stub: stub.Workload(request, timeout=CALL_TIMEOUT_S))
        assert isinstance(reply, cluster_pb2.WorkloadReply)
        return reply


async def _status(address: str) -> Any:  # noqa: ANN401 - a message
    request = cluster_pb2.StatusRequest()
    return await _ask(address, lambda stub: stub.Status(request, timeout=CALL_TIMEOUT_S))


async def _ask(address: str, call: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401
    async with dial(address) as channel:
        try:
            return await call(cluster_pb2_grpc.ClusterStub(channel))
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
