"""Instances of several ranks: the same tokens, and the death of one rank is its instance's."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core.parallel import ParallelLayout
from core.plan import Plan, PoolPlan
from router.client import AsyncClient
from router.events import Delta, Finished
from tests.e2e.asking import Answer, Question, ask_all
from tests.e2e.conftest import cluster_spec
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster, running

pytestmark = pytest.mark.ray

PROMPT = tuple(3 + (i * 11) % 500 for i in range(300))
RANK_END_S = 30.0
"""Until a killed rank's instance is gone: the bench has the figure, this only bounds the wait."""


@pytest.fixture(scope="module")
def ranks(tiny_dir: Path) -> Iterator[RunningCluster]:
    """Prefill on two tensor-parallel ranks, decode on two stages of 2 and 1 layers."""
    spec = cluster_spec(tiny_dir)
    plan = Plan(
        prefill=PoolPlan(layout=ParallelLayout(tp=2), num_cpus=0.5),
        decode=PoolPlan(layout=ParallelLayout(pp=2), num_cpus=0.5),
    )
    worker = replace(spec.config.worker, prefill_step_tokens=64, mixed_step_tokens=16)
    with running(replace(spec, plan=plan, config=replace(spec.config, worker=worker))) as cluster:
        yield cluster


def test_tokens_are_those_of_one_rank(ranks: RunningCluster, tiny_oracle: Oracle) -> None:
    asked = [Question(prompt=PROMPT[: 20 * i], max_tokens=24) for i in range(1, 9)]
    answers = ranks.run(ask_all(ranks.cluster.router_addresses, asked))
    compare_all(tiny_oracle, answers)


@pytest.mark.parametrize(
    ("name", "after_tokens"),
    [("prefill-0", 0), ("decode-0", 2)],
    ids=["tensor parallel, while it computes", "a stage, in the middle of an answer"],
)
def test_a_rank_dies(
    ranks: RunningCluster, tiny_oracle: Oracle, name: str, after_tokens: int
) -> None:
    """Its instance ends, Ray starts it again, and the answer under way is the right one."""
    answer = ranks.run(_ask_and_kill_a_rank(ranks, name, after_tokens))
    assert tiny_oracle.compare(answer.question.prompt, answer.token_ids).problem is None


async def _ask_and_kill_a_rank(running: RunningCluster, name: str, after_tokens: int) -> Answer:
    question = Question(prompt=PROMPT, max_tokens=150)
    leader = psutil.Process(await running.cluster.pid(name))
    token_ids, killed = list[int](), False
    async with AsyncClient(running.cluster.router_addresses) as client:
        async for event in client.generate(
            token_ids=question.prompt,
            max_tokens=question.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            timeout_s=240.0,
        ):
            if isinstance(event, Finished):
                # Ray's restart has other ranks; the leader that lost one is gone.
                assert killed, "it was over before anything was killed"
                await asyncio.to_thread(leader.wait, RANK_END_S)
                return Answer(question=question, token_ids=tuple(token_ids), finished=event)
            if isinstance(event, Delta):
                token_ids.extend(event.token_ids)
            if not killed and len(token_ids) >= after_tokens:
                killed = True
                os.kill(rank_of(leader).pid, signal.SIGKILL)
    raise AssertionError("the stream ended without Finished")


def rank_of(leader: psutil.Process) -> psutil.Process:
    """A child that computes."""
    ranks = [child for child in leader.children() if "engine.ranks.worker" in child.cmdline()]
    assert ranks, f"process {leader.pid} has no ranks"
    return ranks[0]
