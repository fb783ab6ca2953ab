"""plan.toml and the settings that go with it: what was found, as `baton serve` takes it."""

from collections.abc import Iterator

from core.config import EngineConfig, RouterConfig, parse
from core.member import Role
from core.plan import parse_plan
from planner.ask.ask import Setup
from planner.search.fleet import kind_of
from planner.search.results import Candidate, Pool
from planner.sim.spec import MIXED_POOL, Scheduling
from policy.measured import Measured


def plan_toml(setup: Setup, candidate: Candidate) -> str:
    """Text that `core.plan.load_plan` reads; what it cannot hold is said in comments."""
    lines = [
        f"# {candidate}",
        *(f"# {each}" for each in _remarks(setup, candidate)),
        "schema = 1",
        f"model = {_quoted(setup.model.folder)}",
    ]
    by_role = {pool.role: pool for pool in candidate.pools}
    num_gpus = 0.0 if _runs_on_cpu(setup) else 1.0
    for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
        lines += ["", *_pool_lines(role, by_role.get(role), num_gpus)]
    text = "\n".join(lines) + "\n"
    parse_plan(text)  # what is written can be read, or it is our bug
    return text


def _pool_lines(role: Role, pool: Pool | None, num_gpus: float) -> Iterator[str]:
    yield f"[{role.value}]"
    if pool is None:
        yield "replicas = 0"
        return
    yield f"replicas = {pool.num}"
    yield f"layout = {{ tp = {pool.layout.tp}, pp = {pool.layout.pp} }}"
    yield f"num_gpus = {num_gpus}  # of each rank"


def _remarks(setup: Setup, candidate: Candidate) -> Iterator[str]:
    if not setup.model.folder:
        yield f"model: {setup.model.shape.name}; give its folder with `baton serve --model`"
    kinds = sorted({pool.hardware for pool in candidate.pools})
    if len(kinds) > 1:
        for pool in candidate.pools:
            yield f"{pool.role.value} runs on {pool.hardware}: start those hosts accordingly"
    if candidate.num_segments:
        yield f"each prefill and decode pair shares hosts, in {candidate.num_segments} segments"
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


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
