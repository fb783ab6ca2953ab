"""What the router adds to the time of the first token: through it, and straight to the instance."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from random import Random

import grpc.aio

from bench.load.offer import Arrival, Ask, LoadGenerator
from bench.load.outcome import Event, Tokens
from bench.load.times import poisson
from bench.raw_stream import ask_raw
from bench.report import Bar, Figure, figure
from bench.router_load import alike
from bench.router_spec import (
    LATENCY_COST,
    LATENCY_OUTPUT_TOKENS,
    LATENCY_PROMPT_TOKENS,
    LATENCY_RATE_PER_S,
    LATENCY_ROUND_S,
    LATENCY_ROUNDS,
    MAX_ADDED_P50_S,
    MAX_ADDED_P99_S,
    SEED,
)
from bench.stub_cluster import StubInstance, stub_cluster
from core.ids import Fingerprint, HandoffId, RouterId
from core.member import Role
from core.request import Fence, SamplingParams, StopParams
from core.slo import ttft_s
from core.work import WorkRequest
from rpc.convert import work_to_pb
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import generation_pb2, workers_pb2, workers_pb2_grpc

QUICK_ROUND_S = 8.0
TIMEOUT_S = 30.0


async def measure_latency(*, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """Rounds in turn; each way's quantiles are over all of its rounds."""
    through, direct = list[float](), list[float]()
    pools = [StubInstance(role=role, cost=LATENCY_COST) for role in (Role.PREFILL, Role.DECODE)]
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(stub_cluster(pools))
        front = await stack.enter_async_context(dial(cluster.addresses[0], plane=Plane.CLIENT))
        back = await stack.enter_async_context(dial(cluster.instances[0].address))
        through_router, straight = _Way(partial(_through, front)), _Way(partial(_directly, back))
        await _offer(through_router, _arrivals(0, 2.0))
        for number in range(1, 2 if quick else 1 + LATENCY_ROUNDS):
            arrivals = _arrivals(number, QUICK_ROUND_S if quick else LATENCY_ROUND_S)
            through += await _offer(through_router, arrivals)
            direct += await _offer(straight, arrivals)
    num_failed = sum(not isfinite(ttft) for ttft in (*through, *direct))
    figures = [
        figure("ttft through the router", through, "s"),
        figure("ttft straight to the prefill instance", direct, "s"),
    ]
    routed, bare = figures
    p50 = routed.median - bare.median
    p99 = routed.quantile(0.99) - bare.quantile(0.99)
    return figures, [
        Bar(name="router adds, p50", value=p50, bound=MAX_ADDED_P50_S, unit="s"),
        Bar(name="router adds, p99", value=p99, bound=MAX_ADDED_P99_S, unit="s"),
        Bar(name="failed requests", value=num_failed, bound=0, unit=""),
    ]


def _arrivals(number: int, duration_s: float) -> list[Arrival]:
    rng = Random(SEED + number)
    times = list(poisson(rng, LATENCY_RATE_PER_S, duration_s))
    return alike(rng, times, LATENCY_PROMPT_TOKENS, LATENCY_OUTPUT_TOKENS)


async def _offer(way: "_Way", arrivals: Sequence[Arrival]) -> list[float]:
    """Each when it is due; the times of the first tokens since then, infinite for failures."""
    outcomes = await LoadGenerator(way, timeout_s=TIMEOUT_S).offer(arrivals)
    return [inf if (moments := o.answered) is None else ttft_s(moments) for o in outcomes]


@dataclass(frozen=True, slots=True)
class _Way:
    """Implements Target; gives of each answer its first token alone."""

    ask: Callable[[Arrival], AsyncGenerator[Event, None]]

    def prepare(self, arrival: Arrival) -> Ask:
        """Nothing can be done before."""
        return partial(self.ask, arrival)


async def _through(channel: grpc.aio.Channel, arrival: Arrival) -> AsyncGenerator[Event, None]:
    """The whole answer is read, and understood up to its first token: the reader's own work on
    all others would be measured as the router's."""
    is_first = True
    async for message in ask_raw(channel, arrival.token_ids, arrival.max_tokens):
        if is_first and generation_pb2.GenerateResponse.FromString(message).delta.token_ids:
            is_first = False
            yield Tokens(1)


async def _directly(channel: grpc.aio.Channel, arrival: Arrival) -> AsyncGenerator[Event, None]:
    """The first token alone, and nothing after it: less work than the router has done for it, so
    what the router is said to add is rather too much."""
    work = WorkRequest(
        handoff_id=HandoffId(f"{secrets.token_hex(8)}/0"),
        fence=Fence(0, 1),
        router_id=RouterId("bench"),
        prompt_token_ids=tuple(arrival.token_ids),
        output_token_ids=(),
        sampling=SamplingParams(),
        stop=StopParams(max_tokens=arrival.max_tokens),
        child_index=0,
        timeout_s=TIMEOUT_S,
        fingerprint=Fingerprint("stub"),
        tenant="",
        priority=0,
    )
    request = workers_pb2.PrefillRequest(work=work_to_pb(work), only_first_token=True)
    call = workers_pb2_grpc.PrefillWorkerStub(channel).Prefill(request, timeout=TIMEOUT_S)
    async for event in call:
        if event.WhichOneof("event") == "token":
            yield Tokens(1)
            return
