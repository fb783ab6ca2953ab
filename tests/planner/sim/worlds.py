"""Random small clusters and workloads, with ties on purpose.

Seconds are multiples of UNIT_S: floats then hold them exactly, and so does the reference.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from core.config import POLICIES
from core.member import Role
from planner.sim.spec import MIXED_POOL, Change, Cluster, Instance, Kind, Network, Scheduling
from planner.sim.traffic import Traffic, traffic
from policy.step_times import NEVER, PS_PER_S, StepTimes

UNIT_S = 2.0**-10
UNIT_PS = PS_PER_S // 2**12
"""A quarter of UNIT_S."""
MAX_BATCH = 4
RATE = PS_PER_S / 2**10
"""Bytes per second; a power of two per picosecond."""
BLOCK_TOKENS = 4
SCHEDULINGS = (Scheduling.EXCLUSIVE, Scheduling.JOINED, Scheduling.CHUNKED)


def _draw(draw: Any, least: int, most: int) -> int:  # noqa: ANN401 - as hypothesis
    return int(draw(st.integers(least, most)))


@st.composite
def step_times(draw: Any, *, stages: int, whole: bool) -> StepTimes:  # noqa: ANN401
    """`whole`: decode's picoseconds are multiples of UNIT_PS."""
    num_knots, num_segments = _draw(draw, 2, 3), _draw(draw, 1, 3)
    slopes = [_draw(draw, 0, 3) for _ in range(num_knots - 1)]
    knots = np.array([0.0, 8.0, 24.0])[:num_knots]
    seconds = _draw(draw, 1, 8) + np.concatenate([[0], np.cumsum(slopes * np.diff(knots))])
    rows = (MAX_BATCH + 1, num_segments)
    starts = np.full(rows, NEVER, dtype=np.int64)
    base, slope = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    for batch in range(1, MAX_BATCH + 1):
        used = _draw(draw, 1, num_segments)
        starts[batch, :used] = np.cumsum([0, *(_draw(draw, 1, 30) for _ in range(used - 1))])
        for segment in range(used):
            base[batch, segment] = _draw(draw, 1, 40)
            slope[batch, segment] = _draw(draw, 0, 3)
    scale = UNIT_PS if whole else _draw(draw, 1, UNIT_PS)
    return StepTimes(
        prefill_tokens=knots,
        prefill_s=seconds * UNIT_S,
        per_pair_s=_draw(draw, 0, 1) * UNIT_S,
        num_stages=stages,
        stage_s=_draw(draw, 0, 1) * UNIT_S,
        first_s=_draw(draw, 0, 2) * UNIT_S,
        first_per_token_s=_draw(draw, 0, 1) * UNIT_S,
        decode_starts=starts,
        decode_base_ps=base * scale,
        decode_slope_ps=slope * scale,
        shared_s=_draw(draw, 0, 8) * UNIT_S,
        mixed_factor=draw(st.sampled_from([0.0, 1.5])),
    )


@st.composite
def kinds(draw: Any, *, name: str, stages: int = 0) -> Kind:  # noqa: ANN401
    """Memory is often tight; never too small for one request of `traffics`."""
    # SPLITWISE has its own tests, against the published simulator.
    scheduling = draw(st.sampled_from(SCHEDULINGS))
    stages = stages or draw(st.sampled_from([1, 1, 2]))
    whole = scheduling is not Scheduling.EXCLUSIVE or draw(st.booleans())
    return Kind(
        name=name,
        times=draw(step_times(stages=stages, whole=whole)),
        capacity_tokens=draw(st.sampled_from([40, 64, 80, 2**40])) * stages,
        max_batch=_draw(draw, 1, MAX_BATCH),
        step_tokens=draw(st.sampled_from([3, 8, 20, 64])),
        max_prompts=draw(st.sampled_from([1, 2, 512])),
        scheduling=scheduling,
        max_pauses=draw(st.sampled_from([1, 2, 2**40])),
        reserves_output=draw(st.booleans()),
        kv_bytes_per_token=float(draw(st.sampled_from([0, 1, 1000, 1 << 20]))),
        num_layers=_draw(draw, 1, 4),
        cache_tokens=draw(st.sampled_from([0, 8, 24])),
    )


