"""A plan that was written is the plan that is read."""

import pytest

from core.member import Role
from core.parallel import ParallelLayout
from core.plan import InstanceType, OnlinePlan, Plan, PoolPlan, RouterPlan, parse_plan
from core.plan_text import plan_text, with_replicas

H100 = InstanceType(num_gpus=1.0, resources={"accelerator_type:H100": 0.001})
PLANS = [
    ("all defaults", Plan()),
    ("mixed alone", with_replicas(Plan(), {Role.PREFILL: 0, Role.DECODE: 0, Role.MIXED: 3})),
    (
        "everything",
        Plan(
            model='hf:A/B@"c"',
            model_name="chat \\ é",
            prefill=PoolPlan(
                replicas=2, layout=ParallelLayout(tp=2, pp=2), instance_type="h100-sxm"
            ),
            decode=PoolPlan(replicas=2, num_cpus=1.5, num_gpus=1.0),
            router=RouterPlan(replicas=2, port=50051, http_port=8000),
            instance_types={"h100-sxm": H100, "big one": InstanceType(num_cpus=8.0)},
            affinity="paired",
            drain_s=1e-3,
            max_surge=0,
            online=OnlinePlan(enabled=True, max_instances=8),
        ),
    ),
]


@pytest.mark.parametrize("plan", [p for _, p in PLANS], ids=[name for name, _ in PLANS])
def test_round_trip(plan: Plan) -> None:
    text = plan_text(plan, ("made from another one",))
    assert text.startswith("# made from another one\n")
    assert parse_plan(text) == plan


def test_sizes_are_always_said() -> None:
    assert "[prefill]\nreplicas = 1" in plan_text(Plan())


def test_other_sizes() -> None:
    plan = with_replicas(Plan(model="m"), {Role.PREFILL: 3, Role.DECODE: 1})
    assert (plan.prefill.replicas, plan.decode.replicas, plan.model) == (3, 1, "m")
