"""A router dies in the middle of an answer: the client goes on at another, token by token."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from core.plan import RouterPlan
from deploy.cluster import Cluster
from router.client import AsyncClient
from router.events import Delta
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import generation_pb2, generation_pb2_grpc, types_pb2
from tests.e2e.asking import Answer, ask, questions
from tests.e2e.conftest import cluster_spec
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster, running

pytestmark = pytest.mark.ray

PROMPT = tuple(3 + (i * 13) % 500 for i in range(60))
MAX_TOKENS = 300


@pytest.fixture(scope="module")
def two_routers(tiny_dir: Path) -> Iterator[RunningCluster]:
    """One prefill, one decode, two routers."""
    spec = cluster_spec(tiny_dir)
    plan = replace(spec.plan, router=RouterPlan(replicas=2))
    with running(replace(spec, plan=plan)) as cluster:
        yield cluster


@pytest.mark.parametrize("after_tokens", [0, 1, 40])
def test_the_client_resumes_elsewhere(
    two_routers: RunningCluster, tiny_oracle: Oracle, after_tokens: int
) -> None:
    token_ids = two_routers.run(_ask_and_kill(two_routers.cluster, after_tokens))
    assert len(token_ids) == MAX_TOKENS
    assert tiny_oracle.compare(PROMPT, token_ids).problem is None


async def _ask_and_kill(cluster: Cluster, after_tokens: int) -> list[int]:
    """SIGKILL the router that answers once so many tokens have arrived."""
    names = [name for name in cluster.actors if name.startswith("router")]
    # As they serve now: a router that Ray started again has another port.
    addresses = [await cluster.address(name) for name in names]
    token_ids, is_killed = list[int](), False
    async with AsyncClient(addresses) as client:
        async for event in client.generate(
            token_ids=PROMPT,
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            timeout_s=60.0,
        ):
            if isinstance(event, Delta):
                assert event.position == len(token_ids)
                token_ids.extend(event.token_ids)
            if not is_killed and len(token_ids) >= after_tokens:
                is_killed = True
                os.kill(await cluster.pid(names[0]), signal.SIGKILL)
    return token_ids


NUM_PER_KIND = 6


def test_many_streams_on_both_routers(two_routers: RunningCluster, tiny_oracle: Oracle) -> None:
    """The Python client loses none; others lose those of the dead router, and are told so."""
    answers, raw = two_routers.run(_many_and_kill(two_routers.cluster))
    compare_all(tiny_oracle, answers)
    for on_dead, ended in raw:
        if on_dead:
            assert ended is grpc.StatusCode.UNAVAILABLE
        else:
            assert ended is grpc.StatusCode.OK


async def _many_and_kill(
    cluster: Cluster,
) -> tuple[list[Answer], list[tuple[bool, grpc.StatusCode]]]:
    names = [name for name in cluster.actors if name.startswith("router")]
    addresses = [await cluster.address(name) for name in names]
    asked = questions(
        2 * NUM_PER_KIND, vocab_size=512, prompt_tokens=range(3, 60), output_tokens=range(150, 250)
    )
    begun = asyncio.Semaphore(0)
    async with (
        AsyncClient(addresses) as first,
        AsyncClient(addresses[::-1]) as second,
        asyncio.TaskGroup() as group,
    ):
        ours = [
            group.create_task(ask(client, question))
            for client, half in ((first, asked[:NUM_PER_KIND]), (second, asked[NUM_PER_KIND:]))
            for question in half
        ]
        others = [
            (address == addresses[0], group.create_task(_raw(address, begun)))
            for address in addresses
            for _ in range(NUM_PER_KIND)
        ]
        # Every stream of the other kind has its first tokens; ours began before them.
        for _ in others:
            await begun.acquire()
        os.kill(await cluster.pid(names[0]), signal.SIGKILL)
    return [task.result() for task in ours], [(dead, task.result()) for dead, task in others]


async def _raw(address: str, begun: asyncio.Semaphore) -> grpc.StatusCode:
    """A client in no library of ours: one call, and how it ended."""
    async with dial(address, plane=Plane.CLIENT) as channel:
        message = generation_pb2.GenerateRequest(
            token_ids=generation_pb2.TokenIds(ids=PROMPT),
            sampling=types_pb2.SamplingParams(temperature=0.0),
            stop=types_pb2.StopParams(max_tokens=MAX_TOKENS, ignore_eos=True),
        )
        call = generation_pb2_grpc.GenerationStub(channel).Generate(message, timeout=60.0)
        num_deltas = 0
        try:
            async for response in call:
                num_deltas += response.HasField("delta")
                if num_deltas == 1 and response.HasField("delta"):
                    begun.release()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await call.code()
