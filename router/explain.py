"""One request's record as the message that explains it."""

from policy.table import Phase
from router.record import Attempt, ChoiceRecord, Loss, RequestRecord
from router.spans import Span, spans_of
from router.timeline import Timeline
from router.verdict import verdict
from rpc.pb import cluster_pb2


def explained(record: RequestRecord, router_id: str, now_s: float) -> cluster_pb2.ExplainReply:
    """`now_s` is for one that still runs."""
    end_s = now_s if record.ended_at_s is None else record.ended_at_s
    outcome, none_yet = record.outcome, Timeline(arrived_at_s=record.arrived_at_s)
    return cluster_pb2.ExplainReply(
        request_id=record.request_id,
        router_id=router_id,
        door=record.door,
        model=record.model,
        tenant=record.tenant,
        arrived_at_unix_s=record.arrived_at_unix_s,
        duration_s=end_s - record.arrived_at_s,
        num_prompt_tokens=record.num_prompt_tokens,
        num_output_tokens=sum(choice.timeline.num_tokens for choice in record.choices),
        status=outcome.status,
        reason=outcome.reason,
        message=outcome.message,
        admitted=record.admitted_at_s is not None,
        num_running_before=record.num_running_before,
        num_queued_before=record.num_queued_before,
        choices=[_choice(record, choice, now_s) for choice in record.choices],
        verdict=verdict(record, now_s),
        spans=[] if record.choices else _spans(record, spans_of(record, none_yet, now_s)),
    )


def _choice(
    record: RequestRecord, choice: ChoiceRecord, now_s: float
) -> cluster_pb2.ExplainedChoice:
    timing = choice.timeline.timing()
    return cluster_pb2.ExplainedChoice(
        index=choice.index,
        status=choice.outcome.status,
        reason=choice.outcome.reason,
        num_output_tokens=choice.timeline.num_tokens,
        ttft_s=timing.ttft_s,
        first_gap_s=timing.first_gap_s,
        tpot_s=timing.tpot_s,
        e2e_s=timing.e2e_s,
        num_hit_tokens=timing.prefill.num_hit_tokens,
        num_fetched_tokens=timing.prefill.num_fetched_tokens,
        num_kv_bytes=choice.num_kv_bytes,
        spans=_spans(record, spans_of(record, choice.timeline, now_s)),
        num_attempts=choice.num_attempts,
        attempts=[_attempt(record, attempt, now_s) for attempt in choice.attempts],
    )


def _spans(record: RequestRecord, spans: tuple[Span, ...]) -> list[cluster_pb2.ExplainedSpan]:
    return [
        cluster_pb2.ExplainedSpan(
            name=span.name,
            part_of=span.part_of,
            start_s=span.start_s - record.arrived_at_s,
            duration_s=span.duration_s,
        )
        for span in spans
    ]


def _attempt(record: RequestRecord, attempt: Attempt, now_s: float) -> cluster_pb2.ExplainedAttempt:
    end_s = now_s if attempt.ended_at_s is None else attempt.ended_at_s
    return cluster_pb2.ExplainedAttempt(
        number=attempt.number,
        start_s=attempt.placed_at_s - record.arrived_at_s,
        duration_s=end_s - attempt.placed_at_s,
        prefill_instance_id=attempt.instance_ids.get(Phase.PREFILL, ""),
        decode_instance_id=attempt.instance_ids.get(Phase.DECODE, ""),
        reasons=attempt.reasons,
        losses=[_loss(record, loss) for loss in attempt.losses],
    )


def _loss(record: RequestRecord, loss: Loss) -> cluster_pb2.ExplainedLoss:
    return cluster_pb2.ExplainedLoss(
        at_s=loss.at_s - record.arrived_at_s, reason=loss.reason, message=loss.message
    )
