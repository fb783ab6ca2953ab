"""The flow: single steps as a table of stories."""

from dataclasses import replace

import pytest

from core.errors import (
    AttemptsExhausted,
    BatonError,
    DeadlinePassed,
    InvalidRequest,
    NoInstance,
    PeerLost,
    Saturated,
    WrongState,
)
from core.ids import InstanceId
from core.lifecycle import State
from core.request import FinishReason, TokenLogprobs
from core.work import KvLostReason
from router.actions import (
    Acknowledge,
    CancelPrefill,
    Deliver,
    Fail,
    Finish,
    Output,
    StartDecode,
    StartPrefill,
    StopDecode,
)
from router.flow import Flow
from rpc.status import RemoteFault
from tests.router.flows import (
    BOTH,
    D0,
    D1,
    LOST,
    ONLY_DECODE,
    ONLY_PREFILL,
    P0,
    P1,
    decoding_flow,
    kinds,
    likely,
    likely_tokens,
    new_flow,
    placed_flow,
    tokens,
)


def test_the_plain_way() -> None:
    flow = new_flow()
    assert flow.begin() == []
    assert flow.needs == BOTH
    assert kinds(flow.placed(P0, D0)) == ["StartPrefill", "StartDecode"]
    assert flow.needs == frozenset()
    assert flow.prefill_sampled(1, 0, 10, None) == [Deliver(position=0, token_ids=(10,))]
    assert flow.state is State.HANDING_OFF
    # Decode repeats prefill's token.
    assert flow.output(D0, tokens(1, 0, [10])) == [
        Acknowledge(instance_id=D0, next_position=1, done=False)
    ]
    assert flow.prefill_done(1) == []
    assert flow.output(D0, tokens(1, 1, [11, 12])) == [
        Deliver(position=1, token_ids=(11, 12)),
        Acknowledge(instance_id=D0, next_position=3, done=False),
    ]
    assert flow.output(D0, tokens(1, 3, [13], FinishReason.LENGTH)) == [
        Deliver(position=3, token_ids=(13,)),
        Acknowledge(instance_id=D0, next_position=4, done=True),
        Finish(FinishReason.LENGTH),
    ]


@pytest.mark.parametrize("max_tokens", [1])
def test_one_token_never_needs_decode(max_tokens: int) -> None:
    flow = new_flow(max_tokens)
    flow.begin()
    assert flow.needs == ONLY_PREFILL
    [start] = flow.placed(P0, None)
    assert isinstance(start, StartPrefill)
    assert start.only_first_token
    actions = flow.prefill_sampled(1, 0, 10, FinishReason.LENGTH)
    assert kinds(actions) == ["Deliver", "CancelPrefill", "Finish"]


def test_one_token_left_after_a_loss_never_needs_decode() -> None:
    flow = placed_flow(max_tokens=2)
    flow.prefill_sampled(1, 0, 10, None)
    flow.prefill_failed(1, LOST)
    assert flow.needs == ONLY_PREFILL
    stop, start = flow.placed(P1, None)
    assert stop == StopDecode(instance_id=D0, attempt=1)
    assert isinstance(start, StartPrefill)
    assert (start.only_first_token, start.output_token_ids) == (True, (10,))


def test_a_tokens_end_is_the_routers_to_judge_too() -> None:
    flow = placed_flow()
    actions = flow.output(D0, tokens(1, 0, [10, 99, 12]))
    assert actions[0] == Deliver(position=0, token_ids=(10, 99))
    assert actions[-1] == Finish(FinishReason.STOP)
    assert StopDecode(instance_id=D0, attempt=1) in actions


def test_log_probabilities_stay_with_their_tokens() -> None:
    flow = placed_flow(num_logprobs=1)
    # Early: it waits for prefill's token, and keeps what is its own.
    assert kinds(flow.output(D0, likely_tokens(1, 1, [11]))) == ["Acknowledge"]
    assert flow.prefill_sampled(1, 0, 10, None, likely(10)) == [
        Deliver(position=0, token_ids=(10, 11), logprobs=likely(10, 11))
    ]
    # The repeated ones go, and theirs with them; so does what comes after the end.
    assert flow.output(D0, likely_tokens(1, 1, [11, 99, 13]))[0] == Deliver(
        position=2, token_ids=(99,), logprobs=likely(99)
    )


