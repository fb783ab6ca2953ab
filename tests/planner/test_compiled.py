"""The router's policies as machine code say what the router says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import POLICIES
from planner.compiled import compiled
from policy.mixed_pool import Thresholds, leaving_helpers, next_helper
from policy.predict import prefill_wait_s, ttft_s
from policy.scorers import decode_scores, pick, prefill_scores
from policy.table import Ask, Phase, Weights
from tests.policy.fleets import LINKS, MODEL, ROWS, table

SCORES = {
    Phase.PREFILL: (prefill_scores, compiled(prefill_scores)),
    Phase.DECODE: (decode_scores, compiled(decode_scores)),
}
PICK = compiled(pick)
TTFT_S = compiled(ttft_s)
HELP = compiled(next_helper), compiled(leaving_helpers)


@settings(deadline=None)
@given(
    rows=ROWS,
    phase=st.sampled_from(Phase),
    policy=st.integers(0, len(POLICIES) - 1),
    num_input_tokens=st.integers(1, 2000),
    hits=st.lists(st.integers(0, 2000), min_size=8, max_size=8),
    source=st.integers(-1, 7),
    turn=st.integers(0, 99),
    draw=st.integers(0, 2**31 - 1),
)
def test_equal(
    rows: list[dict[str, Any]],
    phase: Phase,
    policy: int,
    num_input_tokens: int,
    hits: list[int],
    source: int,
    turn: int,
    draw: int,
) -> None:
    snapshot, n = table(*rows), len(rows)
    ask = Ask(num_input_tokens, 4000, np.array(hits[:n]), min(source, n - 1))
    plain, machine = (f(policy, MODEL, LINKS, Weights(), snapshot, ask) for f in SCORES[phase])
    # Machine code may fuse a product and a sum: the last bit.
    assert machine == pytest.approx(plain, rel=1e-12)
    scores = np.where(snapshot.alive, plain, np.inf)
    assert PICK(scores, policy, turn, draw) == pick(scores, policy, turn, draw)
    assert pytest.approx(ttft_s(MODEL, snapshot, ask), rel=1e-12) == TTFT_S(MODEL, snapshot, ask)
    waits_s = prefill_wait_s(MODEL, snapshot)
    helping = (snapshot, snapshot.alive, int(phase), waits_s, Thresholds(1.0, 0.25))
    assert HELP[0](*helping) == next_helper(*helping)
    assert (HELP[1](*helping) == leaving_helpers(*helping)).all()
