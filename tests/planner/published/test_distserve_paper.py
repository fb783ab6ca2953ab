"""DistServe's Table 2, the placement of its Table 3 and quick start, and Fig. 8 on equal terms."""

import pytest

from bench.planner_figures import (
    FIG_8_PROFILES,
    FIG_8_RUNS,
    FIG_8_SIDES,
    MAX_POINTS,
    QUICK_START_BEST,
    QUICK_START_PER_GPU,
    Row,
    fig_8,
    lead_of_disaggregation,
    quick_start,
    table_2,
    transients,
)
from planner.search.intervals import mean_interval

NUM_SEEDS = 60
"""The mean at the highest rate is then known to within two points."""
REFERENCE_GOODPUT = {"disaggregated 2x1 + 1x1": 1.36, "colocated 1x1": 1.83, "colocated 2x1": 2.08}
"""Of the published simulator at N = 6,000, DistServe's profile on both sides."""
MAX_SHARE = 0.15
"""Its decode takes 50,000 tokens a step at most, and rotates: 2x1 holds 163,008."""


def test_table_2() -> None:
    """Rates are of all 8 GPUs; single runs of 300 requests differ by ten points and more."""
    rows = list(table_2(NUM_SEEDS))
    for row, runs in rows:
        mean = mean_interval(runs)
        print(
            f"{row.rate_per_s:g} req/s: {mean.value:.1f} ± {mean.half_width:.1f} %, reference "
            f"{row.reference:g}; the paper's simulator {row.simulated:g}, testbed {row.measured:g}"
        )
    assert all(_differs_by(row, runs) <= MAX_POINTS for row, runs in rows)


def _differs_by(row: Row, runs: list[float]) -> float:
    return abs(mean_interval(runs).value - row.reference)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_published_placement(seed: int) -> None:
    """Which it is does not depend on the seed; how much it does, from 1.4 to 2.5."""
    best, per_gpu = quick_start(seed)
    print(f"{best}: {per_gpu:.4g} req/s/GPU, printed {QUICK_START_PER_GPU}")
    assert best.pools == QUICK_START_BEST.pools
    assert QUICK_START_PER_GPU / 2 < per_gpu < QUICK_START_PER_GPU * 2


@pytest.mark.parametrize("side", REFERENCE_GOODPUT)
def test_goodput_with_one_profile_for_both(side: str) -> None:
    num_requests = FIG_8_RUNS[-1]
    runs = transients("distserve", FIG_8_SIDES[side], num_requests)
    mean = sum(runs) / len(runs)
    print(f"{side}: {mean:.2f} req/s/GPU, reference {REFERENCE_GOODPUT[side]}")
    assert abs(mean / REFERENCE_GOODPUT[side] - 1) <= MAX_SHARE


def test_what_is_found_falls_with_the_number_of_requests() -> None:
    """Runs of 300 end before the backlog that they leave is seen."""
    pair = FIG_8_SIDES["disaggregated 2x1 + 1x1"]
    means = [sum(transients("distserve", pair, num)) for num in FIG_8_RUNS]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.2 * means[-1]


def test_the_profile_decides_who_is_ahead() -> None:
    """The published 4.6 times compares two engines as much as two architectures."""
    leads = {
        profiles: lead_of_disaggregation(fig_8(engine))
        for profiles, engine in FIG_8_PROFILES.items()
    }
    assert leads["published profiles"] > 0 > leads["same profile"]
