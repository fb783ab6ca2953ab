"""Requests that come when they come, whatever becomes of those before: an open-loop load."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random

from bench.router_spec import Targets
from core import slo
from core.clock import MonotonicClock
from core.errors import BatonError
from router.client import AsyncClient
from router.events import Delta


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to send."""

    at_s: float
    """From the start."""
    token_ids: tuple[int, ...]
    max_tokens: int
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it, by the client's clock."""

    arrival: Arrival
    late_s: float
    """Sent after it was due: the load generator's own delay, part of what follows."""
    moments: slo.Moments | None
    """None: no token came."""
    error: str
    """Empty for an answer."""

    def is_good(self, targets: Targets) -> bool:
        """Whether it kept both targets."""
        if self.error or self.moments is None:
            return False
        tpot_s = slo.tpot_s(self.moments)
        is_smooth = tpot_s is None or tpot_s <= targets.tpot_s
        return is_smooth and slo.ttft_s(self.moments) <= targets.ttft_s


def poisson(rng: Random, rate_per_s: float, duration_s: float) -> Iterable[float]:
    """Arrival times."""
    at_s = rng.expovariate(rate_per_s)
    while at_s < duration_s:
        yield at_s
        at_s += rng.expovariate(rate_per_s)


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
    began_at_s = MonotonicClock().now_s()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for i, arrival in enumerate(arrivals):
            due_s = began_at_s + arrival.at_s
            await asyncio.sleep(max(0.0, due_s - MonotonicClock().now_s()))
            client = clients[i % len(clients)]
            tasks.append(group.create_task(_ask(client, arrival, due_s, timeout_s)))
    return [task.result() for task in tasks]


async def _ask(client: AsyncClient, arrival: Arrival, due_s: float, timeout_s: float) -> Outcome:
    clock, times, error = MonotonicClock(), list[float](), ""
    late_s = clock.now_s() - due_s
    try:
        events = client.generate(
            token_ids=arrival.token_ids,
            max_tokens=arrival.max_tokens,
            ignore_eos=True,
            timeout_s=timeout_s,
            tenant=arrival.tenant,
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    times += [clock.now_s()] * len(event.token_ids)
    except BatonError as failure:
        error = failure.reason
    moments = None
    if times:
        moments = slo.Moments(
            arrived_at_s=due_s,
            first_token_at_s=times[0],
            second_token_at_s=times[1] if len(times) > 1 else None,
            last_token_at_s=times[-1],
            num_output_tokens=len(times),
        )
    return Outcome(arrival=arrival, late_s=late_s, moments=moments, error=error)


def goodput_per_s(outcomes: Iterable[Outcome], targets: Targets, duration_s: float) -> float:
    """Good answers per second of arrivals."""
    return sum(outcome.is_good(targets) for outcome in outcomes) / duration_s


def attainment(outcomes: Sequence[Outcome], targets: Targets) -> float:
    """Share of offered requests that were good, 0-1."""
    return sum(outcome.is_good(targets) for outcome in outcomes) / max(1, len(outcomes))
