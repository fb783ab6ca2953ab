"""plan.toml and its settings hold what was found."""

import pytest

from core.config import parse
from core.parallel import ParallelLayout
from core.plan import parse_plan
from planner.report.plan_file import config_toml, plan_toml
from planner.search.results import Candidate
from planner.sim.spec import Scheduling
from tests.planner.report.answers import mixed, pools, setup

CASES = [
    # id               candidate       prefill decode mixed
    ("two pools", pools(2, 3), (2, 3, 0)),
    ("two GPUs each", pools(1, 1, tp=2), (1, 1, 0)),
    ("one pool", mixed(4), (0, 0, 4)),
]


@pytest.mark.parametrize(
    ("candidate", "replicas"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_plan_is_the_candidate(candidate: Candidate, replicas: tuple[int, int, int]) -> None:
    plan = parse_plan(plan_toml(setup(), candidate))
    assert (plan.prefill.replicas, plan.decode.replicas, plan.mixed.replicas) == replicas
    assert plan.num_ranks == candidate.num_gpus
    assert plan.layouts == {pool.layout for pool in candidate.pools}


def test_layouts_are_kept() -> None:
    plan = parse_plan(plan_toml(setup(), pools(1, 1, tp=2)))
    assert plan.decode.layout == ParallelLayout(tp=2)


def test_what_a_plan_cannot_hold_is_said() -> None:
    text = plan_toml(setup(), mixed(1, Scheduling.EXCLUSIVE))
    assert "# model: llama-3.1-8b; give its folder" in text
    assert "# simulated with prompts first" in text


def test_settings_are_the_rules_that_were_simulated() -> None:
    config = parse(config_toml(setup(), pools(2, 3)))
    assert config.worker.prefill_step_tokens == 2048
    assert config.worker.max_running == 256
    assert config.router.policy == "shortest_queue"
    assert config.router.max_running >= 3 * 256
    assert config.engine.device == "cuda"
    assert config.engine.num_blocks * config.engine.block_size > 300_000
