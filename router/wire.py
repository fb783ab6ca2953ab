"""Between the wire and the router's words: client requests in, events out, workers' news in."""

from collections.abc import Mapping
from dataclasses import replace

from core.errors import (
    BatonError,
    DeadlinePassed,
    FieldViolation,
    InvalidRequest,
    KvCorrupt,
    PeerLost,
    Saturated,
    Unsupported,
)
from core.request import SamplingParams
from core.validation import Chat, ChatMessage, RequestDraft, Resume
from router.actions import Output
from router.events import Accepted, Delta, Event, Finished, RequestTiming
from rpc.convert import (
    SAMPLING_NUMBERS,
    finish_reason_from_pb,
    finish_reason_to_pb,
    grammar_from_pb,
    logprobs_from_pb,
    logprobs_to_pb,
)
from rpc.convert_report import (
    handoff_timing_from_pb,
    handoff_timing_to_pb,
    kv_lost_from_pb,
    prefill_timing_from_pb,
    prefill_timing_to_pb,
)
from rpc.pb import generation_pb2, types_pb2, workers_pb2
from rpc.status import RemoteFault

MAX_WORKER_MESSAGE_CHARS = 512

_TIMING_FIELDS = (
    "ttft_s",
    "router_queue_s",
    "first_gap_s",
    "tpot_s",
    "e2e_s",
    "num_attempts",
    "prefill_instance_id",
    "decode_instance_id",
)
_ERRORS: Mapping[str, type[BatonError]] = {
    "UNAVAILABLE": PeerLost,
    "RESOURCE_EXHAUSTED": Saturated,
    "DATA_LOSS": KvCorrupt,
    "DEADLINE_EXCEEDED": DeadlinePassed,
    "UNIMPLEMENTED": Unsupported,
    # What a worker gives up, another may take up: ABORTED is no verdict on the request.
    "ABORTED": PeerLost,
    "CANCELLED": PeerLost,
}


def draft_from_pb(
    message: generation_pb2.GenerateRequest, defaults: SamplingParams
) -> RequestDraft:
    """What a client asks, `defaults` where it says nothing; nothing is checked here but what has no
    meaning at all."""
    stop, sampling = message.stop, message.sampling
    return RequestDraft(
        prompt=_prompt_from_pb(message),
        request_id=message.request_id,
        model=message.model,
        sampling=_sampling_from_pb(sampling, defaults),
        seed=sampling.seed if sampling.HasField("seed") else None,
        max_tokens=stop.max_tokens if stop.HasField("max_tokens") else None,
        min_tokens=stop.min_tokens,
        stop_token_ids=tuple(stop.stop_token_ids),
        stop_strings=tuple(stop.stop_strings),
        ignore_eos=stop.ignore_eos,
        num_choices=message.num_choices if message.HasField("num_choices") else 1,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        tenant=message.tenant,
        priority=message.priority,
        resume=_resume_from_pb(message.resume) if message.HasField("resume") else None,
    )


def _prompt_from_pb(
    message: generation_pb2.GenerateRequest,
) -> str | tuple[int, ...] | Chat | None:
    which = message.WhichOneof("prompt")
    if which == "text":
        return message.text
    if which == "token_ids":
        return tuple(message.token_ids.ids)
    if which == "chat":
        return Chat(tuple(ChatMessage(m.role, m.content) for m in message.chat.messages))
    return None


def _sampling_from_pb(
    message: types_pb2.SamplingParams, defaults: SamplingParams
) -> SamplingParams:
    present = {
        name: getattr(message, name)
        for name in SAMPLING_NUMBERS
        if message.HasField(name)  # type: ignore[arg-type]  # a literal of the same names
    }
    return replace(
        defaults,
        **present,
        logit_bias=dict(message.logit_bias),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        grammar=grammar_from_pb(message.grammar) if message.HasField("grammar") else None,
    )


def _resume_from_pb(message: generation_pb2.Resume) -> Resume:
    return Resume(epoch=message.epoch, output_token_ids=tuple(message.output_token_ids))


