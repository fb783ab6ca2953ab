"""One greedy request, as the benchmarks ask it."""

import random
from collections.abc import Callable

from router.client import AsyncClient
from router.events import Delta, Finished

VOCABULARY = range(1000, 40_000)
TIMEOUT_S = 300.0


def random_prompt(rng: random.Random, num_tokens: int) -> tuple[int, ...]:
    """Ordinary tokens; no two prompts begin alike."""
    return tuple(rng.choice(VOCABULARY) for _ in range(num_tokens))


async def ask(
    client: AsyncClient,
    prompt: tuple[int, ...],
    max_tokens: int,
    on_tokens: Callable[[int], None],
    *,
    tenant: str = "",
) -> Finished:
    """Ask for exactly `max_tokens`; `on_tokens(n)` is called as n more arrive."""
    async for event in client.generate(
        token_ids=prompt,
        max_tokens=max_tokens,
        temperature=0.0,
        ignore_eos=True,
        timeout_s=TIMEOUT_S,
        tenant=tenant,
    ):
        if isinstance(event, Delta):
            on_tokens(len(event.token_ids))
        elif isinstance(event, Finished):
            finished = event
    return finished
