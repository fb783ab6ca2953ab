"""plan.toml and the settings that go with it: what was found, as `baton serve` takes it."""

import re
from collections.abc import Iterator, Sequence

from core.config import EngineConfig, RouterConfig, parse
from core.member import Role
from core.plan import PAIRED, parse_plan
from planner.ask.ask import Setup
from planner.search.fleet import Hardware, kind_of
from planner.search.results import Candidate, Pool
from planner.sim.spec import MIXED_POOL, Scheduling
from policy.measured import Measured

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
ACCELERATOR_RESOURCE = "accelerator_type:"
"""Each host has 1 of this resource for its chip, in Ray."""
ACCELERATOR_SHARE = 0.001
"""Of it, for each instance: it limits nothing, GPUs do."""


def plan_toml(setup: Setup, candidate: Candidate) -> str:
    """Text that `core.plan.load_plan` reads; what it cannot hold is said in comments."""
    lines = [
        f"# {candidate}",
        *(f"# {each}" for each in _remarks(setup, candidate)),
        "schema = 1",
        f"model = {_quoted(setup.model.folder)}",
        *([f"affinity = {_quoted(PAIRED)}"] if candidate.num_segments else []),
    ]
    by_role = {pool.role: pool for pool in candidate.pools}
    types = [] if _runs_on_cpu(setup) else _used(setup, candidate)
    for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
        lines += ["", *_pool_lines(role, by_role.get(role), types)]
    for hardware in types:
        lines += ["", *_type_lines(hardware, is_one_of_several=len(types) > 1)]
    text = "\n".join(lines) + "\n"
    parse_plan(text)  # what is written can be read, or it is our bug
    return text


def _pool_lines(role: Role, pool: Pool | None, types: Sequence[Hardware]) -> Iterator[str]:
    yield f"[{role.value}]"
    if pool is None:
        yield "replicas = 0"
        return
    yield f"replicas = {pool.num}"
    yield f"layout = {{ tp = {pool.layout.tp}, pp = {pool.layout.pp} }}"
    for hardware in types:
        if hardware.name == pool.hardware:
            yield f"instance_type = {_quoted(hardware.instance_type)}"


def _type_lines(hardware: Hardware, *, is_one_of_several: bool) -> Iterator[str]:
    yield f"[instance_types.{_key(hardware.instance_type)}]"
    yield "num_gpus = 1.0  # of each rank"
    if is_one_of_several and hardware.accelerator:
        name = f"{ACCELERATOR_RESOURCE}{hardware.accelerator}"
        yield f"resources = {{ {_quoted(name)} = {ACCELERATOR_SHARE} }}"


def _used(setup: Setup, candidate: Candidate) -> list[Hardware]:
    """Each kind once, in the order of the pools."""
    return [setup.fleet[name] for name in dict.fromkeys(p.hardware for p in candidate.pools)]


def _remarks(setup: Setup, candidate: Candidate) -> Iterator[str]:
    if not setup.model.folder:
        yield f"model: {setup.model.shape.name}; give its folder with `baton serve --model`"
    used = _used(setup, candidate)
    told_apart = {hardware.accelerator for hardware in used} - {""}
    if len(told_apart) < len(used) > 1:
        kinds = ", ".join(hardware.name for hardware in used)
        yield f"Ray cannot tell {kinds} apart by their chips: name resources of your own"
    if candidate.num_segments > 1:
        yield f"each pair is cut into {candidate.num_segments} segments, each on one host"
    if any(p.scheduling is Scheduling.EXCLUSIVE and p.role is Role.MIXED for p in candidate.pools):
        yield "simulated with prompts first; our mixed instances read them in chunks"


def config_toml(setup: Setup, candidate: Candidate) -> str:
    """Settings with which instances work as simulated; text that `core.config.load` reads."""
    rules, defaults = setup.fleet.rules, RouterConfig()
    kinds = [kind_of(setup.fleet, pool) for pool in candidate.pools]
    writing = [
        pool.num * kind.max_batch
        for pool, kind in zip(candidate.pools, kinds, strict=True)
        if pool.role is not Role.PREFILL
    ]
    engine = EngineConfig()
    # Of all pools the least room: one number holds for every instance.
    num_blocks = min(kind.capacity_tokens for kind in kinds) // engine.block_size
    lines = [
        "[engine]",
        *(() if _runs_on_cpu(setup) else ('device = "cuda"', 'dtype = "bfloat16"')),
        f"num_blocks = {max(1, num_blocks)}",
        "",
        "[worker]",
        f"prefill_step_tokens = {rules.step_tokens}",
        f"mixed_step_tokens = {rules.chunk_tokens}",
        f"max_running = {min(kind.max_batch for kind in kinds)}",
        "",
        "[router]",
        f"max_running = {max(defaults.max_running, 2 * sum(writing))}",
    ]
    if rules.placement != MIXED_POOL:
        lines.append(f"policy = {_quoted(rules.placement)}")
    text = "\n".join(lines) + "\n"
    parse(text)
    return text


def _runs_on_cpu(setup: Setup) -> bool:
    source = setup.fleet.hardware[0].source
    return isinstance(source, Measured) and source.profile.subject.device.startswith("cpu")


def _key(text: str) -> str:
    """Of TOML: bare where it can be."""
    return text if BARE_KEY.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
