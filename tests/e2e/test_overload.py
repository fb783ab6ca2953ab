"""Far more than fits: every answer is exact or refused by a type, nobody waits for ever."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BatonError
from deploy.cluster import Cluster
from router.client import AsyncClient
from tests.e2e.asking import Answer, Question, ask, questions
from tests.e2e.books import books_of
from tests.e2e.conftest import cluster_spec
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster, running

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

NUM_BLOCKS = 32
"""Of each instance: two or three of the requests below."""
MAX_RUNNING, MAX_QUEUED = 12, 12
NUM_REQUESTS = 36
"""Half more than the router runs and queues, over ten times what the blocks hold."""
WAIT_S = 20.0

Outcome = Answer | BatonError


@pytest.fixture(scope="module")
def tight_pair(tiny_dir: Path) -> Iterator[RunningCluster]:
    """One prefill, one decode, few blocks, a router with a short queue, leases of two seconds."""
    spec = cluster_spec(tiny_dir)
    config = replace(
        spec.config,
        engine=replace(spec.config.engine, num_blocks=NUM_BLOCKS),
        router=replace(spec.config.router, max_running=MAX_RUNNING, max_queued=MAX_QUEUED),
        handoff=replace(spec.config.handoff, lease_ttl_s=2.0),
    )
    with running(replace(spec, config=config)) as cluster:
        yield cluster


def _questions(num: int, seed: int) -> list[Question]:
    """From one token to nearly all the blocks of an instance."""
    return questions(
        num, vocab_size=512, prompt_tokens=range(1, 300), output_tokens=range(1, 120), seed=seed
    )


async def _outcomes(addresses: tuple[str, ...], asked: list[Question]) -> list[Outcome]:
    """All asked at once, each to its end."""

    async def one(client: AsyncClient, question: Question) -> Outcome:
        try:
            return await ask(client, question)
        except BatonError as error:
            return error

    async with AsyncClient(addresses) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(client, question)) for question in asked]
    return [task.result() for task in tasks]


def _check(oracle: Oracle, outcomes: list[Outcome]) -> tuple[int, int]:
    """How many were answered, exactly, and how many were refused for want of room."""
    answers = [each for each in outcomes if isinstance(each, Answer)]
    errors = [each for each in outcomes if isinstance(each, BatonError)]
    num_again = sum(answer.finished.timing.num_attempts > 1 for answer in answers)
    print(f"{compare_all(oracle, answers)}, {len(errors)} refused, {num_again} placed again")
    assert {error.status for error in errors} <= {"RESOURCE_EXHAUSTED"}
    return len(answers), len(errors)


def test_more_than_fits(tight_pair: RunningCluster, tiny_oracle: Oracle) -> None:
    addresses = tight_pair.cluster.router_addresses
    outcomes = tight_pair.run(_outcomes(addresses, _questions(NUM_REQUESTS, seed=3)))
    num_answered, num_refused = _check(tiny_oracle, outcomes)
    # Whoever found room to run or to wait is served, however late.
    assert num_answered >= MAX_RUNNING + MAX_QUEUED
    assert num_refused > 0


def test_all_that_waits_is_served(tight_pair: RunningCluster, tiny_oracle: Oracle) -> None:
    """The queue is full to its last place, and nobody is refused."""
    addresses = tight_pair.cluster.router_addresses
    asked = _questions(MAX_RUNNING + MAX_QUEUED, seed=4)
    outcomes = tight_pair.run(_outcomes(addresses, asked))
    assert _check(tiny_oracle, outcomes) == (MAX_RUNNING + MAX_QUEUED, 0)


def test_the_only_decode_freezes_under_load(
    tight_pair: RunningCluster, tiny_oracle: Oracle
) -> None:
    """Leases run out, prefill's blocks come back, and what is left answers alone."""
    asked = _questions(MAX_RUNNING + MAX_QUEUED, seed=5)
    outcomes = tight_pair.run(_outcomes_with_a_frozen_decode(tight_pair.cluster, asked))
    num_answered, num_refused = _check(tiny_oracle, outcomes)
    assert (num_answered, num_refused) == (len(asked), 0)


async def _outcomes_with_a_frozen_decode(cluster: Cluster, asked: list[Question]) -> list[Outcome]:
    """SIGSTOP it with work in its hands; SIGCONT when every request has ended without it."""
    name = next(name for name in cluster.actors if name.startswith("decode"))
    address, frozen = await cluster.address(name), list[int]()

    async def freeze() -> None:
        async with asyncio.timeout(WAIT_S):
            while not frozen:
                books = (await books_of(address)).integrity
                if books.num_decodes and books.num_incoming:
                    frozen.append(books.pid)
        os.kill(frozen[0], signal.SIGSTOP)

    try:
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(_outcomes(cluster.router_addresses, asked))
            group.create_task(freeze())
        return asking.result()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
