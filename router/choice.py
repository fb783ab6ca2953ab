"""One choice under way: feeds its flow with what happens and does what the flow says."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from core.errors import BatonError, NoInstance, Quarantined, RetriesSpent, Saturated
from core.ids import Fingerprint, InstanceId
from core.request import Request
from core.timing import HandoffTiming
from core.waiting import wait_at_most
from policy.table import Phase
from router.actions import Action, Deliver, Fail, Finish, Output
from router.answer import Answer
from router.crew import Crew
from router.flow import Flow
from router.link import Health, InstanceLink
from router.placer import Placed, Wanted
from router.record import Attempt, Outcome, outcome_of
from router.surroundings import Surroundings
from router.witness import Witness

logger = logging.getLogger(__name__)

PLACE_WAIT_S = 30.0
"""For an instance to come up: Ray has restarted a killed one, model loaded, in about 10 s."""
PLACE_RETRY_S = 0.25
"""Without news of the membership: queues drain, and instances that failed once are forgiven."""
VERDICT_RETRY_S = 0.02
"""Whether an instance has died, or a suspect has cleared itself, is known within moments."""


class SuspectsEverywhere(NoInstance):
    """Every instance that could take a suspect has another one."""


@dataclass(slots=True, eq=False)
class Siblings:
    """What the choices of one request know of each other."""

    prefill_id: InstanceId | None = None
    """Where one of them was prefilled last: the prompt is in that instance's prefix cache."""


