"""The flow: single steps as a table of stories, and laws over random schedules."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from core.ids import InstanceId, RequestId
from core.lifecycle import State
from core.request import FinishReason, Request, SamplingParams, StopParams
from core.work import KvLostReason
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
from router.flow import Flow

P0, P1, D0, D1 = (InstanceId(name) for name in ("p0", "p1", "d0", "d1"))
NAMES = (P0, P1, D0, D1)
LOST = PeerLost("lost")
BOTH = frozenset({Phase.PREFILL, Phase.DECODE})
ONLY_PREFILL = frozenset({Phase.PREFILL})
ONLY_DECODE = frozenset({Phase.DECODE})


def new_flow(max_tokens: int = 4, resumed: tuple[int, ...] = (), max_attempts: int = 4) -> Flow:
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt_token_ids=(7, 8),
        sampling=SamplingParams(),
        stop=StopParams(max_tokens=max_tokens, stop_token_ids=(99,)),
        deadline_s=10.0,
        resumed_token_ids=resumed,
        epoch=1 if resumed else 0,
    )
    return Flow(request, max_attempts=max_attempts)


def tokens(attempt: int, first: int, ids: Sequence[int], end: FinishReason | None = None) -> Output:
    return Output(
        epoch=0, attempt=attempt, first_position=first, token_ids=tuple(ids), finish_reason=end
    )


def kinds(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def placed_flow(**options: int) -> Flow:
    flow = new_flow(**options)  # type: ignore[arg-type]
    flow.begin()
    flow.placed(P0, D0)
    return flow


def decoding_flow() -> Flow:
    flow = placed_flow()
    flow.prefill_sampled(1, 0, 10, None)
    flow.output(D0, tokens(1, 0, [10, 11]))
    assert flow.state is State.DECODING
    return flow


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


# --- laws -----------------------------------------------------------------------------------

NUM_TOKENS = 9
TRUTH = tuple(20 + i for i in range(NUM_TOKENS))

EVENTS = st.tuples(
    st.sampled_from(
        [
            *("place", "place", "sampled", "sampled", "done", "prefill_failed", "tokens", "tokens"),
            *("tokens", "kv_lost", "worker_error", "refused", "committed", "instance_lost"),
        ]
    ),
    st.integers(0, 3),
    st.integers(0, NUM_TOKENS),
    st.integers(0, 4),
)


class Schedule:
    """Plays random events, current and stale ones alike, and checks every action."""

    def __init__(self, max_attempts: int) -> None:
        self.flow = new_flow(NUM_TOKENS, max_attempts=max_attempts)
        self.delivered: list[int] = []
        self.last: Action | None = None
        self.attempts: set[int] = set()
        self.open_prefills: set[int] = set()
        self.do(self.flow.begin())

    def play(self, kind: str, who: int, position: int, back: int) -> None:
        flow, name = self.flow, NAMES[who]
        attempt = max(0, flow.attempt - back // 2)
        match kind:
            case "place" if flow.needs:
                prefill = name if Phase.PREFILL in flow.needs else None
                decode = NAMES[(who + 1) % 4] if Phase.DECODE in flow.needs else None
                self.do(flow.placed(prefill, decode))
            case "sampled" if flow.prefill is not None:
                at = flow.prefill.num_forced
                end = FinishReason.LENGTH if at == NUM_TOKENS - 1 else None
                self.do(flow.prefill_sampled(attempt, at, TRUTH[at], end))
            case "done":
                self.do(flow.prefill_done(attempt))
            case "prefill_failed":
                self.do(flow.prefill_failed(attempt, LOST))
            case "refused":
                error = WrongState("committed") if position % 2 else LOST
                self.do(flow.decode_refused(name, attempt, error))
            case "instance_lost":
                self.do(flow.instance_lost(name, LOST))
            case "tokens" | "kv_lost" | "worker_error" | "committed":
                self.do(flow.output(name, self._output(kind, attempt, position, back)))

    def _output(self, kind: str, attempt: int, position: int, num: int) -> Output:
        first = min(position, self.flow.delivery.num_tokens + 1)
        ids = TRUTH[first : first + num] if kind == "tokens" else ()
        ended = kind == "tokens" and bool(ids) and first + len(ids) == NUM_TOKENS
        return Output(
            epoch=0,
            attempt=attempt,
            first_position=first,
            token_ids=ids,
            committed=kind == "committed",
            kv_lost=KvLostReason.PEER if kind == "kv_lost" else None,
            finish_reason=FinishReason.LENGTH if ended else None,
            error=LOST if kind == "worker_error" else None,
        )

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            assert self.last is None, f"{action} after the end"
            match action:
                case Deliver():
                    assert action.position == len(self.delivered)
                    self.delivered += action.token_ids
                case StartPrefill():
                    assert action.attempt == self.flow.attempt
                    assert list(action.output_token_ids) == self.delivered
                    assert action.attempt not in self.attempts
                    self.attempts.add(action.attempt)
                    self.open_prefills.add(action.attempt)
                case StartDecode() | Retarget():
                    assert action.attempt == self.flow.attempt
                case CancelPrefill():
                    self.open_prefills.discard(action.attempt)
                case Finish() | Fail():
                    self.last = action
        assert self.flow.is_over == (self.last is not None)
        # A token at the end of the answer ends it, and nothing follows.
        assert len(self.delivered) < NUM_TOKENS or self.flow.is_over


@settings(max_examples=400)
@given(schedule=st.lists(EVENTS, max_size=60), max_attempts=st.integers(1, 6))
def test_laws(schedule: list[tuple[str, int, int, int]], max_attempts: int) -> None:
    world = Schedule(max_attempts)
    for event in schedule:
        world.play(*event)
    world.do(world.flow.deadline())
    assert world.flow.is_over
    assert world.flow.attempt <= max_attempts
    # Once and in order, and never anything but the truth.
    assert tuple(world.delivered) == TRUTH[: len(world.delivered)]
    if isinstance(world.last, Finish):
        assert len(world.delivered) == NUM_TOKENS
    assert world.flow.prefill is None
    assert world.flow.decode is None
    # The end is final.
    assert world.flow.instance_lost(P0, LOST) == world.flow.cancelled() == []
