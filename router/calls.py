"""The calls of one choice to workers: messages built, errors typed."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

import grpc.aio

from core.capability import Capabilities, Grant, Purpose
from core.clock import Clock
from core.errors import PeerLost
from core.ids import Fingerprint, RouterId
from core.request import Fence, Request
from core.work import Peer, WorkRequest
from router.actions import Retarget, StartDecode, StartPrefill
from router.link import InstanceLink
from rpc.convert import fence_to_pb, peer_to_pb, work_to_pb
from rpc.pb import workers_pb2
from rpc.status import error_from

CALL_TIMEOUT_S = 2.0
"""Decode and Retarget only note what they are told: an instance that needs longer is stuck, and
another one is sooner."""
MIN_TIMEOUT_S = 0.001
"""A deadline that passes while a call is built must not become a refused 0."""


@dataclass(frozen=True, slots=True)
class CachedAt:
    """Who caches more of a prompt than its prefill instance does."""

    link: InstanceLink
    num_tokens: int
    """From the first."""


class WorkerCalls:
    """Knows one request and what every attempt of it has in common."""

    def __init__(
        self, request: Request, router_id: RouterId, clock: Clock, capabilities: Capabilities
    ) -> None:
        self._request = request
        self._router_id = router_id
        self._clock = clock
        self._capabilities = capabilities

    async def prefill(
        self, link: InstanceLink, action: StartPrefill, cached_at: CachedAt | None
    ) -> AsyncGenerator[workers_pb2.PrefillEvent, None]:
        """The events of one attempt; leaving the loop cancels it. Raises BatonError."""
        work = self._work(link.member.fingerprint, action.attempt, action.output_token_ids)
        request = workers_pb2.PrefillRequest(
            work=work_to_pb(work), only_first_token=action.only_first_token
        )
        if cached_at is not None:
            peer = self._peer(cached_at.link, link, Purpose.PREFIX, action.attempt)
            request.cached_at.CopyFrom(peer_to_pb(peer))
            request.num_cached_tokens = cached_at.num_tokens
        call = link.prefill_worker.Prefill(request, timeout=work.timeout_s)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
        finally:
            call.cancel()

    async def decode(
        self, link: InstanceLink, source: InstanceLink | None, action: StartDecode
    ) -> None:
        """Hand the request over. Raises BatonError."""
        work = self._work(link.member.fingerprint, action.attempt, action.output_token_ids)
        peer = self._peer(source, link, Purpose.HANDOFF, action.attempt)
        request = workers_pb2.DecodeRequest(work=work_to_pb(work), source=peer_to_pb(peer))
        await self._call(link.decode_worker.Decode(request, timeout=CALL_TIMEOUT_S))

    async def retarget(
        self, link: InstanceLink, source: InstanceLink | None, action: Retarget
    ) -> None:
        """Move a waiting decode to another prefill. Raises BatonError."""
        peer = self._peer(source, link, Purpose.HANDOFF, action.attempt)
        request = workers_pb2.RetargetRequest(
            handoff_id=self._request.handoff_id,
            fence=fence_to_pb(self.fence(action.attempt)),
            source=peer_to_pb(peer),
            output_token_ids=action.output_token_ids,
        )
        await self._call(link.decode_worker.Retarget(request, timeout=CALL_TIMEOUT_S))

    def fence(self, attempt: int) -> Fence:
        """Of one attempt."""
        return Fence(self._request.epoch, attempt)

    def _peer(
        self, source: InstanceLink | None, fetcher: InstanceLink, purpose: Purpose, attempt: int
    ) -> Peer:
        """A member of the registry, with leave to fetch from it for one attempt."""
        if source is None:
            raise PeerLost("the prefill instance left before its decode was called")
        grant = Grant(
            purpose=purpose,
            handoff_id=self._request.handoff_id,
            fence=self.fence(attempt),
            source_id=source.member.instance_id,
            source_address=source.member.leader_address,
            fetcher_id=fetcher.member.instance_id,
        )
        lifetime_s = max(0.0, self._request.deadline_s - self._clock.now_s())
        token = self._capabilities.sign_for(grant, lifetime_s)
        return Peer(grant.source_id, grant.source_address, token)

    async def _call(self, call: "UnaryCall") -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None

    def _work(
        self, fingerprint: Fingerprint, attempt: int, output_token_ids: tuple[int, ...]
    ) -> WorkRequest:
        request = self._request
        return WorkRequest(
            handoff_id=request.handoff_id,
            fence=self.fence(attempt),
            router_id=self._router_id,
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=output_token_ids,
            sampling=request.sampling,
            stop=replace(request.stop, stop_strings=()),
            child_index=request.child_index,
            timeout_s=max(MIN_TIMEOUT_S, request.deadline_s - self._clock.now_s()),
            fingerprint=fingerprint,
            tenant=request.tenant,
            priority=request.priority,
        )


UnaryCall = (
    grpc.aio.UnaryUnaryCall[workers_pb2.DecodeRequest, workers_pb2.DecodeReply]
    | grpc.aio.UnaryUnaryCall[workers_pb2.RetargetRequest, workers_pb2.RetargetReply]
)
