"""Frames and acknowledgements between the outbox and the wire."""

from collections.abc import Iterable, Iterator

from decode_worker.outbox import Ack, Output
from decode_worker.routers import Frame
from rpc.convert import fence_to_pb, finish_reason_to_pb, handoff_id_from_pb, logprobs_to_pb
from rpc.convert_report import handoff_timing_to_pb, kv_lost_to_pb, load_to_pb
from rpc.pb import workers_pb2


def frame_to_pb(frame: Frame) -> workers_pb2.TokenFrame:
    """One step's news for one router."""
    message = workers_pb2.TokenFrame(
        outputs=map(output_to_pb, frame.outputs), load=load_to_pb(frame.load)
    )
    if (news := frame.kv_news) is not None:
        message.kv_events.is_snapshot = news.is_snapshot
        message.kv_events.stored.extend(news.stored)
        message.kv_events.removed.extend(news.removed)
    return message


def output_to_pb(output: Output) -> workers_pb2.Output:
    """News of one request."""
    facts = output.facts
    message = workers_pb2.Output(
        handoff_id=output.handoff_id,
        fence=fence_to_pb(output.fence),
        first_position=output.first_position,
        token_ids=output.token_ids,
        committed=facts.committed,
        kv_lost=kv_lost_to_pb(facts.kv_lost),
        finish_reason=finish_reason_to_pb(facts.finish_reason),
        logprobs=map(logprobs_to_pb, output.logprobs),
    )
    if facts.timing is not None:
        message.timing.CopyFrom(handoff_timing_to_pb(facts.timing))
    if facts.failure is not None:
        message.error_status = facts.failure.status
        message.error_message = facts.failure.message
    return message


def acks_from_pb(acks: Iterable[workers_pb2.Ack]) -> Iterator[Ack]:
    """What a router has read."""
    for ack in acks:
        yield Ack(
            handoff_id=handoff_id_from_pb(ack.handoff_id),
            next_position=ack.next_position,
            done=ack.done,
        )
