"""All that `baton plan` and `baton simulate` have in common: model, GPUs, work and rules."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.errors import ConfigError
from planner.ask.gathered import Gathered
from planner.ask.gpus import GpuAsk, fleet_of
from planner.ask.latency import Latency, Times
from planner.ask.model import Model, find_model
from planner.ask.work import WorkAsk, workload_of
from planner.search.fleet import Fleet, Rules
from planner.sim.spec import PLACEMENTS
from planner.workload.workload import Workload
from policy.measured import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question in the words of its user."""

    model: str
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    times: Times
    gpus: GpuAsk
    work: WorkAsk
    rules: Rules
    saturates: bool = True
    """Prompts are read in steps of the L_m tokens that a profile names, whatever `rules` say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The same, understood."""

    model: Model
    fleet: Fleet
    workload: Workload


def set_up(ask: Ask) -> Setup:
    """Raises ConfigError with every problem; NoProfile where a latency model knows nothing."""
    gathered = Gathered()
    for problem in _rule_problems(ask.rules):
        gathered.add(problem)
    workload = gathered.of(lambda: workload_of(ask.work))
    model = gathered.of(
        lambda: find_model(ask.model, weight_dtype=ask.weight_dtype, kv_dtype=ask.kv_dtype)
    )
    fleet = None if model is None else gathered.of(lambda: _fleet(ask, model))
    gathered.check()
    assert model is not None
    assert fleet is not None
    assert workload is not None
    return Setup(model=model, fleet=fleet, workload=workload)


def _fleet(ask: Ask, model: Model) -> Fleet:
    times = replace(ask.times, step_tokens=ask.rules.step_tokens)
    fleet = fleet_of(ask.gpus, times, model, ask.rules)
    if not any(each.source.layouts() for each in fleet.hardware):
        most = times.max_gpus or ask.gpus.num_gpus
        raise ConfigError(
            (
                f"{model.shape.name}: its weights of {model.shape.weight_bytes / 1e9:,.0f} GB and "
                f"some KV fit into no instance of {most or 'so few'} GPUs",
            )
        )
    source = fleet.hardware[0].source
    if ask.times.latency is Latency.MEASURED and isinstance(source, Measured) and ask.saturates:
        l_m_tokens = source.l_m_tokens(source.layouts()[0])
        return replace(fleet, rules=replace(fleet.rules, step_tokens=l_m_tokens))
    return fleet


def _rule_problems(rules: Rules) -> Iterator[str]:
    for option, value in (
        ("--max-batch", rules.max_batch),
        ("--step-tokens", rules.step_tokens),
        ("--chunk-tokens", rules.chunk_tokens),
    ):
        if value < 1:
            yield f"{option} must be at least 1, got {value}"
    if not 0 <= rules.cache_tokens_share < 1:
        yield f"--cache-share must be 0 to 1, got {rules.cache_tokens_share:g}"
    if rules.placement not in PLACEMENTS:
        yield f"--policy must be of {', '.join(PLACEMENTS)}, got {rules.placement!r}"
