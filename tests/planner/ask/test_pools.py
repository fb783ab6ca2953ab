"""Clusters and losses from text."""

import pytest

from core.errors import ConfigError
from core.member import Role
from core.parallel import ParallelLayout
from planner.ask.gpus import GpuAsk, fleet_of
from planner.ask.latency import Times
from planner.ask.model import find_model
from planner.ask.pools import parse_losses, parse_pool
from planner.search.fleet import Fleet, Rules
from planner.sim.spec import Change, Scheduling


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    kinds = GpuAsk(kinds=("l4", "h200"))
    return fleet_of(kinds, Times(), find_model("llama-3.1-8b"), Rules())


POOLS = [
    # text         tp pp num  hardware
    ("1x1:1", 1, 1, 1, "l4"),
    ("2x1:3", 2, 1, 3, "l4"),
    ("4x2:7@h200", 4, 2, 7, "h200"),
]


@pytest.mark.parametrize(("text", "tp", "pp", "num", "hardware"), POOLS)
def test_pools(text: str, tp: int, pp: int, num: int, hardware: str, fleet: Fleet) -> None:
    pool = parse_pool(Role.PREFILL, text, fleet, Scheduling.CHUNKED)
    assert (pool.layout, pool.num) == (ParallelLayout(tp=tp, pp=pp), num)
    assert pool.hardware == hardware
    assert pool.scheduling is Scheduling.EXCLUSIVE


def test_mixed_pools_are_scheduled_as_asked(fleet: Fleet) -> None:
    pool = parse_pool(Role.MIXED, "1x1:1", fleet, Scheduling.CHUNKED)
    assert pool.scheduling is Scheduling.CHUNKED


@pytest.mark.parametrize("text", ["", "1x1", "1x1:0", "1:2", "x:1", "1x1:1@tpu", "0x1:1"])
def test_what_is_no_pool_is_refused(text: str, fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="--decode"):
        parse_pool(Role.DECODE, text, fleet, Scheduling.EXCLUSIVE)


def test_losses_by_time() -> None:
    assert parse_losses(["1@60-120", "0@5"], 2) == (
        Change(at_s=5.0, instance=0),
        Change(at_s=60.0, instance=1, back_s=120.0),
    )


def test_every_loss_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_losses(["2@1", "0@-1", "0@5-5", "x@1", "0"], 2)
    assert len(caught.value.problems) == 5
