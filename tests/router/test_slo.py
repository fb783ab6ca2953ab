"""Early refusal: what is predicted to miss its deadline or the target is not begun."""

import asyncio

import pytest

from core.config import RouterConfig
from core.errors import DeadlinePassed, Saturated
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.router.conftest import OpenStage, Stage
from tests.router.script import BOUND_S

BUSY = 100_000
"""Pending prompt tokens: with the 2 ms that a scripted prompt of three takes about a minute."""


async def busy(stage: Stage, num_pending: int) -> None:
    """The prefill instance says so, and the router has heard it."""
    load = stage["p0"].load
    load.num_prefilling, load.num_pending_prompt_tokens = 4 * bool(num_pending), num_pending
    stage["p0"].drop_subscriptions()
    async with (
        dial(stage.routers[0].address, plane=Plane.CLIENT) as channel,
        asyncio.timeout(BOUND_S),
    ):
        stub = cluster_pb2_grpc.ClusterStub(channel)
        heard: list[int] = []
        while heard != [num_pending]:
            reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
            prefills = [i for i in reply.instances if i.instance_id == "p0" and i.connected]
            heard = [i.load.num_pending_prompt_tokens for i in prefills]


async def test_a_hopeless_request_is_refused_with_a_hint(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(slo_ttft_s=5.0))
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)
    await busy(on, BUSY)
    with pytest.raises(Saturated) as refused:
        await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)
    assert refused.value.retry_after_s >= 0.5
    assert len(on["p0"].prefills) == 1
    # The load is over: so is the refusal.
    await busy(on, 0)
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)


async def test_so_is_one_that_would_miss_its_own_deadline(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)
    await busy(on, BUSY)
    with pytest.raises(Saturated):
        await on.client.complete(token_ids=[5, 6, 7], max_tokens=3, timeout_s=4.0)
    # Whoever has the time may wait.
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)


async def test_nothing_is_refused_by_a_guess(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(slo_ttft_s=0.001))
    await busy(on, BUSY)
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)


async def test_a_deadline_that_nobody_could_meet_is_no_load(stage: OpenStage) -> None:
    on = await stage("pd")
    on["p0"].script.prefill_compute_s = 500.0
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)
    with pytest.raises(DeadlinePassed):
        await on.client.complete(token_ids=[5, 6, 7], max_tokens=3, timeout_s=4.0)
