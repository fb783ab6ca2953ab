"""DistServe's published figures, asked of the planner: Table 2, the quick start, Fig. 8.

Fig. 8 is two tables. With published profiles, colocated instances run the vLLM of 2024, as in the
paper; with the same profile for both sides what is left is the architecture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.planner_published import (
    chat,
    colocated,
    disaggregated,
    published_cluster,
    published_fleet,
)
from bench.report import Bar, Figure, Report, figure
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.search.candidates import Limits, units
from planner.search.goodput import find_goodput
from planner.search.inputs import Workload
from planner.search.intervals import Interval, mean_interval
from planner.search.judges import Joint
from planner.search.parallel import Workers
from planner.search.published import (
    published_rates,
    published_trials,
    steady_rates,
    units_goodput,
)
from planner.search.results import Candidate
from planner.search.trials import Sampling, Trials, published
from planner.sim.simulate import simulate
from planner.sim.spec import Cluster

Figures = tuple[list[Figure], list[Bar]]
NUM_SEEDS, NUM_QUICK_SEEDS = 100, 40
NUM_REQUESTS = 300
"""Of a run in the published simulator; of 500 or 1,000 its Table 2 cannot be had."""
POINTS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Of Table 2, at a rate of all 8 GPUs: attainment in points."""

    rate_per_s: float
    reference: float
    """Mean of 40 seeds of the published simulator on our lengths."""
    simulated: float
    """As printed."""
    measured: float
    simulated_vllm: float
    """As printed, of two colocated instances 4x1."""


TABLE_2 = tuple(
    Row(
        rate_per_s=rate,
        reference=reference,
        simulated=simulated,
        measured=measured,
        simulated_vllm=simulated_vllm,
    )
    for rate, reference, simulated, measured, simulated_vllm in (
        (1.0, 97.2, 100.0, 100.0, 96.8),
        (1.5, 94.8, 100.0, 100.0, 65.1),
        (2.0, 91.6, 99.3, 99.3, 51.0),
        (2.5, 87.9, 88.3, 87.3, 46.1),
        (3.0, 83.7, 84.1, 83.0, 38.3),
        (3.5, 78.3, 77.0, 77.3, 28.0),
        (4.0, 71.5, 68.9, 70.0, 24.1),
    )
)
TABLE_2_PAIR = disaggregated(ParallelLayout(tp=4), ParallelLayout(tp=2, pp=2))
TABLE_2_VLLM = colocated(ParallelLayout(tp=4), num=2)
TABLE_2_SLO = Slo(ttft_s=0.4, tpot_s=0.1)
MAX_POINTS = 3.0

QUICK_START_SLO = Slo(ttft_s=0.2, tpot_s=0.1)
QUICK_START_BEST = disaggregated(ParallelLayout(tp=2), ParallelLayout())
"""Also Table 3's placement of OPT-13B."""
QUICK_START_PER_GPU = 1.56
NUM_SEARCHES, NUM_QUICK_SEARCHES = 10, 3

FIG_8_SLO = Slo(ttft_s=0.25, tpot_s=0.1)
FIG_8_SIDES: Mapping[str, Candidate] = {
    "disaggregated 2x1 + 1x1": QUICK_START_BEST,
    "disaggregated 2x1 + 2x1": disaggregated(ParallelLayout(tp=2), ParallelLayout(tp=2)),
    "disaggregated 4x1 + 2x2": disaggregated(ParallelLayout(tp=4), ParallelLayout(tp=2, pp=2)),
    "colocated 1x1": colocated(ParallelLayout()),
    "colocated 2x1": colocated(ParallelLayout(tp=2)),
    "colocated 4x1": colocated(ParallelLayout(tp=4)),
}
"""The paper's two; with more GPUs, what our search finds best of 4 and of 8, and more of vLLM."""
FIG_8_PROFILES = {"published profiles": "vllm", "same profile": "distserve"}
"""Of colocated instances."""
FIG_8_RUNS = (300, 1_500, 6_000)
NUM_RUNS = 5
PRECISION = 0.02


def attainments(cluster: Cluster, workload: Workload, rate_per_s: float, num: int) -> list[float]:
    """Joint, in points, of so many runs."""
    slos = tuple(each.slo for each in workload.classes)
    runs = (workload.traffic(rate_per_s, NUM_REQUESTS, seed) for seed in range(num))
    return [POINTS * float(simulate(cluster, run).met(slos).mean()) for run in runs]


def table_2(num_seeds: int) -> Iterator[tuple[Row, list[float]]]:
    """DistServe-Low's column."""
    cluster = published_cluster("opt-66b", "distserve", TABLE_2_PAIR)
    for row in TABLE_2:
        yield row, attainments(cluster, chat(TABLE_2_SLO), row.rate_per_s, num_seeds)


def _table_2(*, quick: bool) -> Figures:
    num_seeds = NUM_QUICK_SEEDS if quick else NUM_SEEDS
    figures, bars = [], []
    for row, runs in table_2(num_seeds):
        name = f"table 2, {row.rate_per_s:g} req/s"
        mean = mean_interval(runs)
        figures += [
            figure(f"{name}: attainment of a run", runs, "%"),
            figure(f"{name}: mean, 95 % interval", (mean.low, mean.value, mean.high), "%"),
            figure(f"{name}: printed, simulated", [row.simulated], "%"),
            figure(f"{name}: printed, measured", [row.measured], "%"),
        ]
        bars.append(
            Bar(
                name=f"{name}: mean against {row.reference:g}, points",
                value=abs(mean.value - row.reference),
                bound=MAX_POINTS,
                unit="",
            )
        )
    return figures + list(_table_2_vllm(num_seeds)), bars


