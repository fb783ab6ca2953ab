"""From a client's draft to its answer: validate, admit, run the choices, write events."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from core.clock import Clock
from core.config import RouterConfig
from core.errors import DeadlinePassed, FieldViolation, InvalidRequest, Saturated
from core.ids import RequestId
from core.request import Grammar, Request
from core.settings import Settings
from core.validation import (
    Arrival,
    Chat,
    ModelLimits,
    RequestDraft,
    build_request,
    check_draft,
    request_id_of,
)
from policy.admission import refusal
from policy.fairness import OUTPUT_TOKEN_COST, PROMPT_TOKEN_COST, Claim
from router.admission import Admission
from router.answer import Answer
from router.choice import Choice, Siblings
from router.events import Accepted, Delta, Event, Finished
from router.headroom import Headroom
from router.output import ClientBuffer
from router.record import ChoiceRecord, RequestRecord
from router.running import Running, RunningRequests
from router.served_model import ServedModel
from router.surroundings import Surroundings
from router.timeline import Timeline

logger = logging.getLogger(__name__)

LONG_PROMPT_CHARS = 8192
"""From here on tokenizing leaves the event loop: it takes about 1 ms for so many characters."""

Write = Callable[[Event], Awaitable[None]]
"""Gives one event to the client; waits while its connection is full."""


class Orchestrator:
    """All requests of one router; every front door calls `serve`."""

    def __init__(self, around: Surroundings, model: ServedModel, config: RouterConfig) -> None:
        self.admission = Admission(
            max_running=config.max_running,
            max_queued=config.max_queued,
            ageing_s=config.ageing_s,
            clock=around.clock,
            room=Headroom(around.placer, around.clock, config.slo_tpot_s),
        )
        self.model = model
        """Front doors read its defaults."""
        self._around = around
        self._config = config
        self._settings = Settings()
        self._running = RunningRequests(around.clock)

    @property
    def clock(self) -> Clock:
        """The one that deadlines are on."""
        return self._around.clock

    def use(self, settings: Settings) -> None:
        """From the next request on."""
        self._settings = settings
        limits, config = settings.limits, self._config
        self.admission.use_limits(
            max_running=limits.max_running or config.max_running,
            max_queued=limits.max_queued or config.max_queued,
        )

    async def serve(
        self,
        draft: RequestDraft,
        write: Write,
        *,
        timeout_s: float | None,
        request_id: RequestId | None = None,
        door: str = "grpc",
    ) -> None:
        """Write the whole answer; `timeout_s` is the transport's own limit.

        `request_id` is what the door has called it already: `request_id_of` the draft's own.
        Raises the typed error that ended it. A cancel of the caller ends it everywhere.
        """
        request_id = request_id or request_id_of(draft.request_id)
        recorder = self._around.recorder
        with recorder.recording(request_id, door, draft.trace_parent) as record:
            request = await self._accept(draft, timeout_s, record)
            await self._admit(request, draft.num_choices, write, record)

    async def _accept(
        self, draft: RequestDraft, timeout_s: float | None, record: RequestRecord
    ) -> Request:
        """The request that a draft makes, if it can be served at all."""
        self.admission.check(draft.tenant)
        record.model = self._around.membership.find_model(draft.model)
        limits = self.model.limits(self._around.membership.max_context_tokens(record.model))
        check_draft(draft, limits)
        arrival = Arrival(
            request_id=record.request_id,
            model=record.model,
            seed=secrets.randbits(64) if draft.seed is None else draft.seed,
            arrived_at_s=record.arrived_at_s,
            deadline_s=record.arrived_at_s + self._allowed_s(draft, timeout_s),
        )
        request = await self._build(draft, limits, arrival)
        if request.sampling.grammar is not None:
            await self._check_grammar(request.sampling.grammar)
        self._around.suspects.check(request)
        self._check_priority(request)
        return request

    async def _admit(
        self, request: Request, num_choices: int, write: Write, record: RequestRecord
    ) -> None:
        """Wait for a place, and run in it."""
        now_s, admission = self.clock.now_s(), self.admission
        left_s = request.deadline_s - now_s
        record.asks(
            request, now_s, num_running=admission.num_running, num_queued=admission.num_queued
        )
        self._refuse_hopeless(request, left_s)
        with (
            self._running.hold(request) as running,
            self._within_quota(request, num_choices, write) as metered,
        ):
            cost = self._weighted(request, PROMPT_TOKEN_COST * request.num_prompt_tokens)
            async with admission.admit(
                left_s, _claim(request), cost=cost, patience_s=self._config.slo_ttft_s or None
            ):
                record.admitted_at_s = self.clock.now_s()
                running.check()
                await self._run(request, running, metered, self._open(request, num_choices, record))

    def _open(
        self, request: Request, num_choices: int, record: RequestRecord
    ) -> list[ChoiceRecord]:
        written = self._around.recorder.metrics.written(request.model)
        record.choices = [
            ChoiceRecord(
                index=index,
                timeline=Timeline(arrived_at_s=request.arrived_at_s, written=written),
            )
            for index in range(num_choices)
        ]
        return record.choices

    def _check_priority(self, request: Request) -> None:
        limit = self._settings.of_tenant(request.tenant).max_priority
        if request.priority > limit:
            reason = f"at most {limit} for this tenant, got {request.priority}"
            raise InvalidRequest((FieldViolation("priority", reason),))

    @contextmanager
    def _within_quota(self, request: Request, num_choices: int, write: Write) -> Iterator[Write]:
        """Takes what the answer may need, and gives back what it did not; counts what is written.

        So nobody passes a quota by many answers at once. Raises QuotaExceeded.
        """
        num_most = num_choices * request.stop.max_tokens
        num_written = 0

        async def counted(event: Event) -> None:
            nonlocal num_written
            if isinstance(event, Delta):
                num_written += len(event.token_ids)
            await write(event)

        quotas = self._around.quotas
        quotas.admit(request.tenant, request.num_prompt_tokens + num_most)
        try:
            yield counted
        finally:
            quotas.refund(request.tenant, num_most - num_written)

    def _weighted(self, request: Request, cost: float) -> float:
        return cost / self._settings.of_tenant(request.tenant).weight

    def _refuse_hopeless(self, request: Request, left_s: float) -> None:
        """Raise what the client would learn later, when the work has been done for nothing."""
        seen = self._around.placer.forecast(request)
        if seen is None:
            return
        line_wait_s = self.admission.line_wait_s
        verdict = refusal(seen, line_wait_s, left_s, self._config.slo_ttft_s)
        if verdict is None:
            return
        why = (
            f"first token predicted in {verdict.predicted_s:.3g} s,"
            f" allowed are {verdict.allowed_s:.3g} s"
        )
        if verdict.by_load:
            raise Saturated(why, retry_after_s=verdict.retry_after_s)
        raise DeadlinePassed(f"{why}, even if nobody else were here")

    async def drain(self) -> None:
        """Refuse new requests; return when the old have ended."""
        self.admission.drain()
        await self.admission.idle.wait()

    def _allowed_s(self, draft: RequestDraft, timeout_s: float | None) -> float:
        default_s = self._settings.limits.default_timeout_s or self._config.default_timeout_s
        own_s = default_s if draft.timeout_s is None else draft.timeout_s
        allowed_s = own_s if timeout_s is None else min(own_s, timeout_s)
        if allowed_s <= 0:
            raise DeadlinePassed("the deadline had passed on arrival")
        return allowed_s

    async def _build(self, draft: RequestDraft, limits: ModelLimits, arrival: Arrival) -> Request:
        prompt = draft.prompt
        if isinstance(prompt, tuple):
            return build_request(draft, prompt, limits, arrival)
        if _num_chars(draft) < LONG_PROMPT_CHARS:
            ids = self._tokenize(draft)
        else:
            ids = await asyncio.to_thread(self._tokenize, draft)
        return build_request(draft, ids, limits, arrival)

    async def _check_grammar(self, grammar: Grammar) -> None:
        # Compiling takes milliseconds, which the event loop does not have.
        await asyncio.to_thread(self.model.grammars.check, grammar)

    def _tokenize(self, draft: RequestDraft) -> tuple[int, ...]:
        prompt, tokenizer = draft.prompt, self.model.tokenizer
        if isinstance(prompt, Chat):
            messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
            return tuple(tokenizer.encode_chat(messages))
        assert isinstance(prompt, str), "checked: a prompt is text, tokens or a chat"
        return tuple(tokenizer.encode(prompt))

    async def _run(
        self, request: Request, running: Running, write: Write, records: Sequence[ChoiceRecord]
    ) -> None:
        config, num_choices = self._config, len(records)
        buffer = ClientBuffer(
            max_bytes=config.max_client_buffer_bytes,
            stall_s=config.client_stall_s,
            clock=self.clock,
        )
        siblings = Siblings()
        running.choices = [
            Choice(
                child := replace(request, child_index=record.index),
                self._around,
                Answer(child, self.model.tokenizer, buffer, record),
                siblings,
                num_attempts_before=running.num_attempts_before,
            )
            for record in records
        ]
        logger.info(
            "admitted request_id=%s num_prompt_tokens=%d num_choices=%d epoch=%d",
            request.request_id,
            request.num_prompt_tokens,
            num_choices,
            request.epoch,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(choice.run()) for choice in running.choices]
            # Beside, not in place of, this wait: a client that does not read must not hold it up.
            tasks.append(group.create_task(self._write(request, num_choices, buffer, write)))
            await buffer.over.wait()
            for task in tasks:
                task.cancel()
        if buffer.error is not None:
            raise buffer.error

    async def _write(
        self, request: Request, num_choices: int, buffer: ClientBuffer, write: Write
    ) -> None:
        """Until every choice has finished or the request has failed."""
        await write(_accepted(request))
        num_finished = 0
        while num_finished < num_choices:
            for event in await buffer.take():
                await write(event)
                num_finished += isinstance(event, Finished)
                if isinstance(event, Delta):
                    cost = self._weighted(request, OUTPUT_TOKEN_COST * len(event.token_ids))
                    self.admission.charge(request.tenant, cost)
        buffer.over.set()


def _claim(request: Request) -> Claim:
    return Claim(
        tenant=request.tenant, priority=request.priority, arrived_at_s=request.arrived_at_s
    )


def _accepted(request: Request) -> Accepted:
    return Accepted(
        request.request_id, request.model, request.sampling.seed, request.num_prompt_tokens
    )


def _num_chars(draft: RequestDraft) -> int:
    if isinstance(draft.prompt, Chat):
        return sum(len(message.content) for message in draft.prompt.messages)
    return len(draft.prompt or "")
