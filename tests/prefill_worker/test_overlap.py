"""The one decision: from what was measured, or as the setting says."""

import pytest

from core.config import HandoffConfig
from core.kv_layout import KvLayout
from kv_transfer.moving import MovingCosts
from prefill_worker.costs import MeasuredCosts
from prefill_worker.overlap import Overlap

SMOLLM2 = KvLayout(num_layers=30, num_kv_heads=3, head_dim=64, dtype="float32", block_size=16)

CASES = [
    # overlap      tokens  s per token  groups
    ("adaptive", 20, 0.001, range(1, 2)),
    ("adaptive", 256, 0.001, range(3, 31)),
    ("adaptive", 256, 0.0, range(1, 2)),
    ("whole", 256, 0.001, range(1, 2)),
    ("layerwise", 20, 0.001, range(30, 31)),
]


@pytest.mark.parametrize(("overlap", "num_tokens", "token_s", "wanted"), CASES)
def test_groups(overlap: str, num_tokens: int, token_s: float, wanted: range) -> None:
    costs = MeasuredCosts()
    costs.computed(256, 256 * token_s)
    decision = Overlap(
        layout=SMOLLM2,
        handoff=HandoffConfig(overlap=overlap),
        costs=costs,
        moving=MovingCosts(),
    )
    groups = decision.groups(num_tokens)
    assert len(groups) in wanted
    assert [layer for group in groups for layer in group] == list(range(30))


def test_nothing_measured_yet_goes_in_one_piece() -> None:
    decision = Overlap(
        layout=SMOLLM2, handoff=HandoffConfig(), costs=MeasuredCosts(), moving=MovingCosts()
    )
    assert decision.groups(1024) == [range(30)]
