"""Controller over gRPC: carries bytes between whoever asks and the controller."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from core.clock import Clock
from core.errors import FieldViolation, InvalidRequest
from core.limits import MAX_TIMEOUT_S
from deploy.controller.controller import Controller
from deploy.controller.decide import Action, ChangeRole, Drain, Start
from deploy.controller.deployment import Deployment
from deploy.controller.online import Online
from deploy.controller.roster import ClusterEvent
from deploy.controller.seen import Seen
from rpc.convert_report import role_to_pb
from rpc.pb import controller_pb2, controller_pb2_grpc
from rpc.status import status_boundary

SERVICE = controller_pb2.DESCRIPTOR.services_by_name["Controller"].full_name
DEFAULT_LOG_BYTES = 64 * 1024
MAX_LOG_BYTES = 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class ControllerService(controller_pb2_grpc.ControllerServicer):
    """Answers at once; what takes time is seen through Watch."""

    def __init__(self, name: str, controller: Controller, online: Online, clock: Clock) -> None:
        self._name, self._controller, self._online = name, controller, online
        self._clock = clock

    async def Deploy(
        self, request: controller_pb2.DeployRequest, context: Context
    ) -> controller_pb2.DeployReply:
        """See controller.proto."""
        async with status_boundary(context):
            deployment = Deployment.from_json(request.deployment_json)
            await self._controller.check(deployment)
            changes = described(self._controller.first_actions(deployment))
            record = self._controller.record
            edition = record.edition if record else 0
            if not request.dry_run:
                edition = self._controller.put(deployment)
            return controller_pb2.DeployReply(edition=edition, changes=changes)
        raise AssertionError("the boundary aborts the call")

    async def Watch(
        self, request: controller_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[controller_pb2.ClusterState]:
        """See controller.proto."""
        async with status_boundary(context):
            async for _ in self._controller.roster.changes():
                yield self._state()

    async def DrainMember(
        self, request: controller_pb2.DrainMemberRequest, context: Context
    ) -> controller_pb2.DrainMemberReply:
        """See controller.proto."""
        async with status_boundary(context):
            self._controller.drain(request.name, _timeout("timeout_s", request.timeout_s))
        return controller_pb2.DrainMemberReply()

    async def Replan(
        self, request: controller_pb2.ReplanRequest, context: Context
    ) -> controller_pb2.ReplanReply:
        """See controller.proto."""
        async with status_boundary(context):
            return await self._online.replan(dry_run=request.dry_run)
        raise AssertionError("the boundary aborts the call")

    async def Logs(
        self, request: controller_pb2.LogsRequest, context: Context
    ) -> controller_pb2.LogsReply:
        """See controller.proto."""
        async with status_boundary(context):
            max_bytes = min(request.max_bytes or DEFAULT_LOG_BYTES, MAX_LOG_BYTES)
            piece, following = await self._controller.read_log(
                request.name, request.offset, max_bytes
            )
            text = piece.decode("utf-8", errors="replace")
            return controller_pb2.LogsReply(text=text, next_offset=following)
        raise AssertionError("the boundary aborts the call")

    async def End(
        self, request: controller_pb2.EndRequest, context: Context
    ) -> controller_pb2.EndReply:
        """See controller.proto."""
        async with status_boundary(context):
            self._controller.end(_timeout("drain_s", request.drain_s))
        return controller_pb2.EndReply()

    def _state(self) -> controller_pb2.ClusterState:
        controller = self._controller
        record, waits_for = controller.record, controller.waits_for
        state = controller_pb2.ClusterState(
            cluster=self._name,
            term=controller.term,
            edition=record.edition if record else 0,
            plan_toml=record.in_force.plan_toml if record else "",
            settled=not waits_for,
            waits_for=waits_for,
            members=[self._member(member) for member in controller.roster.members],
            events=[_event(event) for event in controller.roster.events],
        )
        if (online := self._online.state()) is not None:
            state.online.CopyFrom(online)
        return state

    def _member(self, member: Seen) -> controller_pb2.MemberState:
        return controller_pb2.MemberState(
            name=member.name,
            role=role_to_pb(member.role),
            state=member.state.value,
            host=member.host,
            address=member.address,
            http_address=member.http_address,
            in_state_s=self._clock.now_s() - member.since_s,
            make=member.make,
            actor_id=member.actor_id,
        )


def described(actions: Sequence[Action]) -> list[str]:
    """For people, one line each."""
    lines = []
    for action in actions:
        match action:
            case Start():
                lines.append(f"start {action.name or f'a {action.role} instance'}")
            case Drain():
                lines.append(f"drain {action.name}: {action.reason}")
            case ChangeRole():
                lines.append(f"{action.name} becomes {action.role}")
    return lines


def _event(event: ClusterEvent) -> controller_pb2.ClusterEvent:
    return controller_pb2.ClusterEvent(
        at_unix_s=event.at_unix_s, member=event.member, text=event.text
    )


def _timeout(field: str, value: float) -> float:
    # NaN is not in between either.
    if not 0 <= value <= MAX_TIMEOUT_S:
        reason = f"must be 0 to {MAX_TIMEOUT_S:g} seconds, got {value:g}"
        raise InvalidRequest((FieldViolation(field, reason),))
    return value