class Choice:
    """Walks one flow. The links call it; everything else happens in `run`."""

    def __init__(
        self,
        request: Request,
        around: Surroundings,
        answer: Answer,
        siblings: Siblings,
        *,
        num_attempts_before: int = 0,
    ) -> None:
        self._request = request
        self._around = around
        self._answer = answer
        self._record = answer.record
        self._num_losses_seen = 0
        self._siblings = siblings
        self._flow = Flow(
            request,
            max_attempts=around.max_attempts,
            num_attempts_before=num_attempts_before,
        )
        self._witness = Witness(request, around, self._flow)
        self._crew = Crew(request, around, self._flow, self._witness, answer.timeline, self._act)
        self._due: deque[Action] = deque()
        self._is_acting = False
        self._over = asyncio.Event()
        self._bug: Exception | None = None
        self._group = asyncio.TaskGroup()
        self._fingerprint: Fingerprint | None = None
        """Of the first placement, and so of every later one."""
        self._is_waiting = False
        self._kept: dict[Phase, Placed] | None = None
        self._give_up_at_s: float | None = None

    @property
    def last_attempt(self) -> int:
        """The highest that any worker has seen."""
        return self._flow.attempt

    async def run(self) -> None:
        """From admission to the end; the answer holds the outcome. A cancel stops both workers."""
        with self._witness.testifies():
            await self._run()

    async def _run(self) -> None:
        async with self._group:
            try:
                self._begin()
                await self._until_over()
            finally:
                # While the group is open still: what comes in later finds the flow over.
                self.give_up(None)
                self._crew.end()
        if self._bug is not None:
            raise self._bug

    def give_up(self, error: BatonError | None) -> None:
        """End it, if it has not ended; `error` says why when it was not the client's wish."""
        self._act(self._flow.cancelled(error))

    def on_output(self, instance_id: InstanceId, output: Output) -> None:
        """News from a decode instance."""
        try:
            self._note_writer(instance_id, output)
            self._witness.told(instance_id, output)
            self._act(self._flow.output(instance_id, output))
        except Exception as bug:  # noqa: BLE001 - the link that calls here serves others too
            self._crash(bug)

    def on_lost(self, instance_id: InstanceId, error: BatonError) -> None:
        """An instance is gone."""
        try:
            self._crew.forget(instance_id)
            self._act(self._flow.instance_lost(instance_id, error))
        except Exception as bug:  # noqa: BLE001 - as above
            self._crash(bug)

    def _crash(self, bug: Exception) -> None:
        self._bug = bug
        self._over.set()

    def _note_writer(self, instance_id: InstanceId, output: Output) -> None:
        decode = self._flow.decode
        if decode is not None and decode.instance_id == instance_id and output.token_ids:
            self._answer.timeline.handed_over(instance_id, output.timing)
            if output.timing is not None:
                self._record.handed_over(output.timing)
            if output.timing is not None and (prefill := self._flow.prefill) is not None:
                self._learn(prefill.instance_id, instance_id, output.timing)

    def _learn(self, source_id: InstanceId, sink_id: InstanceId, timing: HandoffTiming) -> None:
        view = self._around.membership.view
        source, sink = view.fleet.rows.get(source_id), view.fleet.rows.get(sink_id)
        if source is not None and sink is not None:
            view.observed.handed_over(source, sink, timing)

    # --- the loop ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._answer.begin(self._request.resumed_token_ids):
            self._act(self._flow.stop_matched())
        else:
            self._act(self._flow.begin())

    async def _until_over(self) -> None:
        timeout_s = self._request.deadline_s - self._around.clock.now_s()
        if not await wait_at_most(self._over, timeout_s):
            self._act(self._flow.deadline())

    def _act(self, actions: Iterable[Action]) -> None:
        """Do these, and what follows from them, then place what the flow still needs."""
        self._due.extend(actions)
        self._note_losses()
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._due or self._place():
                while self._due:
                    self._do(self._due.popleft())
            sides = (self._flow.prefill, self._flow.decode)
            names = frozenset(side.instance_id for side in sides if side is not None)
            self._crew.attach_to(names, self)
            self._witness.look()
        finally:
            self._is_acting = False

    def _note_losses(self) -> None:
        if len(self._flow.losses) == self._num_losses_seen:
            return  # nearly always: every frame of tokens comes by here
        for error in self._flow.losses[self._num_losses_seen :]:
            self._record.lost(error, self._around.clock.now_s())
        self._num_losses_seen = len(self._flow.losses)

    def _do(self, action: Action) -> None:
        logger.debug("do handoff_id=%s %s", self._request.handoff_id, type(action).__name__)
        match action:
            case Deliver():
                if self._answer.deliver(action.position, action.token_ids, action.logprobs):
                    self._due.extend(self._flow.stop_matched())
            case Finish():
                self._answer.finish(action.reason, self._flow.num_attempts)
                self._end(Outcome("OK", action.reason.name))
            case Fail():
                self._answer.fail(action.error)
                self._end(outcome_of(action.error))
            case _:
                self._crew.do(action, self._group)

    def _end(self, outcome: Outcome) -> None:
        self._record.ended(outcome, self._around.clock.now_s())
        logger.info(
            "over handoff_id=%s state=%s why=%s num_tokens=%d attempts=%d",
            self._request.handoff_id,
            self._flow.state.value,
            outcome.reason,
            self._flow.delivery.num_tokens,
            self._flow.num_attempts,
        )
        self._over.set()

    # --- placing ----------------------------------------------------------------------------

    def _place(self) -> bool:
        """Place what is missing; False when nothing is, or nobody can take it now."""
        needs = self._flow.needs
        if not needs or self._is_waiting:
            return False
        if self._witness.is_undecided:
            self._wait(VERDICT_RETRY_S)
            return False
        try:
            self._witness.check()
            found = self._take_kept(needs) or self._find(needs)
        except Quarantined as error:
            self._due.extend(self._flow.unplaceable(error))
            return True
        except (NoInstance, Saturated) as error:
            self._wait_for_place(error)
            return bool(self._due)
        if unproven := self._witness.unproven(placed.link for placed in found.values()):
            self._is_waiting = True
            self._crew.start(self._prove(found, unproven), self._group)
            return False
        self._start(found)
        return True

    def _start(self, found: dict[Phase, Placed]) -> None:
        self._give_up_at_s = None
        self._witness.placed()
        names = {phase: placed.link.member.instance_id for phase, placed in found.items()}
        self._siblings.prefill_id = names.get(Phase.PREFILL, self._siblings.prefill_id)
        self._fingerprint = next(iter(found.values())).link.member.fingerprint
        self._due.extend(self._flow.placed(names.get(Phase.PREFILL), names.get(Phase.DECODE)))
        self._note_attempt(found)
        logger.info(
            "placed handoff_id=%s attempt=%d %s",
            self._request.handoff_id,
            self._flow.attempt,
            " ".join(f"{phase.name.lower()}={name}" for phase, name in names.items()),
        )

    def _note_attempt(self, found: Mapping[Phase, Placed]) -> None:
        sides = {Phase.PREFILL: self._flow.prefill, Phase.DECODE: self._flow.decode}
        self._record.placed(
            Attempt(
                number=self._flow.attempt,
                placed_at_s=self._around.clock.now_s(),
                instance_ids={p: side.instance_id for p, side in sides.items() if side},
                reasons=tuple(
                    f"{phase.name.lower()} {placed.link.member.instance_id}: {reason}"
                    for phase, placed in found.items()
                    for reason in placed.reasons
                ),
            )
        )

    def _take_kept(self, needs: frozenset[Phase]) -> dict[Phase, Placed] | None:
        """The place found before it was proven that somebody lives there, if it still fits."""
        kept, self._kept = self._kept, None
        if kept is None or kept.keys() != needs:
            return None
        # Another suspect may have been faster.
        apart_from = self._witness.apart_from
        for link in (placed.link for placed in kept.values()):
            if link.health is not Health.UP or link.member.instance_id in apart_from:
                return None
        return kept

    def _find(self, needs: frozenset[Phase]) -> dict[Phase, Placed]:
        """Raises NoInstance or Saturated while it has to wait."""
        if (refusal := self._witness.refusal) is not None:
            raise refusal
        wanted = self._wanted(needs)
        if not (apart_from := self._witness.apart_from):
            return self._around.placer.place(wanted)
        try:
            return self._around.placer.place(replace(wanted, avoid=wanted.avoid | apart_from))
        except (NoInstance, Saturated) as error:
            raise SuspectsEverywhere(str(error)) from None

    def _wanted(self, needs: frozenset[Phase]) -> Wanted:
        request = self._request
        return Wanted(
            phases=needs,
            model=request.model,
            num_tokens=request.num_prompt_tokens + request.stop.max_tokens,
            input_token_ids=request.prompt_token_ids + self._flow.delivery.token_ids,
            tenant=request.tenant,
            fingerprint=self._fingerprint,
            avoid=frozenset(self._flow.avoid),
            source_id=self._flow.prefill.instance_id if self._flow.prefill else None,
            prefer_id=self._siblings.prefill_id,
            sink_id=self._flow.decode.instance_id if self._flow.decode else None,
            priority=request.priority,
        )

    def _wait_for_place(self, error: NoInstance | Saturated) -> None:
        now_s = self._around.clock.now_s()
        self._flow.wait_error = error
        if isinstance(error, SuspectsEverywhere):
            self._wait(VERDICT_RETRY_S)
            return
        if isinstance(error, RetriesSpent):
            # Its turn comes, or its deadline.
            self._wait(PLACE_RETRY_S)
            return
        if self._give_up_at_s is None:
            self._give_up_at_s = now_s + PLACE_WAIT_S
            logger.info("waits handoff_id=%s: %s", self._request.handoff_id, error)
        if now_s >= self._give_up_at_s:
            self._due.extend(self._flow.unplaceable(error))
        else:
            self._wait(PLACE_RETRY_S, forgive=self._flow.avoid)

    async def _prove(
        self, found: dict[Phase, Placed], unproven: Mapping[InstanceLink, float]
    ) -> None:
        for link, since_s in unproven.items():
            if not await link.prove(since_s):
                self._flow.avoid.add(link.member.instance_id)
                await self._place_later(VERDICT_RETRY_S, frozenset())
                return
        self._kept, self._is_waiting = found, False
        self._act(())

    def _wait(self, timeout_s: float, forgive: AbstractSet[InstanceId] = frozenset()) -> None:
        self._is_waiting = True
        self._crew.start(self._place_later(timeout_s, forgive), self._group)

    async def _place_later(self, timeout_s: float, forgive: AbstractSet[InstanceId]) -> None:
        """After a change of the membership; after `timeout_s` without one, forgive these."""
        changed = self._around.membership.changed
        if not await wait_at_most(changed, timeout_s):
            self._flow.avoid -= forgive
        self._is_waiting = False
        self._act(())
