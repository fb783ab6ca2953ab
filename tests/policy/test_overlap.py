"""Layer groups: cases with their reasons, and the law that the answer is the cheapest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.overlap import ChunkKv, OverlapCosts, cost_s, exposed_s, num_groups

MIB = 1024 * 1024
NUM_LAYERS = 30
BYTES_PER_TOKEN = 46_080
"""SmolLM2-135M in float32."""
TOKEN_S = 0.001
"""To compute one, in a chunk, on one core."""


def chunk_of(num_tokens: int, max_segment_bytes: int = 2 * MIB) -> ChunkKv:
    return ChunkKv(
        num_layers=NUM_LAYERS,
        num_bytes=num_tokens * BYTES_PER_TOKEN,
        max_segment_bytes=max_segment_bytes,
    )


def costs_of(
    num_tokens: int, *, bytes_per_s: float = 500e6, segment_s: float = 0.002
) -> OverlapCosts:
    layer_s = num_tokens * TOKEN_S / NUM_LAYERS
    return OverlapCosts(layer_s=layer_s, bytes_per_s=bytes_per_s, segment_s=segment_s)


CASES = [
    # id                                  costs                                 chunk        groups
    ("a short prompt goes in one piece", costs_of(20), chunk_of(20), range(1, 2)),
    ("a long chunk goes by layers", costs_of(256), chunk_of(256), range(4, 31)),
    ("a huge one in every layer", costs_of(8192), chunk_of(8192), range(30, 31)),
    ("computing costs nothing, or is not measured", costs_of(0), chunk_of(256), range(1, 2)),
    ("a slow link hides more", costs_of(20, bytes_per_s=10e6), chunk_of(20), range(2, 31)),
    ("segments are dear", costs_of(20, segment_s=1.0), chunk_of(20), range(1, 2)),
    ("segments are free", costs_of(256, segment_s=0.0), chunk_of(256), range(30, 31)),
]


@pytest.mark.parametrize(
    ("costs", "chunk", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_groups(costs: OverlapCosts, chunk: ChunkKv, wanted: range) -> None:
    assert num_groups(costs, chunk, max_groups=NUM_LAYERS) in wanted


def test_what_is_exposed() -> None:
    costs = OverlapCosts(layer_s=1.0, bytes_per_s=200.0, segment_s=0.5)
    chunk = ChunkKv(num_layers=4, num_bytes=400, max_segment_bytes=1000)
    assert exposed_s(costs, chunk, 1) == 0.5 + 2.0
    assert exposed_s(costs, chunk, 2) == 0.5 + 1.0, "the last group"
    behind = OverlapCosts(layer_s=1.0, bytes_per_s=100.0, segment_s=0.5)
    assert exposed_s(behind, chunk, 2) == 3.0, "the first group leaves at 2 s, both take 2.5 s"


def test_what_is_cut_anyway_costs_no_more_in_groups() -> None:
    """Of 4 MiB in segments of at most 2: two segments, before the end or at it."""
    chunk = ChunkKv(num_layers=4, num_bytes=4 * MIB, max_segment_bytes=2 * MIB)
    costs = OverlapCosts(layer_s=1.0, bytes_per_s=500e6, segment_s=0.1)
    assert num_groups(costs, chunk, max_groups=4) == 2


MEASURED = st.builds(
    OverlapCosts,
    layer_s=st.floats(0.0, 1.0),
    bytes_per_s=st.floats(1e5, 1e11),
    segment_s=st.floats(0.0, 0.1),
)
CHUNKS = st.builds(
    ChunkKv,
    num_layers=st.integers(1, 80),
    num_bytes=st.integers(1, 1 << 30),
    max_segment_bytes=st.integers(4096, 4 * MIB),
)


@given(MEASURED, CHUNKS, st.integers(1, 100))
def test_no_allowed_number_is_cheaper(costs: OverlapCosts, chunk: ChunkKv, most: int) -> None:
    answer = num_groups(costs, chunk, max_groups=most)
    assert 1 <= answer <= min(most, chunk.num_layers)
    allowed = [n for n in range(1, chunk.num_layers + 1) if n <= most]
    cheapest_s = min(cost_s(costs, chunk, n) for n in allowed)
    assert cost_s(costs, chunk, answer) == cheapest_s
    assert all(cost_s(costs, chunk, n) > cheapest_s for n in range(1, answer))


@given(MEASURED, CHUNKS, st.integers(1, 80))
def test_nothing_arrives_before_its_own_transfer(
    costs: OverlapCosts, chunk: ChunkKv, groups: int
) -> None:
    groups = min(groups, chunk.num_layers)
    assert exposed_s(costs, chunk, groups) >= chunk.group_bytes(groups) / costs.bytes_per_s