def event_to_pb(event: Event) -> generation_pb2.GenerateResponse:
    """One event of an answer."""
    if isinstance(event, Delta):
        delta = generation_pb2.Delta(
            choice=event.choice,
            position=event.position,
            token_ids=event.token_ids,
            text=event.text,
            logprobs=[logprobs_to_pb(token) for token in event.logprobs],
        )
        return generation_pb2.GenerateResponse(delta=delta)
    if isinstance(event, Finished):
        return generation_pb2.GenerateResponse(finished=_finished_to_pb(event))
    accepted = generation_pb2.Accepted(
        request_id=event.request_id,
        model=event.model,
        seed=event.seed,
        num_prompt_tokens=event.num_prompt_tokens,
    )
    return generation_pb2.GenerateResponse(accepted=accepted)


def event_from_pb(message: generation_pb2.GenerateResponse) -> Event | None:
    """One event of an answer; None for one of a newer router."""
    which = message.WhichOneof("event")
    if which == "delta":
        return _delta_from_pb(message.delta)
    if which == "finished":
        return _finished_from_pb(message.finished)
    if which == "accepted":
        accepted = message.accepted
        return Accepted(
            accepted.request_id, accepted.model, accepted.seed, accepted.num_prompt_tokens
        )
    return None


def _delta_from_pb(message: generation_pb2.Delta) -> Delta:
    num_tokens, num_logprobs = len(message.token_ids), len(message.logprobs)
    if num_logprobs not in (0, num_tokens):
        raise RemoteFault(f"{num_logprobs} log-probabilities with {num_tokens} tokens")
    return Delta(
        message.choice,
        message.position,
        tuple(message.token_ids),
        message.text,
        tuple(map(logprobs_from_pb, message.logprobs)),
    )


def _finished_to_pb(event: Finished) -> generation_pb2.Finished:
    timing = event.timing
    return generation_pb2.Finished(
        choice=event.choice,
        reason=finish_reason_to_pb(event.reason),
        matched_stop=event.matched_stop,
        num_output_tokens=event.num_output_tokens,
        timing=generation_pb2.RequestTiming(
            **{name: getattr(timing, name) for name in _TIMING_FIELDS},
            prefill=prefill_timing_to_pb(timing.prefill),
            handoff=handoff_timing_to_pb(timing.handoff),
        ),
    )


def _finished_from_pb(message: generation_pb2.Finished) -> Finished:
    reason = finish_reason_from_pb(message.reason)
    if reason is None:
        raise RemoteFault("a finished choice without a reason")
    timing = message.timing
    return Finished(
        choice=message.choice,
        reason=reason,
        matched_stop=message.matched_stop,
        num_output_tokens=message.num_output_tokens,
        timing=RequestTiming(
            **{name: getattr(timing, name) for name in _TIMING_FIELDS},
            prefill=prefill_timing_from_pb(timing.prefill),
            handoff=handoff_timing_from_pb(timing.handoff),
        ),
    )


def output_from_pb(message: workers_pb2.Output) -> Output:
    """A decode instance's news of one request. Raises InvalidRequest."""
    timing = handoff_timing_from_pb(message.timing) if message.HasField("timing") else None
    error = error_named(message.error_status, message.error_message)
    return Output(
        epoch=message.fence.epoch,
        attempt=message.fence.attempt,
        first_position=message.first_position,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(map(logprobs_from_pb, message.logprobs)),
        committed=message.committed,
        kv_lost=kv_lost_from_pb(message.kv_lost),
        finish_reason=finish_reason_from_pb(message.finish_reason),
        timing=timing,
        error=error if message.error_status else None,
    )


def error_named(status: str, message: str) -> BatonError:
    """The typed error that a worker's words stand for."""
    text = message[:MAX_WORKER_MESSAGE_CHARS]
    if status == "INVALID_ARGUMENT":
        return InvalidRequest((FieldViolation("request", text),))
    return _ERRORS.get(status, RemoteFault)(text)
