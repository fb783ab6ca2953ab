"""Splitwise's iso-power designs on the conversation load, within the last printed digit."""

import numpy as np
import pytest

from planner.search.slowdowns import QUANTILES, TABLE_VI, Published, slowdowns
from planner.sim.simulate import simulate
from planner.sim.spec import Cluster
from tests.planner.published.splitwise_rules import (
    A100,
    CAPPED,
    H100,
    baseline,
    published_requests,
    split,
    unloaded,
)

DESIGNS = {
    "Baseline-A100 (70)": baseline(A100, 70),
    "Baseline-H100 (40)": baseline(H100, 40),
    "AA (45, 25)": split((A100, 45), (A100, 25)),
    "HA (25, 26)": split((H100, 25), (A100, 26)),
    "HH (25, 15)": split((H100, 25), (H100, 15)),
    "HHcap (25, 21)": split((H100, 25), (CAPPED, 21)),
}
TABLE = [
    # design, requests a second, requests, slowdowns P50 P90 P99 of TTFT, TBT, E2E, all hold
    ("Baseline-A100 (70)", 50, 6052, "1.22 1.44 1.65", "1.182 1.435 1.96", "1.19 1.43 1.93", True),
    ("Baseline-A100 (70)", 60, 7282, "1.22 1.45 1.67", "1.266 1.567 2.08", "1.27 1.56 2.03", False),
    ("Baseline-A100 (70)", 70, 8502, "1.23 1.45 1.66", "1.363 1.712 2.28", "1.36 1.70 2.22", False),
    ("Baseline-H100 (40)", 70, 8502, "0.60 0.80 1.14", "0.932 1.095 1.38", "0.92 1.08 1.34", True),
    (
        "Baseline-H100 (40)",
        110,
        13382,
        "0.61 0.82 1.13",
        "1.178 1.427 1.79",
        "1.16 1.40 1.73",
        True,
    ),
    (
        "Baseline-H100 (40)",
        120,
        14654,
        "0.62 0.84 1.16",
        "1.272 1.564 1.98",
        "1.25 1.53 1.89",
        False,
    ),
    ("AA (45, 25)", 110, 13382, "1.00 1.56 4.89", "0.962 0.993 1.00", "0.98 1.01 1.10", True),
    ("AA (45, 25)", 120, 14654, "1.01 3.94 8.51", "0.962 0.994 1.00", "0.99 1.08 1.30", False),
    ("HA (25, 26)", 130, 15858, "0.48 1.20 3.17", "0.962 0.993 1.00", "0.96 1.00 1.05", True),
    ("HA (25, 26)", 140, 17030, "1.06 3.37 6.62", "0.962 0.996 1.42", "0.98 1.07 1.42", False),
    ("HH (25, 15)", 70, 8502, "0.46 0.54 0.71", "0.718 0.740 0.74", "0.71 0.74 0.75", True),
    ("HHcap (25, 21)", 130, 15858, "0.48 1.11 3.06", "0.718 0.741 0.75", "0.72 0.75 0.81", True),
]
LARGEST = [
    # design, largest rate of a grid of 10 a second that passes
    ("Baseline-A100 (70)", 50),
    ("Baseline-H100 (40)", 110),
    ("AA (45, 25)", 110),
    ("HA (25, 26)", 130),
]


def _quantiles(cluster: Cluster, rate_per_s: float) -> tuple[int, dict[str, list[float]]]:
    outcome = simulate(cluster, published_requests("azure-conv", rate_per_s))
    slow = slowdowns(outcome, Published(curves=unloaded()))
    found = {m: [float(q) for q in np.quantile(slow[m], QUANTILES)] for m in TABLE_VI}
    return len(outcome.first_token_ps), found


def _passes(found: dict[str, list[float]]) -> bool:
    return all(q < limit for m in TABLE_VI for q, limit in zip(found[m], TABLE_VI[m], strict=True))


@pytest.mark.parametrize("row", TABLE, ids=[f"{row[0]} at {row[1]}" for row in TABLE])
def test_slowdowns_as_printed(row: tuple[str, int, int, str, str, str, bool]) -> None:
    design, rate_per_s, num_requests, *printed, holds = row
    num, found = _quantiles(DESIGNS[design], float(rate_per_s))
    assert num == num_requests
    assert _passes(found) == holds
    for metric, texts in zip(TABLE_VI, printed, strict=True):
        for value, text in zip(found[metric], str(texts).split(), strict=True):
            digit = 10.0 ** -len(text.partition(".")[2])
            assert abs(value - float(text)) < digit, (metric, value, text)


@pytest.mark.parametrize(("design", "rate_per_s"), LARGEST, ids=[row[0] for row in LARGEST])
def test_largest_rate_that_passes(design: str, rate_per_s: int) -> None:
    verdicts = [
        _passes(_quantiles(DESIGNS[design], float(rate))[1])
        for rate in range(40, rate_per_s + 11, 10)
    ]
    assert verdicts == [True] * (len(verdicts) - 1) + [False]
