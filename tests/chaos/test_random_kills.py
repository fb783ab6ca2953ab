"""Instances die at random under load: every answer is the right one, and nothing leaks."""

import asyncio
import os
import random
import signal

import pytest

from deploy.cluster import Cluster
from router.client import AsyncClient
from tests.e2e.asking import Answer, Question, ask, questions
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

NUM_REQUESTS, NUM_AT_ONCE, ANSWERS_PER_KILL = 120, 16, 15
SEED = 11


def test_random_kills(
    tiny_pools: RunningCluster, tiny_oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(
        NUM_REQUESTS,
        vocab_size=512,
        prompt_tokens=range(1, 300),
        output_tokens=range(1, 100),
        seed=SEED,
    )
    answers, killed = tiny_pools.run(_ask_under_fire(tiny_pools.cluster, asked))
    num_again = sum(answer.finished.timing.num_attempts > 1 for answer in answers)
    with capsys.disabled():
        print(f"\n{len(killed)} kills, {num_again} answers placed again")
        print(compare_all(tiny_oracle, answers))
    assert num_again


async def _ask_under_fire(
    cluster: Cluster, asked: list[Question]
) -> tuple[list[Answer], list[str]]:
    """All answers, and who was killed: somebody after every few answers."""
    rng, gate, num_done = random.Random(SEED), asyncio.Semaphore(NUM_AT_ONCE), 0
    instances = [name for name in cluster.actors if not name.startswith("router")]
    due = asyncio.Semaphore(0)

    async def one(client: AsyncClient, question: Question) -> Answer:
        nonlocal num_done
        async with gate:
            answer = await ask(client, question)
        num_done += 1
        if num_done % ANSWERS_PER_KILL == 0 and num_done < len(asked):
            due.release()
        return answer

    async def kill_when_due() -> list[str]:
        killed = []
        for _ in range((len(asked) - 1) // ANSWERS_PER_KILL):
            await due.acquire()
            killed.append(rng.choice(instances))
            # Of the process that serves now: a restart under way is waited for.
            os.kill(await cluster.pid(killed[-1]), signal.SIGKILL)
        return killed

    async with AsyncClient(cluster.router_addresses) as client, asyncio.TaskGroup() as group:
        killing = group.create_task(kill_when_due())
        tasks = [group.create_task(one(client, question)) for question in asked]
    return [task.result() for task in tasks], killing.result()
