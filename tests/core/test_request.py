"""When an answer ends, and what an idle instance must show."""

import pytest

from core.blocks import BlockState, leak_report
from core.request import Fence, FinishReason, StopParams, finish_reason

STOPS = [
    # id                    max min  stop ids  nth token  want
    ("goes on", 4, 0, (7,), 1, 5, None),
    ("stop id", 4, 0, (7,), 1, 7, FinishReason.STOP),
    ("stop id too early", 4, 2, (7,), 2, 7, None),
    ("stop id after the minimum", 4, 2, (7,), 3, 7, FinishReason.STOP),
    ("limit", 4, 0, (7,), 4, 5, FinishReason.LENGTH),
    ("stop id at the limit is a stop", 4, 0, (7,), 4, 7, FinishReason.STOP),
]


@pytest.mark.parametrize(
    ("max_tokens", "min_tokens", "ids", "nth", "token", "want"),
    [c[1:] for c in STOPS],
    ids=[c[0] for c in STOPS],
)
def test_finish_reason(
    max_tokens: int,
    min_tokens: int,
    ids: tuple[int, ...],
    nth: int,
    token: int,
    want: FinishReason | None,
) -> None:
    stop = StopParams(max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=ids)
    assert finish_reason(stop, nth, token) is want


def test_fences_order_by_epoch_then_attempt() -> None:
    fences = [Fence(1, 1), Fence(0, 2), Fence(0, 1), Fence(1, 0)]
    assert sorted(fences) == [Fence(0, 1), Fence(0, 2), Fence(1, 0), Fence(1, 1)]


LEAKS = [
    ("all free", {BlockState.FREE: 4}, None),
    ("cached is idle", {BlockState.FREE: 1, BlockState.CACHED: 3}, None),
    ("swapped lies elsewhere", {BlockState.FREE: 4, BlockState.SWAPPED: 1}, "swapped"),
    ("leased", {BlockState.FREE: 3, BlockState.LEASED: 1}, "leased"),
    ("lost", {BlockState.FREE: 3}, "3 blocks accounted for, 4 exist"),
]


@pytest.mark.parametrize(("counts", "want"), [c[1:] for c in LEAKS], ids=[c[0] for c in LEAKS])
def test_leak_report(counts: dict[BlockState, int], want: str | None) -> None:
    report = leak_report(counts, 4)
    assert (report is None) if want is None else (report is not None and want in report)