@st.composite
def instances(draw: Any, num_kinds: int) -> tuple[Instance, ...]:  # noqa: ANN401
    """At least one reads prompts and one writes answers."""
    roles = draw(
        st.sampled_from([[Role.MIXED], [Role.PREFILL, Role.DECODE], [Role.PREFILL, Role.MIXED]])
    )
    more = draw(st.lists(st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]), max_size=3))
    return tuple(
        Instance(kind=_draw(draw, 0, num_kinds - 1), role=role, host=_draw(draw, 0, 1))
        for role in (*roles, *more)
    )


@st.composite
def plain_clusters(draw: Any) -> Cluster:  # noqa: ANN401
    """What the reference knows."""
    num_kinds = _draw(draw, 1, 2)
    return Cluster(
        kinds=tuple(draw(kinds(name=f"kind {i}")) for i in range(num_kinds)),
        instances=draw(instances(num_kinds)),
        network=Network(
            host_bytes_per_s=draw(st.sampled_from([float("inf"), RATE, 64 * RATE])),
            local_bytes_per_s=draw(st.sampled_from([float("inf"), 4 * RATE])),
            handoff_s=_draw(draw, 0, 2) * UNIT_S,
            is_shared=False,
        ),
        placement=draw(st.sampled_from(["round_robin", "shortest_queue"])),
        pairs_at_arrival=draw(st.booleans()),
    )


@st.composite
def any_clusters(draw: Any) -> Cluster:  # noqa: ANN401
    """Everything on."""
    num_kinds = _draw(draw, 1, 2)
    own = draw(instances(num_kinds))
    stages = [draw(st.sampled_from([1, 1, 2])) for _ in range(num_kinds)]
    return Cluster(
        kinds=tuple(draw(kinds(name=f"kind {i}", stages=stages[i])) for i in range(num_kinds)),
        instances=own,
        network=Network(
            host_bytes_per_s=draw(st.sampled_from([float("inf"), 1e9, 7e10])),
            local_bytes_per_s=draw(st.sampled_from([float("inf"), 3e9])),
            handoff_s=draw(st.sampled_from([0.0, 0.001])),
            is_shared=draw(st.booleans()),
            layerwise_from_tokens=draw(st.sampled_from([1, 8, 2**40])),
        ),
        placement=draw(st.sampled_from([*POLICIES, MIXED_POOL])),
        pairs_at_arrival=draw(st.booleans()),
        changes=draw(changes(own, stages)),
        max_ttft_s=draw(st.sampled_from([float("inf"), float("inf"), 0.5])),
    )


@st.composite
def changes(
    draw: Any,  # noqa: ANN401
    own: tuple[Instance, ...],
    stages: list[int],
) -> tuple[Change, ...]:
    """Losses, some of them for good, and other roles."""
    rows = []
    for _ in range(_draw(draw, 0, 4)):
        number = _draw(draw, 0, len(own) - 1)
        at_s = _draw(draw, 0, 40) * 8 * UNIT_S
        role = draw(st.sampled_from([None, Role.PREFILL, Role.DECODE, Role.MIXED]))
        if stages[own[number].kind] > 1:
            role = None
        back_s = at_s + _draw(draw, 1, 30) * 8 * UNIT_S
        rows.append(
            Change(at_s=at_s, instance=number, role=role)
            if role or draw(st.booleans())
            else Change(at_s=at_s, instance=number, back_s=back_s)
        )
    return tuple(rows)


@st.composite
def traffics(draw: Any) -> Traffic:  # noqa: ANN401
    """Arrivals on a coarse grid; prompts that begin alike; some too large for small instances."""
    num = _draw(draw, 1, 14)
    arrivals = sorted(_draw(draw, 0, 40) * draw(st.sampled_from([1, 8])) for _ in range(num))
    prompts = [_draw(draw, 1, 24) for _ in range(num)]
    outputs = [draw(st.sampled_from([1, 2, 3, 9, 16, 20])) for _ in range(num)]
    families = [_draw(draw, 0, 2) for _ in range(num)]
    # A family's prompts are beginnings of one text.
    blocks = [
        [100 * family + place for place in range(prompt // BLOCK_TOKENS)]
        for family, prompt in zip(families, prompts, strict=True)
    ]
    known = sorted({block for each in blocks for block in each})
    return traffic(
        np.array(arrivals) * UNIT_S,
        np.array(prompts),
        np.array(outputs),
        num_cached_tokens=np.array(
            [draw(st.sampled_from([0, 0, 3, prompt])) for prompt in prompts]
        ),
        first_block=np.cumsum([0, *(len(each) for each in blocks)]),
        blocks=np.array([known.index(b) for each in blocks for b in each], dtype=np.int64),
        block_tokens=BLOCK_TOKENS,
    )
