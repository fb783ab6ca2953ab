"""The same request through every door gives the same answer, and the same counts."""

import asyncio
import random
from typing import Any

import pytest

from tests.clients.conftest import grpc_address, http_address
from tests.clients.doors import by_grpc, by_http, by_kserve, by_stream
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

CASES: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {"temperature": 0.0}),
    ("sampled", {"temperature": 1.0, "seed": 11}),
    ("penalties", {"temperature": 0.7, "seed": 5, "presence_penalty": 1.0, "top_k": 20}),
    ("three choices", {"temperature": 1.0, "seed": 2**64 - 1, "n": 3}),
    ("stop string", {"temperature": 1.0, "seed": 7, "stop": ["a"]}),
    ("no end", {"temperature": 1.0, "seed": 3, "ignore_eos": True, "min_p": 0.05}),
]


@pytest.mark.parametrize("options", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_doors_agree(site: RunningCluster, options: dict[str, Any]) -> None:
    grpc, http = grpc_address(site), http_address(site)
    rng = random.Random(1)

    async def ask_all() -> None:
        for _ in range(4):
            prompt = [rng.randrange(3, 512) for _ in range(rng.randrange(1, 80))]
            asked = options | {"max_tokens": rng.randrange(2, 40)}
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(by_grpc(grpc, prompt, asked)),
                    group.create_task(by_http(http, prompt, asked)),
                    group.create_task(by_stream(http, prompt, asked)),
                    group.create_task(by_kserve(grpc, prompt, asked)),
                ]
            first, *others = [task.result() for task in tasks]
            assert all(other == first for other in others), (first, others)
            assert first.num_output_tokens == len(first.token_ids)

    site.run(ask_all())
