"""A router dies in the middle of an answer: the client goes on at another, token by token."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.plan import RouterPlan
from deploy.cluster import Cluster
from router.client import AsyncClient
from router.events import Delta
from tests.e2e.conftest import cluster_spec
from tests.e2e.oracle import Oracle
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
