"""Flows brought to where a test begins, and the words to tell them what happens."""

from collections.abc import Sequence
from dataclasses import replace

from core.errors import PeerLost
from core.ids import InstanceId, RequestId
from core.lifecycle import State
from core.request import FinishReason, Request, SamplingParams, StopParams, TokenLogprobs
from policy.table import Phase
from router.actions import Action, Output
from router.flow import Flow

P0, P1, D0, D1 = (InstanceId(name) for name in ("p0", "p1", "d0", "d1"))
NAMES = (P0, P1, D0, D1)
LOST = PeerLost("lost")
BOTH = frozenset({Phase.PREFILL, Phase.DECODE})
ONLY_PREFILL = frozenset({Phase.PREFILL})
ONLY_DECODE = frozenset({Phase.DECODE})


def new_flow(
    max_tokens: int = 4,
    resumed: tuple[int, ...] = (),
    max_attempts: int = 4,
    num_logprobs: int | None = None,
) -> Flow:
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt_token_ids=(7, 8),
        sampling=SamplingParams(num_logprobs=num_logprobs),
        stop=StopParams(max_tokens=max_tokens, stop_token_ids=(99,)),
        deadline_s=10.0,
        resumed_token_ids=resumed,
        epoch=1 if resumed else 0,
    )
    return Flow(request, max_attempts=max_attempts)


def likely(*token_ids: int) -> tuple[TokenLogprobs, ...]:
    """Log-probabilities from which one sees whose they are."""
    return tuple(TokenLogprobs(-float(token_id), ((token_id, -0.5),)) for token_id in token_ids)


def tokens(attempt: int, first: int, ids: Sequence[int], end: FinishReason | None = None) -> Output:
    return Output(
        epoch=0, attempt=attempt, first_position=first, token_ids=tuple(ids), finish_reason=end
    )


def likely_tokens(attempt: int, first: int, ids: Sequence[int]) -> Output:
    return replace(tokens(attempt, first, ids), logprobs=likely(*ids))


def kinds(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def placed_flow(**options: int | None) -> Flow:
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
