"""Every placement policy on one trace: chats that grow, on instances that are not all alike."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random

from bench.load.offer import Arrival
from bench.load.outcome import Outcome
from bench.load.times import poisson
from bench.report import Bar, Figure, figure
from bench.router_load import attainment, offer
from bench.router_spec import (
    POLICY_COST,
    POLICY_COSTS,
    POLICY_MAX_PROMPT_TOKENS,
    POLICY_NUM_CHATS,
    POLICY_OUTPUT_TOKENS,
    POLICY_RATE_PER_S,
    POLICY_S,
    POLICY_TARGETS,
    POLICY_TURN_TOKENS,
    SEED,
)
from bench.stub_cluster import StubInstance, stub_cluster
from bench.stub_engine import StepCost
from core.config import POLICIES, RouterConfig
from core.member import Role
from core.slo import tpot_s, ttft_s
from router.client import AsyncClient

TIMEOUT_S = 60.0
WARM_UP_S = 4.0
QUICK_S = 6.0
NUM_SLO_RUNS = 2
"""The default runs at the beginning and at the end: what lies between the two is noise."""


async def measure_policies(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """Each on a cluster of its own: nobody finds what another one cached."""
    duration_s = QUICK_S if quick else POLICY_S
    trace = list(chats(Random(SEED), duration_s))
    outcomes = {policy: [await _run(policy, trace)] for policy in POLICIES}
    outcomes["slo"] += [await _run("slo", trace) for _ in range(NUM_SLO_RUNS - 1)]
    return _judged(outcomes)


def _judged(outcomes: Mapping[str, Sequence[list[Outcome]]]) -> tuple[list[Figure], list[Bar]]:
    figures = []
    shares = {
        policy: [attainment(run, POLICY_TARGETS) for run in runs]
        for policy, runs in outcomes.items()
    }
    for policy, runs in outcomes.items():
        moments = [o.moments for run in runs for o in run if o.moments is not None]
        gaps = [gap for gap in map(tpot_s, moments) if gap is not None]
        figures += [
            figure(f"{policy}: attainment", shares[policy], ""),
            figure(f"{policy}: ttft", map(ttft_s, moments), "s"),
            figure(f"{policy}: tpot", gaps, "s"),
        ]
    own = shares["slo"]
    best = max(max(each) for policy, each in shares.items() if policy != "slo")
    # A binomial share of n requests is off by this much one time in three, whatever the policy.
    num_requests = len(outcomes["slo"][0])
    noise = max(max(own) - min(own), (best * (1 - best) / num_requests) ** 0.5)
    failed = [o for runs in outcomes.values() for run in runs for o in run if o.error]
    return figures, [
        Bar(
            name="attainment of slo, noise added, against the best other",
            value=max(own) + noise,
            bound=best,
            unit="",
            at_most=False,
        ),
        Bar(name="failed requests, all policies", value=len(failed), bound=0, unit=""),
    ]


async def _run(policy: str, trace: Sequence[Arrival]) -> list[Outcome]:
    instances = [
        StubInstance(role=role, cost=_slower(factor))
        for role in (Role.PREFILL, Role.DECODE)
        for factor in POLICY_COSTS
    ]
    async with AsyncExitStack() as stack:
        config = RouterConfig(policy=policy, max_running=1024)
        cluster = await stack.enter_async_context(stub_cluster(instances, routers=(config,)))
        client = await stack.enter_async_context(AsyncClient(cluster.addresses))
        # Not counted: connections are made, and whoever learns speeds learns them.
        warm_up = [replace(a, token_ids=(499, *a.token_ids)) for a in trace if a.at_s < WARM_UP_S]
        await offer([client], warm_up, timeout_s=TIMEOUT_S)
        return await offer([client], trace, timeout_s=TIMEOUT_S)


def _slower(factor: float) -> StepCost:
    return StepCost(
        prefill_base_s=POLICY_COST.prefill_base_s * factor,
        prefill_token_s=POLICY_COST.prefill_token_s * factor,
        decode_base_s=POLICY_COST.decode_base_s * factor,
        answer_s=POLICY_COST.answer_s * factor,
    )


def chats(rng: Random, duration_s: float) -> Iterator[Arrival]:
    """Turns of some chats at random moments; each repeats what was said before, and adds."""
    said: list[tuple[int, ...]] = [() for _ in range(POLICY_NUM_CHATS)]
    for at_s in poisson(rng, POLICY_RATE_PER_S, duration_s):
        chat = rng.randrange(POLICY_NUM_CHATS)
        added = _tokens(rng, _length(rng, *POLICY_TURN_TOKENS))
        if len(said[chat]) + len(added) > POLICY_MAX_PROMPT_TOKENS:
            said[chat] = ()
        said[chat] += added
        yield Arrival(
            at_s=at_s, token_ids=said[chat], max_tokens=_length(rng, *POLICY_OUTPUT_TOKENS)
        )


def _length(rng: Random, least: int, most: int) -> int:
    """Exponential: many short ones, few long ones."""
    return min(most, least + int(rng.expovariate(4 / (most - least))))


def _tokens(rng: Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, 499) for _ in range(num_tokens))
