"""Asking a cluster from tests, and what its answers were."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from router.client import AsyncClient
from router.events import Delta, Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request in tokens."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it."""

    question: Question
    token_ids: tuple[int, ...]
    finished: Finished


def questions(
    num: int, *, vocab_size: int, prompt_tokens: range, output_tokens: range, seed: int = 7
) -> list[Question]:
    """Random prompts of mixed lengths."""
    rng = random.Random(seed)
    return [
        Question(
            prompt=tuple(rng.randrange(3, vocab_size) for _ in range(rng.choice(prompt_tokens))),
            max_tokens=rng.choice(output_tokens),
            seed=rng.randrange(2**64),
        )
        for _ in range(num)
    ]


async def ask(client: AsyncClient, question: Question, timeout_s: float = 240.0) -> Answer:
    """One request to its end; every position once and in order."""
    token_ids: list[int] = []
    async for event in client.generate(
        token_ids=question.prompt,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        seed=question.seed,
        ignore_eos=True,
        timeout_s=timeout_s,
    ):
        if isinstance(event, Delta):
            assert event.position == len(token_ids)
            token_ids.extend(event.token_ids)
        elif isinstance(event, Finished):
            assert event.num_output_tokens == len(token_ids)
            return Answer(question=question, token_ids=tuple(token_ids), finished=event)
    raise AssertionError("the stream ended without Finished")


async def ask_all(
    addresses: Sequence[str], asked: Sequence[Question], *, at_once: int | None = None
) -> list[Answer]:
    """All requests, at most `at_once` at a time."""
    gate = asyncio.Semaphore(at_once or len(asked))

    async def one(client: AsyncClient, question: Question) -> Answer:
        async with gate:
            return await ask(client, question)

    async with AsyncClient(addresses) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(client, question)) for question in asked]
    return [task.result() for task in tasks]
