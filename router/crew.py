"""The workers of one choice: the calls to them, and the links they are read from."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing

from core.errors import BatonError, PeerLost
from core.ids import InstanceId
from core.request import Request
from core.timing import PrefillTiming
from router.actions import (
    Acknowledge,
    Action,
    CancelPrefill,
    Retarget,
    StartDecode,
    StartPrefill,
    StopDecode,
    WorkerAction,
)
from router.calls import CachedAt, WorkerCalls
from router.flow import Flow
from router.link import Health, InstanceLink, Reader
from router.prefix_index import num_tokens_to_fetch
from router.surroundings import Surroundings
from router.timeline import Timeline
from router.witness import Witness
from rpc.convert import finish_reason_from_pb, logprobs_from_pb
from rpc.convert_report import prefill_timing_from_pb
from rpc.pb import workers_pb2

Act = Callable[[Iterable[Action]], None]


class Crew:
    """Does what a flow says to workers, and tells the flow what they answer."""

    def __init__(
        self,
        request: Request,
        around: Surroundings,
        flow: Flow,
        witness: Witness,
        timeline: Timeline,
        act: Act,
    ) -> None:
        self._request = request
        self._witness = witness
        self._around = around
        self._flow = flow
        self._timeline = timeline
        self._act = act
        self._calls = WorkerCalls(request, around.router_id, around.clock, around.capabilities)
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefills: dict[int, asyncio.Task[None]] = {}
        self._decode_turn = asyncio.Lock()
        """Calls to one decode instance arrive in order: a Retarget never before its Decode."""
        self._attached: dict[InstanceId, InstanceLink] = {}

    def do(self, action: WorkerAction, group: asyncio.TaskGroup) -> None:
        """Begin one action; what takes time runs in `group`."""
        match action:
            case Acknowledge():
                self._acknowledge(action)
            case StartPrefill():
                self._timeline.called(self._around.clock.now_s())
                task = self.start(self._read_prefill(action), group)
                self._prefills[action.attempt] = task
            case StartDecode():
                self._decode_turn = asyncio.Lock()
                self.start(self._call_decode(action, self._decode_turn), group)
            case Retarget():
                self.start(self._call_decode(action, self._decode_turn), group)
            case CancelPrefill():
                if (running := self._prefills.pop(action.attempt, None)) is not None:
                    running.cancel()
            case StopDecode():
                self._stop_decode(action)

    def start(
        self, coroutine: Coroutine[None, None, None], group: asyncio.TaskGroup
    ) -> asyncio.Task[None]:
        """A task of this choice; ends with it."""
        task = group.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end(self) -> None:
        """Cancel whatever is under way."""
        for task in self._tasks:
            task.cancel()

    def attach_to(self, names: frozenset[InstanceId], reader: Reader) -> None:
        """Read from these instances, and from no others."""
        handoff_id = self._request.handoff_id
        for name in [name for name in self._attached if name not in names]:
            self._attached.pop(name).detach(handoff_id, reader)
        for name in names - self._attached.keys():
            if (link := self._around.membership.get(name)) is not None:
                self._attached[name] = link
                link.attach(handoff_id, reader)

    def forget(self, instance_id: InstanceId) -> None:
        """The instance is lost, and its link has forgotten its readers."""
        self._attached.pop(instance_id, None)

    async def _read_prefill(self, action: StartPrefill) -> None:
        error: BatonError = PeerLost(f"{action.instance_id}: the Prefill stream ended early")
        try:
            link = self._link(action.instance_id)
            cached_at = self._cached_at(link, action)
            async with aclosing(self._calls.prefill(link, action, cached_at)) as events:
                async for event in events:
                    self._take_prefill_event(action, event)
        except BatonError as failure:
            error = failure
            self._witness.prefill_failed(action, error)
        self._act(self._flow.prefill_failed(action.attempt, error))

    def _cached_at(self, link: InstanceLink, action: StartPrefill) -> CachedAt | None:
        """The decode instance, where an earlier turn of the same chat may have left its KV."""
        decode = self._flow.decode
        if decode is None or decode.instance_id == action.instance_id:
            return None
        there = self._around.membership.get(decode.instance_id)
        if there is None or there.health is not Health.UP:
            return None
        view, request = self._around.membership.view, self._request
        prompt = self._around.prompts.of(
            request.tenant, request.prompt_token_ids + action.output_token_ids
        )
        hits = view.index.hit_tokens(prompt, len(view.fleet.table.role))
        num_there, num_here = int(hits[there.sight.row]), int(hits[link.sight.row])
        num_tokens = num_tokens_to_fetch(num_there, num_here, link.member.block_size)
        return CachedAt(there, num_tokens) if num_tokens else None

    def _take_prefill_event(self, action: StartPrefill, event: workers_pb2.PrefillEvent) -> None:
        which = event.WhichOneof("event")
        if which == "started":
            self._witness.prefill_began(action)
        elif which == "token":
            self._take_token(action, event.token)
        elif which == "ended":
            self._lease_ended(action, event.ended.outcome)

    def _take_token(self, action: StartPrefill, token: workers_pb2.PrefillToken) -> None:
        timing = prefill_timing_from_pb(token.timing)
        self._witness.prefill_sampled(action)
        self._timeline.sampled(action.instance_id, timing)
        self._learn(action, timing)
        reason = finish_reason_from_pb(token.finish_reason)
        logprobs = (logprobs_from_pb(token.logprobs),) if token.HasField("logprobs") else ()
        self._act(
            self._flow.prefill_sampled(
                action.attempt, token.position, token.token_id, reason, logprobs
            )
        )

    def _learn(self, action: StartPrefill, timing: PrefillTiming) -> None:
        view = self._around.membership.view
        row = view.fleet.rows.get(action.instance_id)
        if row is not None:
            num_tokens = self._request.num_prompt_tokens + len(action.output_token_ids)
            view.observed.prefilled(row, num_tokens, timing)

    def _lease_ended(self, action: StartPrefill, outcome: int) -> None:
        if outcome == workers_pb2.LEASE_OUTCOME_COMMITTED:
            self._act(self._flow.prefill_done(action.attempt))
            return
        error = PeerLost(f"{action.instance_id}: its lease ended, outcome {outcome}")
        self._act(self._flow.prefill_failed(action.attempt, error))

    async def _call_decode(self, action: StartDecode | Retarget, turn: asyncio.Lock) -> None:
        try:
            async with turn:
                link = self._link(action.instance_id)
                source = self._around.membership.get(action.source_id)
                if isinstance(action, StartDecode):
                    await self._calls.decode(link, source, action)
                else:
                    await self._calls.retarget(link, source, action)
        except BatonError as error:
            self._witness.decode_refused(action.instance_id, error)
            self._act(self._flow.decode_refused(action.instance_id, action.attempt, error))

    def _stop_decode(self, action: StopDecode) -> None:
        if (link := self._around.membership.get(action.instance_id)) is not None:
            link.stop(self._request.handoff_id, self._calls.fence(action.attempt))

    def _acknowledge(self, action: Acknowledge) -> None:
        if (link := self._attached.get(action.instance_id)) is not None:
            link.acknowledge(self._request.handoff_id, action.next_position, done=action.done)

    def _link(self, instance_id: InstanceId) -> InstanceLink:
        link = self._around.membership.get(instance_id)
        if link is None or link.health is Health.LOST:
            raise PeerLost(f"{instance_id} left the cluster")
        return link
