"""One choice under way: feeds its flow with what happens and does what the flow says."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from core.clock import Clock
from core.errors import BatonError, NoInstance, PeerLost, Saturated
from core.ids import Fingerprint, InstanceId, RouterId
from core.request import Request
from policy.placement import Phase
from router.actions import (
    Acknowledge,
    Action,
    CancelPrefill,
    Deliver,
    Fail,
    Finish,
    Output,
    Retarget,
    StartDecode,
    StartPrefill,
    StopDecode,
)
from router.answer import Answer
from router.calls import WorkerCalls
from router.flow import Flow
from router.link import InstanceLink
from router.membership import Membership
from router.placer import Placer, Wanted
from rpc.convert import finish_reason_from_pb
from rpc.convert_report import prefill_timing_from_pb
from rpc.pb import workers_pb2

logger = logging.getLogger(__name__)

PLACE_WAIT_S = 30.0
"""For an instance to come up: Ray has restarted a killed one, model loaded, in about 10 s."""
PLACE_RETRY_S = 0.25
"""Without news of the membership: queues drain, and instances that failed once are forgiven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all choices of a router share."""

    router_id: RouterId
    membership: Membership
    placer: Placer
    clock: Clock
    max_attempts: int


class Choice:
    """Owns the calls of one flow. The links call it; everything else happens in `run`."""

    def __init__(self, request: Request, around: Surroundings, answer: Answer) -> None:
        self._request = request
        self._around = around
        self._answer = answer
        self._flow = Flow(request, max_attempts=around.max_attempts)
        self._calls = WorkerCalls(request, around.router_id, around.clock)
        self._due: deque[Action] = deque()
        self._is_acting = False
        self._over = asyncio.Event()
        self._bug: Exception | None = None
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefills: dict[int, asyncio.Task[None]] = {}
        self._decode_turn = asyncio.Lock()
        """Calls to one decode instance arrive in order: a Retarget never before its Decode."""
        self._attached: dict[InstanceId, InstanceLink] = {}
        self._fingerprint: Fingerprint | None = None
        self._is_waiting = False
        self._give_up_at_s: float | None = None

    async def run(self) -> None:
        """From admission to the end; the answer holds the outcome. A cancel stops both workers."""
        async with self._group:
            try:
                self._begin()
                await self._until_over()
            finally:
                # While the group is open still: what comes in later finds the flow over.
                self.give_up(None)
                for task in self._tasks:
                    task.cancel()
        if self._bug is not None:
            raise self._bug

    def give_up(self, error: BatonError | None) -> None:
        """End it, if it has not ended; `error` says why when it was not the client's wish."""
        self._act(self._flow.cancelled(error))

    def on_output(self, instance_id: InstanceId, output: Output) -> None:
        """News from a decode instance."""
        try:
            self._note_decode(instance_id, output)
            self._act(self._flow.output(instance_id, output))
        except Exception as error:  # noqa: BLE001 - the link that calls here serves others too
            self._crash(error)

    def _note_decode(self, instance_id: InstanceId, output: Output) -> None:
        decode = self._flow.decode
        if decode is not None and decode.instance_id == instance_id and output.token_ids:
            self._answer.timeline.handed_over(instance_id, output.timing)

    def on_lost(self, instance_id: InstanceId, error: BatonError) -> None:
        """An instance is gone."""
        try:
            self._attached.pop(instance_id, None)
            self._act(self._flow.instance_lost(instance_id, error))
        except Exception as bug:  # noqa: BLE001 - as above
            self._crash(bug)

    # --- the loop ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._answer.begin(self._request.resumed_token_ids):
            self._act(self._flow.stop_matched())
        else:
            self._act(self._flow.begin())

    async def _until_over(self) -> None:
        timeout_s = self._request.deadline_s - self._around.clock.now_s()
        try:
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        except TimeoutError:
            self._act(self._flow.deadline())

    def _act(self, actions: Iterable[Action]) -> None:
        """Do these, and what follows from them, then place what the flow still needs."""
        self._due.extend(actions)
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._due or self._place():
                while self._due:
                    self._do(self._due.popleft())
            sides = (self._flow.prefill, self._flow.decode)
            self._attach_to(frozenset(side.instance_id for side in sides if side is not None))
        finally:
            self._is_acting = False

    def _do(self, action: Action) -> None:
        logger.debug("do handoff_id=%s %s", self._request.handoff_id, type(action).__name__)
        match action:
            case Deliver():
                if self._answer.deliver(action.position, action.token_ids):
                    self._due.extend(self._flow.stop_matched())
            case Acknowledge():
                self._acknowledge(action)
            case StartPrefill():
                self._start_prefill(action)
            case StartDecode():
                self._decode_turn = asyncio.Lock()
                self._start(self._call_decode(action, self._decode_turn))
            case Retarget():
                self._start(self._call_decode(action, self._decode_turn))
            case CancelPrefill():
                self._cancel_prefill(action)
            case StopDecode():
                self._stop_decode(action)
            case Finish():
                self._answer.finish(action.reason, self._flow.attempt)
                self._over.set()
            case Fail():
                self._answer.fail(action.error)
                self._over.set()

    def _start(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _crash(self, bug: Exception) -> None:
        self._bug = bug
        self._over.set()

    # --- placing ----------------------------------------------------------------------------

    def _place(self) -> bool:
        """Place what is missing; False when nothing is, or nobody can take it now."""
        needs = self._flow.needs
        if not needs or self._is_waiting:
            return False
        try:
            found = self._around.placer.place(self._wanted(needs))
        except (NoInstance, Saturated) as error:
            self._wait_for_place(error)
            return bool(self._due)
        self._give_up_at_s = None
        names = {phase: link.member.instance_id for phase, link in found.items()}
        self._fingerprint = next(iter(found.values())).member.fingerprint
        self._due.extend(self._flow.placed(names.get(Phase.PREFILL), names.get(Phase.DECODE)))
        logger.info(
            "placed handoff_id=%s attempt=%d %s",
            self._request.handoff_id,
            self._flow.attempt,
            " ".join(f"{phase.name.lower()}={name}" for phase, name in names.items()),
        )
        return True

    def _wanted(self, needs: frozenset[Phase]) -> Wanted:
        request = self._request
        return Wanted(
            phases=needs,
            model=request.model,
            num_tokens=request.num_prompt_tokens + request.stop.max_tokens,
            num_input_tokens=request.num_prompt_tokens + self._flow.delivery.num_tokens,
            fingerprint=self._fingerprint,
            avoid=frozenset(self._flow.avoid),
        )

    def _wait_for_place(self, error: NoInstance | Saturated) -> None:
        now_s = self._around.clock.now_s()
        self._flow.wait_error = error
        if self._give_up_at_s is None:
            self._give_up_at_s = now_s + PLACE_WAIT_S
            logger.info("waits handoff_id=%s: %s", self._request.handoff_id, error)
        if now_s >= self._give_up_at_s:
            self._due.extend(self._flow.unplaceable(error))
        else:
            self._is_waiting = True
            self._start(self._place_later())

    async def _place_later(self) -> None:
        changed = self._around.membership.changed
        try:
            async with asyncio.timeout(PLACE_RETRY_S):
                await changed.wait()
        except TimeoutError:
            self._flow.avoid.clear()
        self._is_waiting = False
        self._act(())

    # --- workers ----------------------------------------------------------------------------

    def _start_prefill(self, action: StartPrefill) -> None:
        self._answer.timeline.called(self._around.clock.now_s())
        self._prefills[action.attempt] = self._start(self._read_prefill(action))

    async def _read_prefill(self, action: StartPrefill) -> None:
        error: BatonError = PeerLost(f"{action.instance_id}: the Prefill stream ended early")
        try:
            link = self._link(action.instance_id)
            async with aclosing(self._calls.prefill(link, action)) as events:
                async for event in events:
                    self._take_prefill_event(action, event)
        except BatonError as failure:
            error = failure
        self._act(self._flow.prefill_failed(action.attempt, error))

    def _take_prefill_event(self, action: StartPrefill, event: workers_pb2.PrefillEvent) -> None:
        which = event.WhichOneof("event")
        if which == "token":
            token = event.token
            timing = prefill_timing_from_pb(token.timing)
            self._answer.timeline.sampled(action.instance_id, timing)
            reason = finish_reason_from_pb(token.finish_reason)
            self._act(
                self._flow.prefill_sampled(action.attempt, token.position, token.token_id, reason)
            )
        elif which == "ended":
            self._lease_ended(action, event.ended.outcome)

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
            self._act(self._flow.decode_refused(action.instance_id, action.attempt, error))

    def _cancel_prefill(self, action: CancelPrefill) -> None:
        if (task := self._prefills.pop(action.attempt, None)) is not None:
            task.cancel()

    def _stop_decode(self, action: StopDecode) -> None:
        if (link := self._around.membership.get(action.instance_id)) is not None:
            link.stop(self._request.handoff_id, self._calls.fence(action.attempt))

    def _acknowledge(self, action: Acknowledge) -> None:
        if (link := self._attached.get(action.instance_id)) is not None:
            link.acknowledge(self._request.handoff_id, action.next_position, done=action.done)

    def _link(self, instance_id: InstanceId) -> InstanceLink:
        link = self._around.membership.get(instance_id)
        if link is None:
            raise PeerLost(f"{instance_id} left the cluster")
        return link

    def _attach_to(self, names: frozenset[InstanceId]) -> None:
        handoff_id = self._request.handoff_id
        for name in [name for name in self._attached if name not in names]:
            self._attached.pop(name).detach(handoff_id, self)
        for name in names - self._attached.keys():
            if (link := self._around.membership.get(name)) is not None:
                self._attached[name] = link
                link.attach(handoff_id, self)
