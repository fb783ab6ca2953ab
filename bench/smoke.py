"""The claims of the main job, each beside its baseline in the same run, on SmolLM2 in float32.

Workload, seeds and bars are fixed here: 30 prompts of 64 tokens for what the router adds, 10 of 512
for the first gap, one of 1,024 for the event loop, 30 s of doing nothing for the idle cluster.
"""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from bench.processes import service
from bench.report import Bar, Figure, Report, figure
from core.clock import MonotonicClock
from core.config import Config
from core.ids import InstanceId, RouterId
from core.member import Role
from deploy.default_model import fetch_default_model
from deploy.instance import InstanceSpec
from registry.embedded import EmbeddedValkey
from router.server import RouterSpec
from rpc.dial import dial
from rpc.kv_wire import fetch_stub
from rpc.pb import (
    cluster_pb2,
    cluster_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    kv_transfer_pb2,
    kv_transfer_pb2_grpc,
    types_pb2,
    workers_pb2,
    workers_pb2_grpc,
)

Progress = Callable[[str], None]

SEED = 20_261
VOCABULARY = range(1000, 40_000)
SHORT_TOKENS, LONG_TOKENS, LAG_TOKENS = 64, 512, 1024
NUM_SHORT, NUM_LONG, NUM_CANCELS = 30, 10, 5
NUM_ANSWER_TOKENS = 12
IDLE_S = 30.0
QUICK = 3
"""--quick divides repetitions and the idle time by this."""
READY_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 60.0
PROBE_S = 0.002
"""Between two looks at an instance's books while a cancel is under way."""

clock = MonotonicClock()


@dataclass(frozen=True, slots=True)
class Bed:
    """Channels to one router, one prefill and one decode instance."""

    router: grpc.aio.Channel
    prefill: grpc.aio.Channel
    decode: grpc.aio.Channel
    fingerprint: str

    async def books(self, channel: grpc.aio.Channel) -> cluster_pb2.InstanceStatus:
        """One instance's own status."""
        stub = cluster_pb2_grpc.ClusterStub(channel)
        reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=CALL_TIMEOUT_S)
        return reply.instances[0]

    async def cpu_s(self) -> float:
        """Processor time used so far by router and instances."""
        total = 0.0
        for channel in (self.prefill, self.decode):
            total += (await self.books(channel)).integrity.cpu_s
        return total


def measure(*, quick: bool, on_progress: Progress) -> Report:
    """Run everything; see the module's text."""
    return asyncio.run(_measure(QUICK if quick else 1, on_progress))
