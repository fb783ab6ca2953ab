"""Ten thousand seeds, run once for all tests that look at them."""

import time

import pytest

from tests.simulation.seeds import Result, run_on_all_cores

NUM_SEEDS = 10_000


@pytest.fixture(scope="session")
def ten_thousand() -> tuple[Result, float]:
    """What they showed, and the wall time in seconds."""
    began_at_s = time.perf_counter()
    result = run_on_all_cores(NUM_SEEDS)
    return result, time.perf_counter() - began_at_s
