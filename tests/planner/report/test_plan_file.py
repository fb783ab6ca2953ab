"""plan.toml and its settings hold what was found."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.config import parse
from core.errors import ConfigError
from core.parallel import ParallelLayout
from core.plan import InstanceType, parse_plan
from planner.ask.pools import pools_of_plan
from planner.report.plan_file import config_toml, plan_toml
from planner.search.results import Candidate
from planner.sim.spec import Scheduling
from policy.measured import Measured
from tests.planner.report.answers import GPU, mixed, pools, setup

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


def test_pools_on_one_kind_of_gpu_share_a_type() -> None:
    plan = parse_plan(plan_toml(setup(), pools(1, 2, tp=2)))
    assert plan.prefill.instance_type == plan.decode.instance_type == GPU
    assert plan.instance_types == {GPU: InstanceType(num_gpus=1.0)}
    assert plan.affinity == "any"


def test_pools_on_several_kinds_are_told_apart_by_their_chips() -> None:
    text = plan_toml(setup(GPU, "l4"), on(pools(1, 2), GPU, "l4"))
    plan = parse_plan(text)
    assert (plan.prefill.instance_type, plan.decode.instance_type) == (GPU, "l4")
    assert {name: kind.resources for name, kind in plan.instance_types.items()} == {
        GPU: {"accelerator_type:H100": 0.001},
        "l4": {"accelerator_type:L4": 0.001},
    }
    assert "apart" not in text


def test_kinds_of_one_chip_need_resources_of_their_own() -> None:
    text = plan_toml(setup(GPU, "h100-nvl"), on(pools(1, 2), GPU, "h100-nvl"))
    assert "# Ray cannot tell h100-80g-sxm, h100-nvl apart" in text


def test_a_name_with_a_space_is_a_type_all_the_same() -> None:
    owned = f"{GPU} owned"
    plan = parse_plan(plan_toml(setup(owned=GPU), on(pools(1, 1), owned, owned)))
    assert list(plan.instance_types) == [plan.decode.instance_type] == [f"{GPU}-owned"]


@pytest.mark.parametrize("num_segments", [1, 2])
def test_segments_that_share_hosts_are_pairs(num_segments: int) -> None:
    """DistServe's low node affinity."""
    text = plan_toml(setup(), replace(pools(2, 2), num_segments=num_segments))
    assert parse_plan(text).affinity == "paired"
    assert ("segments" in text.partition("schema")[0].partition("\n")[2]) == (num_segments > 1)


def test_pairs_are_as_many_of_either() -> None:
    with pytest.raises(ConfigError, match="as many prefill as decode"):
        plan_toml(setup(), replace(pools(1, 2), num_segments=1))


def test_a_plan_for_cpus_names_no_type() -> None:
    made = setup()
    (hardware,) = made.fleet.hardware
    profile = SimpleNamespace(subject=SimpleNamespace(device="cpu"))
    source = Measured(profile=profile, shape=made.model.shape, num_blocks=1)  # type: ignore[arg-type]
    fleet = replace(made.fleet, hardware=(replace(hardware, source=source),))
    plan = parse_plan(plan_toml(replace(made, fleet=fleet), pools(1, 1)))
    assert plan.instance_types == {}
    assert plan.type_of(plan.decode) == InstanceType()


def test_a_plan_is_read_back_onto_its_hardware() -> None:
    made = setup(GPU, "l4")
    candidate = on(pools(1, 2), GPU, "l4")
    plan = parse_plan(plan_toml(made, candidate))
    assert pools_of_plan(plan, made.fleet, Scheduling.CHUNKED) == candidate.pools


def on(candidate: Candidate, *hardware: str) -> Candidate:
    """Its pools on these kinds of GPU."""
    pairs = zip(candidate.pools, hardware, strict=True)
    return replace(candidate, pools=tuple(replace(pool, hardware=name) for pool, name in pairs))


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
