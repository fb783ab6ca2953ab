"""Ten times more than it can serve: what is good meanwhile, and how soon all is well again."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random

from bench.load.outcome import Outcome
from bench.load.times import poisson
from bench.report import Bar, Figure, figure
from bench.router_load import alike, attainment, num_good, offer
from bench.router_spec import (
    AFTER_S,
    AFTER_SHARE,
    MIN_ATTAINMENT_AFTER,
    MIN_OVERLOAD_GOODPUT,
    OVERLOAD_COST,
    OVERLOAD_FACTOR,
    OVERLOAD_OUTPUT_TOKENS,
    OVERLOAD_POOLS,
    OVERLOAD_PROMPT_TOKENS,
    OVERLOAD_S,
    OVERLOAD_TARGETS,
    OVERLOAD_TIMEOUT_S,
    PEAK_RATES_PER_S,
    PEAK_S,
    SEED,
    SETTLE_S,
)
from bench.stub_cluster import StubInstance, stub_cluster
from core import slo
from core.config import RouterConfig
from core.member import Role
from router.client import AsyncClient

QUICK_S = 8.0
QUICK_OVERLOAD_S = 15.0
WARM_UP_S = 3.0
FLAT_RATE_PER_S = 12.0


async def measure_overload(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """Peak goodput first, then the overload and, without a pause, what comes after it."""
    num_prefills, num_decodes = OVERLOAD_POOLS
    roles = [Role.PREFILL] * num_prefills + [Role.DECODE] * num_decodes
    instances = [StubInstance(role=role, cost=OVERLOAD_COST) for role in roles]
    config = RouterConfig(
        slo_ttft_s=OVERLOAD_TARGETS.ttft_s, slo_tpot_s=OVERLOAD_TARGETS.tpot_s, max_running=1024
    )
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(stub_cluster(instances, routers=(config,)))
        client = await stack.enter_async_context(AsyncClient(cluster.addresses))
        await _load(client, 0, [(FLAT_RATE_PER_S, WARM_UP_S)])
        peak_s = QUICK_S if quick else PEAK_S
        goodputs = [
            num_good(await _load(client, i, [(rate, peak_s)]), OVERLOAD_TARGETS) / peak_s
            for i, rate in enumerate(PEAK_RATES_PER_S)
        ]
        peak = max(goodputs)
        hot_s = QUICK_OVERLOAD_S if quick else OVERLOAD_S
        phases = [(OVERLOAD_FACTOR * peak, hot_s), (AFTER_SHARE * peak, AFTER_S)]
        outcomes = await _load(client, SEED, phases)
    return _judged(goodputs, outcomes, hot_s)


def _judged(
    goodputs: Sequence[float], outcomes: Sequence[Outcome], hot_s: float
) -> tuple[list[Figure], list[Bar]]:
    hot = [o for o in outcomes if o.at_s < hot_s]
    settled = [o for o in outcomes if o.at_s >= hot_s + SETTLE_S]
    kept = num_good(hot, OVERLOAD_TARGETS) / hot_s
    admitted = [o for o in hot if not o.error]
    odd = [o.error for o in outcomes if o.error not in ("", "SATURATED")]
    figures = [
        figure("goodput by rate offered", goodputs, "1/s"),
        figure("goodput at ten times the peak", [kept], "1/s"),
        figure("offered at ten times the peak", [len(hot) / hot_s], "1/s"),
        figure("admitted that kept their targets", [attainment(admitted, OVERLOAD_TARGETS)], ""),
        *_latencies(admitted),
        figure("sent late by", (o.late_s for o in hot), "s"),
    ]
    return figures, [
        Bar(
            name="goodput at ten times the peak / peak",
            value=kept / max(goodputs),
            bound=MIN_OVERLOAD_GOODPUT,
            unit="",
            at_most=False,
        ),
        Bar(
            name=f"attainment from {SETTLE_S:g} s after it",
            value=attainment(settled, OVERLOAD_TARGETS),
            bound=MIN_ATTAINMENT_AFTER,
            unit="",
            at_most=False,
        ),
        Bar(name="ended otherwise than well or refused", value=len(odd), bound=0, unit=""),
    ]


def _latencies(outcomes: Sequence[Outcome]) -> list[Figure]:
    """By the client's clock."""
    moments = [outcome.moments for outcome in outcomes if outcome.moments is not None]
    tpots_s = [tpot_s for m in moments if (tpot_s := slo.tpot_s(m)) is not None]
    if not tpots_s:
        return []
    return [
        figure("admitted: ttft", map(slo.ttft_s, moments), "s"),
        figure("admitted: tpot", tpots_s, "s"),
    ]


async def _load(
    client: AsyncClient, seed: int, phases: Sequence[tuple[float, float]]
) -> list[Outcome]:
    """(rate, seconds) one after the other."""
    rng, times, began_s = Random(seed), list[float](), 0.0
    for rate_per_s, duration_s in phases:
        times += [began_s + at_s for at_s in poisson(rng, rate_per_s, duration_s)]
        began_s += duration_s
    arrivals = alike(rng, times, OVERLOAD_PROMPT_TOKENS, OVERLOAD_OUTPUT_TOKENS)
    return await offer([client], arrivals, timeout_s=OVERLOAD_TIMEOUT_S)
