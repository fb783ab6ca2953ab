"""The flow: laws over random schedules of events, current and stale ones alike."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import WrongState
from core.request import FinishReason, TokenLogprobs
from core.work import KvLostReason
from policy.table import Phase
from router.actions import (
    Action,
    CancelPrefill,
    Deliver,
    Fail,
    Finish,
    Output,
    Retarget,
    StartDecode,
    StartPrefill,
)
from tests.router.flows import LOST, NAMES, P0, likely, new_flow

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

    def __init__(self, max_attempts: int, num_logprobs: int | None) -> None:
        self.flow = new_flow(NUM_TOKENS, max_attempts=max_attempts, num_logprobs=num_logprobs)
        self.delivered: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
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
                self.do(flow.prefill_sampled(attempt, at, TRUTH[at], end, self.told(TRUTH[at])))
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

    def told(self, *token_ids: int) -> tuple[TokenLogprobs, ...]:
        return () if self.flow.request.sampling.num_logprobs is None else likely(*token_ids)

    def _output(self, kind: str, attempt: int, position: int, num: int) -> Output:
        first = min(position, self.flow.delivery.num_tokens + 1)
        ids = TRUTH[first : first + num] if kind == "tokens" else ()
        ended = kind == "tokens" and bool(ids) and first + len(ids) == NUM_TOKENS
        return Output(
            epoch=0,
            attempt=attempt,
            first_position=first,
            token_ids=ids,
            logprobs=self.told(*ids),
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
                    self.logprobs += action.logprobs
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
@given(
    schedule=st.lists(EVENTS, max_size=60),
    max_attempts=st.integers(1, 6),
    num_logprobs=st.sampled_from([None, 1]),
)
def test_laws(
    schedule: list[tuple[str, int, int, int]], max_attempts: int, num_logprobs: int | None
) -> None:
    world = Schedule(max_attempts, num_logprobs)
    for event in schedule:
        world.play(*event)
    world.do(world.flow.deadline())
    assert world.flow.is_over
    assert world.flow.attempt <= max_attempts
    # Once and in order, and never anything but the truth.
    assert tuple(world.delivered) == TRUTH[: len(world.delivered)]
    assert tuple(world.logprobs) == world.told(*world.delivered)
    if isinstance(world.last, Finish):
        assert len(world.delivered) == NUM_TOKENS
    assert world.flow.prefill is None
    assert world.flow.decode is None
    # The end is final.
    assert world.flow.instance_lost(P0, LOST) == world.flow.cancelled() == []
