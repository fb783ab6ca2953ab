"""One tenant that asks three routers for far more than it may have."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random

import grpc.aio

from bench.load.outcome import Outcome
from bench.load.times import poisson
from bench.report import Bar, Figure, figure
from bench.router_load import alike, offer
from bench.router_spec import (
    MAX_QUOTA_OVERSHOOT,
    NUM_QUOTA_ROUTERS,
    QUOTA_BURST_TOKENS,
    QUOTA_COST,
    QUOTA_FACTOR,
    QUOTA_OUTPUT_TOKENS,
    QUOTA_PROMPT_TOKENS,
    QUOTA_S,
    QUOTA_TOKENS_PER_S,
    SEED,
)
from bench.stub_cluster import StubInstance, stub_cluster
from core.config import RouterConfig
from core.member import Role
from router.client import AsyncClient
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, settings_pb2, settings_pb2_grpc

QUICK_S = 10.0
TIMEOUT_S = 30.0
TENANT = "greedy"


async def measure_quota(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """Two thirds of its requests go to the first router: shares have to follow."""
    duration_s = QUICK_S if quick else QUOTA_S
    instances = [StubInstance(role=role, cost=QUOTA_COST) for role in (Role.PREFILL, Role.DECODE)]
    routers = [RouterConfig(max_running=1024) for _ in range(NUM_QUOTA_ROUTERS)]
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(stub_cluster(instances, routers=routers))
        await _limit(cluster.addresses)
        clients = [await stack.enter_async_context(AsyncClient([a])) for a in cluster.addresses]
        rng = Random(SEED)
        per_request = QUOTA_PROMPT_TOKENS + QUOTA_OUTPUT_TOKENS
        rate_per_s = QUOTA_FACTOR * QUOTA_TOKENS_PER_S / per_request
        times = poisson(rng, rate_per_s, duration_s)
        arrivals = alike(rng, times, QUOTA_PROMPT_TOKENS, QUOTA_OUTPUT_TOKENS, TENANT)
        outcomes = await offer([clients[0]] * 3 + clients, arrivals, timeout_s=TIMEOUT_S)
    return _judged(outcomes, duration_s)


def _judged(outcomes: Sequence[Outcome], duration_s: float) -> tuple[list[Figure], list[Bar]]:
    good = [o for o in outcomes if not o.error and o.moments is not None]
    used = sum(o.num_prompt_tokens + o.max_tokens for o in good)
    allowed = QUOTA_BURST_TOKENS + QUOTA_TOKENS_PER_S * duration_s
    odd = [o for o in outcomes if o.error not in ("", "QUOTA_EXCEEDED", "SATURATED")]
    offered = sum(o.num_prompt_tokens + o.max_tokens for o in outcomes)
    return [
        figure("offered / quota", [offered / allowed], ""),
        figure("served / quota", [used / allowed], ""),
    ], [
        Bar(
            name="quota overshoot with three routers",
            value=max(0.0, used / allowed - 1),
            bound=MAX_QUOTA_OVERSHOOT,
            unit="",
        ),
        Bar(
            name="served / quota, so that it is no starvation",
            value=used / allowed,
            bound=1 - 2 * MAX_QUOTA_OVERSHOOT,
            unit="",
            at_most=False,
        ),
        Bar(name="ended otherwise", value=len(odd), bound=0, unit=""),
    ]


async def _limit(addresses: Sequence[str]) -> None:
    """Put the tenant's quota; return when every router has it."""
    text = (
        f"[tenants.{TENANT}]\ntokens_per_s = {QUOTA_TOKENS_PER_S}\n"
        f"burst_tokens = {QUOTA_BURST_TOKENS}\n"
    )
    async with dial(addresses[0], plane=Plane.CLIENT) as channel:
        request = settings_pb2.ApplyRequest(text=text, author="bench")
        await settings_pb2_grpc.SettingsStub(channel).Apply(request, timeout=TIMEOUT_S)
    for address in addresses:
        async with dial(address, plane=Plane.CLIENT) as channel:
            await _until_in_force(channel)


async def _until_in_force(channel: grpc.aio.Channel) -> None:
    stub, version = cluster_pb2_grpc.ClusterStub(channel), 0
    while not version:
        reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=TIMEOUT_S)
        version = reply.settings_version
