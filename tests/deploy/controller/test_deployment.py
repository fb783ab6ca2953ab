"""A deployment on its way to the controller, and what of it makes another process."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import POLICIES, Config, EngineConfig, HandoffConfig, RouterConfig, WorkerConfig
from core.errors import ConfigError
from core.logs import LogFormat
from core.member import Role
from deploy.controller.deployment import (
    MAX_DEPLOYMENT_BYTES,
    Deployment,
    instance_make,
    router_make,
)
from deploy.controller.orders import wanted_of
from router.spec import Speed

PLAN = "[prefill]\nreplicas = 1\n[decode]\nreplicas = 1\n"
FIRST = Deployment(plan_toml=PLAN, model="models/tiny")

POSITIVE = st.floats(1e-3, 1e6)
CONFIGS = st.builds(
    Config,
    engine=st.builds(
        EngineConfig,
        dtype=st.sampled_from(["float32", "bfloat16"]),
        num_blocks=st.integers(1, 2**31),
        prefix_cache=st.booleans(),
    ),
    worker=st.builds(WorkerConfig, max_running=st.integers(1, 10_000), ageing_s=POSITIVE),
    handoff=st.builds(HandoffConfig, lease_ttl_s=POSITIVE, max_refetches=st.integers(0, 9)),
    router=st.builds(
        RouterConfig,
        policy=st.sampled_from(POLICIES),
        slo_ttft_s=st.one_of(st.just(0.0), POSITIVE),
        trace_sample_ratio=st.floats(0, 1),
    ),
)
SPEEDS = st.builds(
    lambda base_s, batch_s: replace(
        Speed(),
        prefill=replace(Speed().prefill, base_s=base_s),
        decode=replace(Speed().decode, batch_s=(batch_s, 2 * batch_s)),
    ),
    POSITIVE,
    POSITIVE,
)
PLANS = st.builds(
    lambda prefill, decode, name: (
        f"model_name = {json.dumps(name)}\n[prefill]\nreplicas = {prefill}\n"
        f"[decode]\nreplicas = {decode}\n"
    ),
    st.integers(1, 9),
    st.integers(1, 9),
    st.text("aé☃/ ", max_size=8),
)
DEPLOYMENTS = st.builds(
    Deployment,
    plan_toml=PLANS,
    model=st.text(max_size=20),
    config=CONFIGS,
    speed=SPEEDS,
    log_level=st.sampled_from(["INFO", "WARNING"]),
    log_format=st.sampled_from([each.value for each in LogFormat]),
)


@given(DEPLOYMENTS)
def test_it_arrives_as_it_was_sent(deployment: Deployment) -> None:
    text = deployment.to_json()
    assert Deployment.from_json(text) == deployment
    assert "\n" not in text


def test_what_is_left_out_has_its_default() -> None:
    assert Deployment.from_json(json.dumps({"plan_toml": PLAN})) == Deployment(plan_toml=PLAN)


def sent(**changed: object) -> str:
    """The first deployment as JSON, with other values."""
    document: dict[str, Any] = {"schema": 1} | asdict(FIRST) | changed
    return json.dumps(document)


BAD = [
    ("no JSON", "{", ["not JSON"]),
    ("too deep", "[" * 100_000, ["not JSON"]),
    ("NaN", sent(model=float("nan")), ["not JSON"]),
    ("a list", "[]", ["not a JSON object"]),
    ("too long", " " * (MAX_DEPLOYMENT_BYTES + 1), ["limit 1048576"]),
    ("of another version", sent(schema=2), ["schema must be 1"]),
    ("no plan", "{}", ["plan_toml"]),
    ("an unknown key", sent(colour="red"), ["unknown key 'colour'"]),
    ("a number for a name", sent(model=3), ["model must be str, got int"]),
    ("a config that is none", sent(config=3), ["config must be an object"]),
    ("a speed that is none", sent(speed=3), ["speed must be Speed"]),
    ("half a speed", sent(speed={"prefill": {"base_s": 1}}), ["per_token_s"]),
    ("an unknown format of logs", sent(log_format="xml"), ["log_format must be of"]),
    ("a plan that is no TOML", sent(plan_toml="["), ["plan: "]),
    ("a plan of nobody", sent(plan_toml="[prefill]\nreplicas = 0"), ["a plan needs"]),
    (
        "everything at once",
        sent(
            schema=2,
            plan_toml="max_surge = -1\ndrain_s = -1",
            log_format="xml",
            config=asdict(replace(Config(), engine=EngineConfig(num_blocks=0, dtype="int3"))),
            speed=3,
        ),
        [
            "schema must be 1",
            "max_surge must be at least 0",
            "drain_s must be",
            "log_format must be of",
            "config.engine.num_blocks must be at least 1",
            "config.engine.dtype must be",
            "speed must be Speed",
        ],
    ),
    (
        "two keys of a config",
        sent(config={"engine": {"a": 1}, "worker": {"b": 1}}, plan_toml="["),
        ["unknown key 'a'", "unknown key 'b'", "plan: "],
    ),
]


@pytest.mark.parametrize(("text", "problems"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_every_problem_is_told(text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Deployment.from_json(text)
    told = caught.value.problems
    assert [p for p in problems if not any(p in each for each in told)] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(["plan_toml", "model", "config", "speed", "log_level", "schema"]), JSON)
def test_nothing_else_is_raised(key: str, value: object) -> None:
    with suppress(ConfigError):
        assert list(Deployment.from_json(sent(**{key: value})).problems()) == []


# --- makes ------------------------------------------------------------------------------------


def makes(deployment: Deployment) -> dict[Role, str]:
    """Of each kind of member."""
    pools = deployment.plan.pools.items()
    return {role: instance_make(deployment, pool) for role, pool in pools} | {
        Role.ROUTER: router_make(deployment)
    }


def with_plan(text: str) -> Callable[[Deployment], Deployment]:
    """More lines before the pools; a replaced pool."""
    return lambda deployment: replace(deployment, plan_toml=text)


def with_config(**parts: object) -> Callable[[Deployment], Deployment]:
    """Other settings."""
    return lambda deployment: replace(deployment, config=replace(deployment.config, **parts))  # type: ignore[arg-type]


P, D, M, R = Role.PREFILL, Role.DECODE, Role.MIXED, Role.ROUTER
ALL, INSTANCES = {P, D, M, R}, {P, D, M}
TYPES = "\n[instance_types.big]\nnum_cpus = 2\n[instance_types.other]\nnum_cpus = 1"
FASTER = replace(Speed(), prefill=replace(Speed().prefill, base_s=0.5))
CHANGES: list[tuple[str, Callable[[Deployment], Deployment], set[Role]]] = [
    ("nothing", lambda d: d, set()),
    ("sizes", with_plan("[prefill]\nreplicas = 3\n[decode]\nreplicas = 5"), set()),
    ("number of routers", with_plan(PLAN + "[router]\nreplicas = 3"), set()),
    ("patience", with_plan("drain_s = 3.0\n" + PLAN), set()),
    ("surge", with_plan("max_surge = 3\n" + PLAN), set()),
    ("affinity", with_plan('affinity = "paired"\n' + PLAN), set()),
    ("online", with_plan(PLAN + "[online]\nenabled = true\nslo_ttft_s = 3.0"), set()),
    ("spelling of the plan", with_plan("# mine\n" + PLAN), set()),
    ("types that nobody is of", with_plan(PLAN + TYPES), set()),
    ("a type that says the same",
     with_plan(PLAN.replace("[decode]", '[decode]\ninstance_type = "other"') + TYPES), set()),
    ("layout of one pool", with_plan(PLAN.replace("[decode]", "[decode]\nlayout.tp = 2")), {D}),
    ("processors of one pool", with_plan(PLAN.replace("[decode]", "[decode]\nnum_cpus = 2.0")),
     {D}),
    ("type of one pool",
     with_plan(PLAN.replace("[decode]", '[decode]\ninstance_type = "big"') + TYPES), {D}),
    ("name of the model", with_plan('model_name = "m"\n' + PLAN), INSTANCES),
    ("model", lambda d: replace(d, model="models/other"), ALL),
    ("engine", with_config(engine=EngineConfig(num_blocks=7)), INSTANCES),
    ("handoff", with_config(handoff=HandoffConfig(lease_ttl_s=7.0)), INSTANCES),
    ("worker", with_config(worker=WorkerConfig(ageing_s=7.0)), INSTANCES),
    ("batch, which routers are told", with_config(worker=WorkerConfig(max_running=7)), ALL),
    ("router", with_config(router=RouterConfig(policy="random")), {R}),
    ("speed", lambda d: replace(d, speed=FASTER), {R}),
    ("ports", with_plan(PLAN + "[router]\nport = 7000"), {R}),
    ("logs", lambda d: replace(d, log_level="DEBUG"), ALL),
    ("format of logs", lambda d: replace(d, log_format="json"), ALL),
]  # fmt: skip


@pytest.mark.parametrize(("change", "want"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_makes_another_process(
    change: Callable[[Deployment], Deployment], want: set[Role]
) -> None:
    before, after = makes(FIRST), makes(change(FIRST))
    assert {role for role in before if before[role] != after[role]} == want


@given(DEPLOYMENTS)
def test_equal_deployments_have_equal_makes(deployment: Deployment) -> None:
    again = Deployment.from_json(deployment.to_json())
    assert makes(again) == makes(deployment)
    assert wanted_of(again) == wanted_of(deployment)


def test_pools_of_one_kind_are_of_one_make() -> None:
    """So that their members can change places."""
    assert len({makes(FIRST)[role] for role in INSTANCES}) == 1
