"""`python -m bench planner`: how fast the simulator and the searches over it are, on one core."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from bench import planner_spec as spec
from bench.report import Bar, Figure, Report, figure
from core.member import Role
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.compiled import compiled
from planner.search.fleet import Fleet, Hardware, Rules
from planner.search.judges import Joint
from planner.search.parallel import Workers
from planner.search.plan import plan
from planner.search.published import (
    published_rates,
    published_trials,
    steady_rates,
    units_goodput,
)
from planner.search.question import Question
from planner.search.results import Candidate, Pool
from planner.search.trials import Sampling, Trials
from planner.sim.build import build
from planner.sim.handle import play
from planner.sim.outcome import Outcome
from planner.sim.simulate import recipe, simulate
from planner.sim.spec import UNLIMITED, Cluster, Instance, Kind, Network
from planner.sim.traffic import Traffic, traffic
from planner.workload.presets import load_workload
from policy.distserve import DistServe
from policy.hardware import gpu
from policy.model_files import preset
from policy.roofline import Roofline

PARTS = ("compile", "plain", "full", "large", "linear", "nine", "layouts")
PREFILL, DECODE = ParallelLayout(tp=2), ParallelLayout(tp=1)
OnProgress = Callable[[str], None]
Measured = tuple[list[Figure], list[Bar]]


def measure(*, quick: bool, on_progress: OnProgress, only: str | None = None) -> Report:
    """All parts, or one of PARTS; `quick` repeats less."""
    figures: list[Figure] = []
    bars: list[Bar] = []
    rounds = 1 if quick else spec.ROUNDS
    for part in (only,) if only else PARTS:
        on_progress(f"bench planner: {part}")
        if part != "compile":
            _warm()
        more_figures, more_bars = _PARTS[part](rounds)
        figures += more_figures
        bars += more_bars
    return Report(name="planner", figures=tuple(figures), bars=tuple(bars))


def _warm() -> None:
    """Machine code from disk, or made: neither is what the parts measure."""
    simulate(_cluster(1, 1), _sharegpt(10, 1.0))


def _compile(_: int) -> Measured:
    """As on a machine that has never simulated."""
    cluster = _cluster(1, 1)
    sim = build(cluster, _sharegpt(10, 1.0), (), UNLIMITED, 1)
    code = compiled(play, replace(recipe(cluster), keeps=False))
    return [figure("cold compile", (_seconds(lambda: code(sim)),), "s")], []


def _plain(rounds: int) -> Measured:
    cluster = _cluster(1, 1)
    rates = _rates(cluster, _sharegpt(spec.PLAIN_REQUESTS, spec.PLAIN_RATE_PER_S), rounds)
    few = _sharegpt(spec.STEPWISE_REQUESTS, spec.PLAIN_RATE_PER_S)
    began_s = time.process_time()
    simulate(cluster, few, max_leap=1)
    single = spec.STEPWISE_REQUESTS / (time.process_time() - began_s)
    figures = [
        figure("plain", rates, "requests/s"),
        figure("plain, step by step", (single,), "requests/s"),
        figure("plain, leaps over steps", (max(rates) / single,), "×"),
    ]
    return figures, [_at_least("plain", max(rates), spec.MIN_PLAIN_PER_S, "requests/s")]


def _full(rounds: int) -> Measured:
    source = DistServe(model=spec.MODEL)
    cluster = _cluster(
        spec.FULL_PAIRS,
        spec.FULL_PAIRS,
        capacities=(source.capacity_tokens(PREFILL), source.capacity_tokens(DECODE)),
        cache_tokens=spec.FULL_CACHE_TOKENS,
        network=Network(
            host_bytes_per_s=spec.FULL_HOST_BYTES_PER_S,
            layerwise_from_tokens=spec.LAYERWISE_FROM_TOKENS,
        ),
    )
    rates = _rates(cluster, _prefixed(spec.FULL_REQUESTS), rounds)
    figures = [figure("memory, prefix, links", rates, "requests/s")]
    bar = _at_least("memory, prefix, links", max(rates), spec.MIN_FULL_PER_S, "requests/s")
    return figures, [bar]


def _large(_: int) -> Measured:
    """Once: a minute is enough."""
    work = load_workload("azure-conv").resampled()
    cluster = _cluster(spec.LARGE_PREFILL, spec.LARGE_DECODE)
    asked = work.traffic(spec.LARGE_RATE_PER_S, spec.LARGE_REQUESTS, spec.SEED)
    took_s = _seconds(lambda: simulate(cluster, asked))
    # The most that this process has ever had: what it was before counts as well.
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    num = spec.LARGE_PREFILL + spec.LARGE_DECODE
    name = f"{spec.LARGE_REQUESTS} requests × {num} instances, {spec.PLACEMENT}"
    figures = [figure(name, (took_s,), "s"), figure("memory of it", (most / 1e9,), "GB")]
    bars = [
        Bar(name=name, value=took_s, bound=spec.MAX_LARGE_S, unit="s"),
        Bar(name="memory of it", value=most / 1e9, bound=spec.MAX_LARGE_BYTES / 1e9, unit="GB"),
    ]
    return figures, bars


def _linear(rounds: int) -> Measured:
    cluster, each_us = _cluster(1, 1), []
    for num in spec.LINEAR_REQUESTS:
        rates = _rates(cluster, _sharegpt(num, spec.PLAIN_RATE_PER_S), rounds)
        each_us.append(1e6 / max(rates))
    pairs = zip(spec.LINEAR_REQUESTS, each_us, strict=True)
    figures = [figure(f"per request, of {num}", (us,), "µs") for num, us in pairs]
    ratio = each_us[-1] / each_us[0]
    name = "per request, the most over the fewest"
    return figures, [Bar(name=name, value=ratio, bound=spec.MAX_LINEAR_RATIO, unit="×")]


def _nine(_: int) -> Measured:
    """The published quick start's configurations: its own way, and in steady state."""
    ttft_s, tpot_s = spec.NINE_SLO_S
    slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s)
    work = load_workload("sharegpt", slo=slo, target=spec.NINE_TARGET)
    fleet = _fleet()
    units = list(_pairs(fleet))
    trials = published_trials(simulate, work)
    run = partial(units_goodput, trials, fleet, units, published_rates, Workers())
    own_s = _seconds(run)
    steady = Trials(
        simulate=simulate, workload=work, judge=Joint(classes=work.classes), sampling=Sampling()
    )
    rates = steady_rates(steady, 0.05)
    steady_s = _seconds(partial(units_goodput, steady, fleet, units, rates, Workers()))
    name = f"{len(units)} configurations of {spec.MODEL}"
    figures = [
        figure(f"{name}, N = 300", (own_s,), "s"),
        figure(f"{name}, published over this", (spec.PUBLISHED_NINE_S / own_s,), "×"),
        figure(f"{name}, steady", (steady_s,), "s"),
    ]
    bars = [
        Bar(name=f"{name}, N = 300", value=own_s, bound=spec.MAX_NINE_S, unit="s"),
        Bar(name=f"{name}, steady", value=steady_s, bound=spec.MAX_NINE_STEADY_S, unit="s"),
    ]
    return figures, bars


