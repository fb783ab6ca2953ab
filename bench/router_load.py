"""What the router's benchmarks offer, and what of it they count as good."""

from collections.abc import Iterable, Sequence
from random import Random

from bench.load.grpc_target import GrpcTarget
from bench.load.offer import Arrival, LoadGenerator
from bench.load.outcome import Outcome
from bench.router_spec import Targets
from core import slo
from router.client import AsyncClient


def alike(
    rng: Random,
    times: Iterable[float],
    num_prompt_tokens: int,
    max_tokens: int,
    tenant: str = "",
) -> list[Arrival]:
    """Prompts of one length, no two alike."""
    return [
        Arrival(
            at_s=at_s,
            token_ids=tuple(rng.randrange(1, 500) for _ in range(num_prompt_tokens)),
            max_tokens=max_tokens,
            tenant=tenant,
        )
        for at_s in times
    ]


async def offer(
    clients: Sequence[AsyncClient], arrivals: Sequence[Arrival], *, timeout_s: float
) -> list[Outcome]:
    """Send each when it is due, to the routers in turn; return when all have ended."""
    target = GrpcTarget(clients, timeout_s=timeout_s)
    return await LoadGenerator(target, timeout_s=timeout_s).offer(arrivals)


def num_good(outcomes: Iterable[Outcome], targets: Targets) -> int:
    """Answers that kept both targets."""
    limits = slo.Slo(ttft_s=targets.ttft_s, tpot_s=targets.tpot_s)
    whole = (moments for o in outcomes if (moments := o.answered) is not None)
    return sum(slo.meets(limits, moments) for moments in whole)


def attainment(outcomes: Sequence[Outcome], targets: Targets) -> float:
    """Share of offered requests that were good, 0-1."""
    return num_good(outcomes, targets) / max(1, len(outcomes))