MISMATCHES = [
    # id                 asked  sent
    ("none", 0, ()),
    ("too few", 0, likely(10)),
    ("too many", 0, likely(10, 11, 12)),
    ("nobody asked", None, likely(10, 11)),
]


@pytest.mark.parametrize(
    ("asked", "sent"), [c[1:] for c in MISMATCHES], ids=[c[0] for c in MISMATCHES]
)
def test_a_decode_that_sends_other_log_probabilities_than_asked_is_left(
    asked: int | None, sent: tuple[TokenLogprobs, ...]
) -> None:
    flow = placed_flow(num_logprobs=asked)
    flow.prefill_sampled(1, 0, 10, None, likely(10) if asked is not None else ())
    output = replace(tokens(1, 0, [10, 11]), logprobs=sent)
    assert flow.output(D0, output) == [StopDecode(instance_id=D0, attempt=1)]
    assert (flow.needs, flow.avoid) == (ONLY_DECODE, {D0})


@pytest.mark.parametrize(("asked", "sent"), [(0, ()), (None, likely(10))])
def test_a_prefill_that_sends_other_log_probabilities_than_asked_is_left(
    asked: int | None, sent: tuple[TokenLogprobs, ...]
) -> None:
    flow = placed_flow(num_logprobs=asked, max_attempts=1)
    cancel, _, failed = flow.prefill_sampled(1, 0, 10, None, sent)
    assert cancel == CancelPrefill(instance_id=P0, attempt=1)
    assert isinstance(failed, Fail)
    assert RemoteFault(f"p0: {len(sent)} log-probabilities with 1 tokens").reason in str(
        failed.error
    )


def test_decode_lost_before_commit_fetches_from_the_same_lease() -> None:
    flow = placed_flow()
    flow.prefill_sampled(1, 0, 10, None)
    assert flow.instance_lost(D0, LOST) == []
    assert flow.needs == ONLY_DECODE
    assert flow.placed(None, D1) == [
        # Not forced: the KV ends before prefill's token.
        StartDecode(instance_id=D1, attempt=2, source_id=P0, output_token_ids=())
    ]


def test_decode_lost_after_it_took_the_kv_needs_both() -> None:
    flow = placed_flow()
    flow.prefill_sampled(1, 0, 10, None)
    flow.prefill_done(1)
    assert flow.instance_lost(D0, LOST) == []
    assert flow.needs == BOTH


def test_decode_lost_while_decoding_forces_what_was_delivered() -> None:
    flow = decoding_flow()
    flow.instance_lost(D0, LOST)
    assert flow.needs == BOTH
    start, decode = flow.placed(P1, D1)
    assert isinstance(start, StartPrefill)
    assert isinstance(decode, StartDecode)
    assert start.output_token_ids == decode.output_token_ids == (10, 11)


@pytest.mark.parametrize("lose", ["failed", "instance", "kv"])
def test_prefill_lost_before_commit_retargets(lose: str) -> None:
    flow = placed_flow()
    flow.prefill_sampled(1, 0, 10, None)
    if lose == "failed":
        flow.prefill_failed(1, LOST)
    elif lose == "instance":
        flow.instance_lost(P0, LOST)
    else:
        flow.output(D0, Output(epoch=0, attempt=1, kv_lost=KvLostReason.STALLED))
    assert flow.needs == ONLY_PREFILL
    assert flow.avoid == {P0}
    assert kinds(flow.placed(P1, None)) == ["StartPrefill", "Retarget"]


def retargeted_flow() -> Flow:
    flow = placed_flow()
    flow.prefill_sampled(1, 0, 10, None)
    flow.prefill_failed(1, LOST)
    flow.placed(P1, None)
    return flow


def test_retarget_refused_because_committed() -> None:
    flow = retargeted_flow()
    assert flow.decode_refused(D0, 2, WrongState("committed")) == [
        CancelPrefill(instance_id=P1, attempt=2)
    ]
    assert flow.state is State.DECODING
    assert flow.output(D0, tokens(1, 1, [11]))[0] == Deliver(position=1, token_ids=(11,))


def test_commit_is_heard_before_the_refusal() -> None:
    flow = retargeted_flow()
    actions = flow.output(D0, tokens(1, 0, [10, 11]))
    assert CancelPrefill(instance_id=P1, attempt=2) in actions
    assert flow.decode_refused(D0, 2, WrongState("committed")) == []


