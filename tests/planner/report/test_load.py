"""A load on disk is the load that was forecast."""

from pathlib import Path

import numpy as np
import pytest

from planner.report.load import checked_rate_per_s, load_of
from planner.workload.columns import load_trace
from planner.workload.workload import Workload
from policy.step_times import PS_PER_S
from tests.planner.report.answers import setup


@pytest.fixture(scope="module")
def workload() -> Workload:
    return setup().workload


def test_what_is_written_is_read_again(workload: Workload, tmp_path: Path) -> None:
    load = load_of(workload, 3.0, seed=1)
    load.write(tmp_path / "load.csv")
    trace = load_trace(tmp_path / "load.csv")
    assert np.array_equal(np.rint(trace.at_s * PS_PER_S), load.requests.arrival_ps)
    assert np.array_equal(trace.requests.num_prompt_tokens, load.requests.num_prompt_tokens)
    assert np.array_equal(trace.requests.num_output_tokens, load.requests.num_output_tokens)


SIZES = [
    # rate     requests
    (0.01, 200),
    (2.0, 600),
    (1000.0, 20_000),
]


@pytest.mark.parametrize(("rate_per_s", "num"), SIZES)
def test_five_minutes_within_reason(rate_per_s: float, num: int, workload: Workload) -> None:
    assert len(load_of(workload, rate_per_s, seed=0).requests.arrival_ps) == num


def test_a_check_keeps_off_the_edge_unless_a_rate_was_asked_for() -> None:
    assert checked_rate_per_s(None, 10.0) == 9.0
    assert checked_rate_per_s(8.0, 10.0) == 8.0
