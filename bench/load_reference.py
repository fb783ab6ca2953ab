"""What `baton bench` reports of a server whose every delay, and whose capacity, is known."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from bench.load.endpoint import Endpoint
from bench.load.goodput import Goodput
from bench.load.measures import LATENCIES, Measures
from bench.load.options import BenchOptions, Load
from bench.load.reference_server import ReferenceSpec
from bench.load.run import LoadRun
from bench.load.session import LoadResult, run_bench
from bench.load.spread import Spread
from bench.processes import service
from bench.report import Bar, Figure, Report, figure

Progress = Callable[[str], None]
Part = tuple[list[Figure], list[Bar]]

# --- latencies --------------------------------------------------------------------------------

SPEC = ReferenceSpec(ttft_s=0.4, gap_s=0.05)
OUTPUT_TOKENS = 24
LOAD = Load(rate_per_s=8.0, duration_s=33.0, prompt_tokens="256", output_tokens=str(OUTPUT_TOKENS))
QUICK_S = 13.0
WARMUP_S = 3.0
MAX_OFF = 0.02
"""Of the delay that is known, median and mean alike."""
MAX_CPU_SHARE = 0.3
"""Of a core, the load generator's own: far from where it would measure itself."""

# --- goodput ----------------------------------------------------------------------------------

FULL_SPEC = ReferenceSpec(ttft_s=0.1, gap_s=0.03, max_running=2)
FULL_OUTPUT_TOKENS = 6
FULL_LOAD = Load(
    process="constant",
    rate_per_s=6.0,
    duration_s=12.0,
    prompt_tokens="64",
    output_tokens=str(FULL_OUTPUT_TOKENS),
)
CAPACITY_PER_S = FULL_SPEC.max_running / FULL_SPEC.whole_s(FULL_OUTPUT_TOKENS)
"""8: arrivals without randomness are served at once below it, and pile up above it."""
FULL_SLO = "ttft=0.25"
MAX_GOODPUT_OFF = 0.03
"""Of the capacity: between two answers the server takes a millisecond or two of its own."""
TIMEOUT_S = 60.0


def measure(
    *, quick: bool, on_progress: Progress = lambda _: None, only: str | None = None
) -> Report:
    """Runs as a user would start them, the server in a process of its own."""
    figures, bars = list[Figure](), list[Bar]()
    for name, part in _PARTS.items():
        if only in (None, name):
            more_figures, more_bars = part(quick, on_progress)
            figures += more_figures
            bars += more_bars
    return Report(name="load", figures=tuple(figures), bars=tuple(bars))


def _latencies(quick: bool, on_progress: Progress) -> Part:
    load = replace(LOAD, duration_s=QUICK_S) if quick else LOAD
    options = BenchOptions(endpoint=Endpoint(), load=load, warmup_s=WARMUP_S, timeout_s=TIMEOUT_S)
    (run,) = _result(SPEC, options, on_progress).runs
    return list(_figures(run)), list(_latency_bars(run.measures))


def _goodput(_quick: bool, on_progress: Progress) -> Part:
    options = BenchOptions(
        endpoint=Endpoint(),
        load=FULL_LOAD,
        slo=FULL_SLO,
        warmup_s=WARMUP_S,
        timeout_s=TIMEOUT_S,
        finds_goodput=True,
    )
    found = _result(FULL_SPEC, options, on_progress).goodput
    if found is None:
        raise ValueError("a search without a result")
    return list(_goodput_figures(found)), list(_goodput_bars(found))


_PARTS: Mapping[str, Callable[[bool, Progress], Part]] = {
    "latencies": _latencies,
    "goodput": _goodput,
}
PARTS = tuple(_PARTS)


def _result(spec: ReferenceSpec, options: BenchOptions, on_progress: Progress) -> LoadResult:
    with service("bench.load.reference_server", spec.to_json()) as server:
        endpoint = Endpoint(url=f"http://{server.address}/v1")
        return asyncio.run(run_bench(replace(options, endpoint=endpoint), on_progress))


def known_s() -> dict[str, float]:
    """What a load generator without any delay of its own would report."""
    gaps_s = dict.fromkeys(("first_gap", "tpot", "itl"), SPEC.gap_s)
    return {"ttft": SPEC.ttft_s, **gaps_s, "e2e": SPEC.whole_s(OUTPUT_TOKENS)}


def off(got: Spread, want_s: float) -> float:
    """How far median or mean, whichever is worse, is from `want_s`; a share of it."""
    return max(abs(got.p50 - want_s), abs(got.mean - want_s)) / want_s


def _figures(run: LoadRun) -> Iterator[Figure]:
    counted = [o for o in run.outcomes if run.measures.window.holds(o.at_s)]
    whole = [moments for o in counted if (moments := o.answered) is not None]
    for name, latency in LATENCIES.items():
        yield figure(name, (value for m in whole if (value := latency(m)) is not None), "s")
    yield figure("itl", (pause for o in counted for pause in o.answer.pauses_s()), "s")
    yield figure("sent late", (o.late_s for o in counted), "s")
    yield figure("load generator, share of a core", [run.measures.cpu.share], "")


def _latency_bars(measures: Measures) -> Iterator[Bar]:
    for name, want_s in known_s().items():
        if (got := measures.latencies_s[name]) is None:
            raise ValueError(f"{name}: nothing was measured")
        error = off(got, want_s)
        yield Bar(name=f"{name} off by, of {want_s:g} s", value=error, bound=MAX_OFF, unit="")
    num_failed = measures.num_arrived - measures.num_answered
    yield Bar(name="failed requests", value=num_failed, bound=0, unit="")
    yield Bar(
        name="load generator, share of a core",
        value=measures.cpu.share,
        bound=MAX_CPU_SHARE,
        unit="",
    )


def _goodput_figures(found: Goodput) -> Iterator[Figure]:
    yield figure("rates tried", (point.rate_per_s for point in found.points), "1/s")
    yield figure("attainment", (point.attainment.value for point in found.points), "")


def _goodput_bars(found: Goodput) -> Iterator[Bar]:
    yield Bar(
        name="goodput's lower bound / capacity",
        value=found.low_per_s / CAPACITY_PER_S,
        bound=1 + MAX_GOODPUT_OFF,
        unit="",
    )
    yield Bar(
        name="goodput's upper bound / capacity",
        value=found.high_per_s / CAPACITY_PER_S,
        bound=1 - MAX_GOODPUT_OFF,
        unit="",
        at_most=False,
    )
    yield Bar(
        name="upper / lower bound",
        value=found.high_per_s / found.low_per_s if found.low_per_s else float("inf"),
        bound=1.1,
        unit="",
    )