def test_second_kv_loss_suspects_decode_too() -> None:
    flow = retargeted_flow()
    lost = Output(epoch=0, attempt=1, kv_lost=KvLostReason.PEER)
    flow.output(D0, lost)  # of an attempt that was retargeted: late
    assert flow.needs == frozenset()
    flow.output(D0, Output(epoch=0, attempt=2, kv_lost=KvLostReason.PEER))
    assert flow.needs == ONLY_PREFILL
    flow.placed(P0, None)
    flow.output(D0, Output(epoch=0, attempt=3, kv_lost=KvLostReason.PEER))
    assert flow.needs == BOTH


STALE = [
    ("another instance", D1, tokens(1, 0, [10])),
    ("a later attempt than told", D0, tokens(2, 0, [10])),
    ("another epoch", D0, Output(epoch=3, attempt=1, token_ids=(10,))),
    ("no attempt", D0, tokens(0, 0, [10])),
]


@pytest.mark.parametrize(("sender", "output"), [c[1:] for c in STALE], ids=[c[0] for c in STALE])
def test_stale_outputs_do_nothing(sender: InstanceId, output: Output) -> None:
    flow = placed_flow()
    assert flow.output(sender, output) == []
    assert flow.state is State.PREFILLING


ERRORS = [
    # id            error                     fails at once with
    ("preempted", Saturated("full"), None),
    ("lost", LOST, None),
    ("verdict", InvalidRequest(()), InvalidRequest),
]


@pytest.mark.parametrize(("error", "fails"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_errors_of_workers(error: BatonError, fails: type[BatonError] | None) -> None:
    flow = decoding_flow()
    actions = flow.output(D0, Output(epoch=0, attempt=1, error=error))
    assert actions[0] == Acknowledge(instance_id=D0, next_position=2, done=True)
    if fails is None:
        assert flow.needs == BOTH
    else:
        [failed] = [action for action in actions if isinstance(action, Fail)]
        assert isinstance(failed.error, fails)


def test_attempts_run_out_with_the_last_cause() -> None:
    flow = placed_flow(max_attempts=2)
    flow.prefill_failed(1, LOST)
    flow.placed(P1, None)
    actions = flow.prefill_failed(2, PeerLost("the second"))
    assert kinds(actions) == ["StopDecode", "Fail"]
    assert isinstance(actions[-1], Fail)
    assert isinstance(actions[-1].error, AttemptsExhausted)
    assert "the second" in str(actions[-1].error)


def test_both_sides_on_one_instance_are_lost_together() -> None:
    flow = new_flow()
    flow.placed(P0, P0)
    flow.prefill_sampled(1, 0, 10, None)
    flow.instance_lost(P0, LOST)
    assert flow.needs == BOTH


RESUMES = [
    # id                  max  resumed      first actions
    ("goes on", 4, (10, 11), []),
    ("had reached the limit", 2, (10, 11), ["Finish"]),
    ("had ended itself", 4, (10, 99), ["Finish"]),
]


@pytest.mark.parametrize(
    ("max_tokens", "resumed", "want"), [c[1:] for c in RESUMES], ids=[c[0] for c in RESUMES]
)
def test_resume(max_tokens: int, resumed: tuple[int, ...], want: list[str]) -> None:
    assert kinds(new_flow(max_tokens, resumed).begin()) == want


ENDINGS = [
    ("cancel", lambda flow: flow.cancelled()),
    ("deadline", lambda flow: flow.deadline()),
    ("stop string", lambda flow: flow.stop_matched()),
]


@pytest.mark.parametrize("end", [c[1] for c in ENDINGS], ids=[c[0] for c in ENDINGS])
def test_every_ending_reaches_both_workers(end: object) -> None:
    flow = placed_flow()
    assert callable(end)
    actions = end(flow)
    assert CancelPrefill(instance_id=P0, attempt=1) in actions
    assert StopDecode(instance_id=D0, attempt=1) in actions
    assert end(flow) == []


def test_deadline_while_waiting_says_what_was_missing() -> None:
    flow = new_flow()
    flow.wait_error = NoInstance("nobody")
    assert flow.deadline() == [Fail(flow.wait_error)]
    other = new_flow()
    [failed] = other.deadline()
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, DeadlinePassed)