def _layouts(_: int) -> Measured:
    """Every layout of a large model on four hosts, pools and colocated."""
    ttft_s, tpot_s = spec.LAYOUTS_SLO_S
    work = load_workload("azure-conv", slo=Slo(ttft_s=ttft_s, tpot_s=tpot_s)).resampled()
    source = Roofline(shape=preset(spec.LAYOUTS_MODEL), gpu=gpu(spec.LAYOUTS_GPU))
    hardware = Hardware(
        name=spec.LAYOUTS_GPU,
        source=source,
        gpus_per_host=spec.LAYOUTS_GPUS_PER_HOST,
        num_hosts=spec.LAYOUTS_HOSTS,
    )
    fleet = Fleet(hardware=(hardware,), rules=Rules(placement=spec.PLACEMENT))
    asked = Question(
        fleet=fleet, workload=work, simulate=simulate, num_threads=spec.LAYOUTS_THREADS
    )
    took_s = _seconds(lambda: plan(asked))
    num = spec.LAYOUTS_HOSTS * spec.LAYOUTS_GPUS_PER_HOST
    name = f"all layouts of {spec.LAYOUTS_MODEL} on {num} GPUs"
    return [figure(name, (took_s,), "s")], [
        Bar(name=name, value=took_s, bound=spec.MAX_LAYOUTS_S, unit="s")
    ]


