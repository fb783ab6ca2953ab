"""Chunks to moments: how many tokens, which is the second, and what a pause is."""

import pytest

from bench.load.outcome import Answer, Event, Tokens, Usage
from core import slo

CASES: list[tuple[str, list[tuple[float, Event]], int, float | None, float | None, list[float]]] = [
    # id               what came                                       tokens gap  tpot  pauses
    ("one token", [(1.0, Tokens(1))], 1, None, None, []),
    (
        "token by token",
        [(1.0, Tokens(1)), (1.2, Tokens(1)), (1.6, Tokens(1))],
        3,
        0.2,
        0.3,
        [0.2, 0.4],
    ),
    ("two at once", [(1.0, Tokens(2)), (1.5, Tokens(1))], 3, 0.0, 0.25, [0.5]),
    ("a chunk of four", [(1.0, Tokens(1)), (1.8, Tokens(4))], 5, 0.8, 0.2, [0.8]),
    # Chunks without counts, and a total that says there was more in them.
    (
        "a total above the chunks",
        [(1.0, Tokens(1, is_told=False)), (1.8, Tokens(1, is_told=False)), (1.9, Usage(7, 5))],
        5,
        0.8,
        0.2,
        [0.8],
    ),
]


@pytest.mark.parametrize(
    ("came", "num_tokens", "gap_s", "tpot_s", "pauses_s"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_moments(
    came: list[tuple[float, Event]],
    num_tokens: int,
    gap_s: float | None,
    tpot_s: float | None,
    pauses_s: list[float],
) -> None:
    answer = Answer()
    for at_s, event in came:
        answer.take(event, at_s)
    moments = answer.moments(0.5)
    assert moments is not None
    assert moments.num_output_tokens == num_tokens
    assert slo.ttft_s(moments) == pytest.approx(0.5)
    assert slo.first_gap_s(moments) == pytest.approx(gap_s)
    assert slo.tpot_s(moments) == pytest.approx(tpot_s)
    assert list(answer.pauses_s()) == pytest.approx(pauses_s)
    assert answer.is_told == all(not isinstance(e, Tokens) or e.is_told for _, e in came)


def test_nothing_came() -> None:
    assert Answer().moments(0.0) is None
    assert Answer().num_output_tokens == 0