def _table_2_vllm(num_seeds: int) -> Iterator[Figure]:
    """Told, and not judged: the printed column cannot be had from the published profile."""
    cluster = published_cluster("opt-66b", "vllm", TABLE_2_VLLM)
    for row in TABLE_2:
        runs = attainments(cluster, chat(TABLE_2_SLO), row.rate_per_s, num_seeds)
        name = f"table 2, {row.rate_per_s:g} req/s, vLLM"
        yield figure(f"{name}: attainment of a run", runs, "%")
        yield figure(f"{name}: printed, simulated", [row.simulated_vllm], "%")


def quick_start(seed: int) -> tuple[Candidate, float]:
    """Its answer on one host of 4 GPUs: the best unit, and its requests per second and GPU."""
    fleet = published_fleet("opt-13b", "distserve", gpus_per_host=4, num_hosts=1)
    trials = published_trials(simulate, chat(QUICK_START_SLO), NUM_REQUESTS)
    trials = replace(trials, sampling=replace(trials.sampling, seed=seed))
    nine = units(fleet, Limits())
    best, found = units_goodput(trials, fleet, nine, published_rates, Workers())[0]
    return best, found.low_per_s / best.num_gpus


def _quick_start(*, quick: bool) -> Figures:
    num = NUM_QUICK_SEARCHES if quick else NUM_SEARCHES
    answers = [quick_start(seed) for seed in range(num)]
    alike = sum(best.pools == QUICK_START_BEST.pools for best, _ in answers)
    per_gpu = [each for _, each in answers]
    return [
        figure("quick start: best, by seed", per_gpu, "req/s/GPU"),
        figure("quick start: printed", [QUICK_START_PER_GPU], "req/s/GPU"),
    ], [
        Bar(
            name="quick start: seeds that find prefill 2x1 + decode 1x1",
            value=alike,
            bound=num,
            unit="",
            at_most=False,
        )
    ]


def goodput(engine: str, candidate: Candidate, sampling: Sampling) -> Interval:
    """At 90 % of both limits together: requests per second and GPU."""
    workload = chat(FIG_8_SLO)
    judge = Joint(classes=tuple(workload.classes))
    trials = Trials(simulate=simulate, workload=workload, judge=judge, sampling=sampling)
    cluster, num_gpus = published_cluster("opt-13b", engine, candidate), candidate.num_gpus
    search = steady_rates(trials, PRECISION)(cluster, num_gpus)
    return find_goodput(trials, cluster, search).per_gpu(num_gpus)


def transients(engine: str, candidate: Candidate, num_requests: int) -> list[float]:
    """Goodput as single runs of so many requests see it."""
    sampling = published(num_requests)
    seeds = range(NUM_RUNS)
    return [goodput(engine, candidate, replace(sampling, seed=seed)).value for seed in seeds]


def fig_8(colocated_engine: str) -> Mapping[str, Interval]:
    """Steady-state goodput of FIG_8_SIDES."""
    return {
        side: goodput(_engine(each, colocated_engine), each, Sampling())
        for side, each in FIG_8_SIDES.items()
    }


def _engine(candidate: Candidate, colocated_engine: str) -> str:
    """Disaggregated, it is DistServe's in either table."""
    return colocated_engine if candidate.is_colocated else "distserve"


def _fig_8(*, quick: bool) -> Figures:
    figures, bars = [], []
    lengths = FIG_8_RUNS[-1:] if quick else FIG_8_RUNS
    for profiles, engine in FIG_8_PROFILES.items():
        name = f"fig. 8, {profiles}"
        found = fig_8(engine)
        for side, each in found.items():
            candidate = FIG_8_SIDES[side]
            for num in lengths:
                runs = transients(_engine(candidate, engine), candidate, num)
                figures.append(figure(f"{name}: {side}, N = {num:,}", runs, "req/s/GPU"))
            steady = (each.low, each.value, each.high)
            figures.append(figure(f"{name}: {side}, steady state", steady, "req/s/GPU"))
        bars.append(_lead(name, found, is_same=engine == "distserve"))
    return figures, bars


def _lead(name: str, found: Mapping[str, Interval], *, is_same: bool) -> Bar:
    """Who is ahead: as the paper says with its profiles, the other way round with one for both."""
    ahead = lead_of_disaggregation(found)
    return Bar(
        name=f"{name}: {'colocated' if is_same else 'disaggregated'} is ahead by",
        value=-ahead if is_same else ahead,
        bound=0.0,
        unit="req/s/GPU",
        at_most=False,
    )


def lead_of_disaggregation(found: Mapping[str, Interval]) -> float:
    """The best of each; requests per second and GPU."""
    sides = FIG_8_SIDES.items()
    best = max(found[side].value for side, each in sides if each.is_colocated)
    return max(found[side].value for side, each in sides if not each.is_colocated) - best


_PARTS: Mapping[str, Callable[[bool], Figures]] = {
    "table2": lambda quick: _table_2(quick=quick),
    "quickstart": lambda quick: _quick_start(quick=quick),
    "fig8": lambda quick: _fig_8(quick=quick),
}
PARTS: Sequence[str] = tuple(_PARTS)


def measure(
    *, quick: bool, on_progress: Callable[[str], None] = lambda _: None, only: str | None = None
) -> Report:
    """Every part, or one. The first simulation compiles the simulator."""
    figures: list[Figure] = []
    bars: list[Bar] = []
    for name, part in _PARTS.items():
        if only in (None, name):
            on_progress(f"planner_figures: {name}")
            more_figures, more_bars = part(quick)
            figures += more_figures
            bars += more_bars
    return Report(name="planner_figures", figures=tuple(figures), bars=tuple(bars))