_PARTS: dict[str, Callable[[int], Measured]] = {
    "compile": _compile,
    "plain": _plain,
    "full": _full,
    "large": _large,
    "linear": _linear,
    "nine": _nine,
    "layouts": _layouts,
}


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _rates(cluster: Cluster, asked: Traffic, rounds: int) -> list[float]:
    """Requests per second of one core, of each round: of its own time, for machines are shared."""
    rates = []
    for _ in range(rounds):
        began_s = time.process_time()
        _ended(simulate(cluster, asked))
        rates.append(len(asked.arrival_ps) / (time.process_time() - began_s))
    return rates


def _ended(outcome: Outcome) -> Outcome:
    assert (outcome.last_token_ps >= 0).all(), "a request has not ended"
    return outcome


def _at_least(name: str, value: float, bound: float, unit: str) -> Bar:
    return Bar(name=name, value=value, bound=bound, unit=unit, at_most=False)


def _cluster(
    num_prefill: int,
    num_decode: int,
    *,
    capacities: tuple[int, int] = (UNLIMITED, UNLIMITED),
    cache_tokens: int = 0,
    network: Network | None = None,
) -> Cluster:
    source = DistServe(model=spec.MODEL)
    kinds = tuple(
        Kind(
            name=str(layout),
            times=source.times(layout),
            num_gpus=layout.num_workers,
            capacity_tokens=capacity,
            cache_tokens=cache_tokens,
            kv_bytes_per_token=source.kv_bytes_per_token,
            num_layers=source.num_layers,
        )
        for layout, capacity in zip((PREFILL, DECODE), capacities, strict=True)
    )
    roles = [Role.PREFILL] * num_prefill + [Role.DECODE] * num_decode
    return Cluster(
        kinds=kinds,
        instances=tuple(
            Instance(kind=int(role is Role.DECODE), role=role, host=host)
            for host, role in enumerate(roles)
        ),
        network=network or Network(),
        placement=spec.PLACEMENT,
        pairs_at_arrival=network is not None,
    )


def _sharegpt(num: int, rate_per_s: float) -> Traffic:
    return load_workload("sharegpt").traffic(rate_per_s, num, spec.SEED)


def _prefixed(num: int) -> Traffic:
    """ShareGPT's lengths; the first half of a prompt is one of a few texts."""
    plain = _sharegpt(num, spec.FULL_RATE_PER_S)
    rng = np.random.default_rng(spec.SEED)
    counts = plain.num_prompt_tokens // spec.FULL_BLOCK_TOKENS
    shared = counts // 2
    longest = int(shared.max()) + 1
    first_block = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(first_block[-1]) - np.repeat(first_block[:-1], counts)
    text = np.repeat(rng.integers(0, spec.FULL_PREFIXES, num), counts)
    own = place >= np.repeat(shared, counts)
    blocks = np.where(own, 0, text * longest + place)
    # Blocks that nobody shares are numbered round: so many later they have long been forgotten.
    fresh = spec.FULL_PREFIXES * longest + np.cumsum(own) % (16 * spec.FULL_CACHE_TOKENS)
    return traffic(
        plain.arrival_ps / 1e12,
        plain.num_prompt_tokens,
        plain.num_output_tokens,
        first_block=first_block,
        blocks=np.where(own, fresh, blocks),
        block_tokens=spec.FULL_BLOCK_TOKENS,
    )


def _fleet() -> Fleet:
    hardware = Hardware(
        name="a100-80g",
        source=DistServe(model=spec.MODEL),
        gpus_per_host=spec.NINE_MAX_GPUS,
        num_hosts=1,
    )
    return Fleet(hardware=(hardware,), rules=Rules(placement=spec.PLACEMENT))


def _pairs(fleet: Fleet) -> Iterator[Candidate]:
    """One instance of each phase, on a host's GPUs at most."""
    sizes = [ParallelLayout(tp=tp, pp=pp) for tp, pp in product((1, 2), (1, 2))]
    for prefill, decode in product(sizes, sizes):
        if prefill.num_workers + decode.num_workers <= spec.NINE_MAX_GPUS:
            yield Candidate(
                pools=(
                    Pool(role=Role.PREFILL, layout=prefill, num=1, hardware="a100-80g"),
                    Pool(role=Role.DECODE, layout=decode, num=1, hardware="a100-80g"),
                )
            )
