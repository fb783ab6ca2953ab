"""One prefill, one decode, one router as plain processes, and what a benchmark asks of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import grpc.aio
import psutil

from bench.processes import CLUSTER_KEY, running
from core.blocks import IDLE_STATES
from core.capability import Grant, Purpose, sign, subkey
from core.clock import MonotonicClock
from core.config import Config, EngineConfig
from core.ids import Fingerprint, HandoffId, RouterId
from core.kv_layout import STORED
from core.member import Role
from core.request import Fence, SamplingParams, StopParams
from core.work import PROTOCOL_VERSION, WorkRequest
from router.client import AsyncClient
from rpc.convert import work_to_pb
from rpc.kv_wire import FetchFrame, fetch_call
from rpc.pb import (
    cluster_pb2,
    cluster_pb2_grpc,
    kv_transfer_pb2,
    kv_transfer_pb2_grpc,
    types_pb2,
    workers_pb2,
    workers_pb2_grpc,
)

T = TypeVar("T")

CALL_TIMEOUT_S = 60.0
PROBE_S = 0.02
"""Between two looks at an instance's books: what is timed so reads up to this much too long.
Looking every 2 ms made decode steps of 51 ms last 88 ms, every 20 ms 59 ms."""
FETCH_BYTES = 2 * 1024 * 1024
"""As HandoffConfig.max_segment_bytes."""
NEVER_S = 2.0**40
"""When leave to fetch ends; seconds of any clock."""

clock = MonotonicClock()
IDLE_STATE_NAMES = frozenset(str(state) for state in IDLE_STATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Running processes, and connections to them."""

    client: AsyncClient
    prefill: grpc.aio.Channel
    decode: grpc.aio.Channel
    fingerprint: str
    pids: Sequence[int]

    async def books(self, channel: grpc.aio.Channel) -> cluster_pb2.InstanceStatus:
        """One instance's own status."""
        stub = cluster_pb2_grpc.ClusterStub(channel)
        reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=CALL_TIMEOUT_S)
        return reply.instances[0]

    async def until_freed(self, channel: grpc.aio.Channel) -> float:
        """Seconds until an instance holds no block."""
        started_s = clock.now_s()
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while _num_held(await self.books(channel)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(PROBE_S)
        return clock.now_s() - started_s

    async def until_busy(self, channel: grpc.aio.Channel) -> None:
        """Return once an instance holds blocks."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while not _num_held(await self.books(channel)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(PROBE_S)

    async def while_probed(self, channel: grpc.aio.Channel, work: Awaitable[T]) -> T:
        """Await `work` while an instance is asked as often as `until_freed` asks it.

        The questions slow a step: a baseline must pay for them too.
        """
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe(channel))
            result = await work
            probing.cancel()
        return result

    async def _probe(self, channel: grpc.aio.Channel) -> None:
        while True:
            await self.books(channel)
            await asyncio.sleep(PROBE_S)

    async def direct_ttft_s(self, prompt: Sequence[int], name: str) -> float:
        """TTFT of calling prefill without a router: the baseline."""
        started_s = clock.now_s()
        call = self._prefill_call(prompt, name, only_first_token=True)
        async for event in call:
            if event.WhichOneof("event") == "token":
                ttft_s = clock.now_s() - started_s
        return ttft_s

    async def transfer_floor_s(self, prompt: Sequence[int], name: str) -> float:
        """Seconds to fetch a computed prompt's KV with full credit, doing nothing with it."""
        call = self._prefill_call(prompt, name, only_first_token=False)
        async for event in call:
            if event.WhichOneof("event") == "token":
                break
        leave = await self._leave(HandoffId(name))
        started_s = clock.now_s()
        await self._fetch_all(name, leave, len(prompt))
        floor_s = clock.now_s() - started_s
        stub = kv_transfer_pb2_grpc.KvTransferStub(self.prefill)
        await stub.Release(
            kv_transfer_pb2.ReleaseRequest(
                handoff_id=name, fence=types_pb2.Fence(attempt=1), committed=True, leave=leave
            ),
            timeout=CALL_TIMEOUT_S,
        )
        call.cancel()
        return floor_s

    async def _fetch_all(self, name: str, leave: kv_transfer_pb2.Leave, num_tokens: int) -> None:
        fetch = fetch_call(self.prefill)
        await fetch.write(
            kv_transfer_pb2.FetchRequest(
                open=kv_transfer_pb2.FetchOpen(
                    handoff_id=name,
                    fence=types_pb2.Fence(attempt=1),
                    fingerprint=self.fingerprint,
                    protocol_version=PROTOCOL_VERSION,
                    max_segment_bytes=FETCH_BYTES,
                    wire_format=STORED,
                    fetcher_id=leave.fetcher_id,
                    capability=leave.capability,
                )
            )
        )
        credit = kv_transfer_pb2.Credit(num_tokens=num_tokens)
        await fetch.write(kv_transfer_pb2.FetchRequest(credit=credit))
        async for frame in fetch:
            assert isinstance(frame, FetchFrame)
            if frame.message.WhichOneof("message") == "end":
                fetch.cancel()
                return

    async def _leave(self, handoff_id: HandoffId) -> kv_transfer_pb2.Leave:
        """As a router signs it for a decode instance."""
        source = await self.books(self.prefill)
        grant = Grant(
            purpose=Purpose.HANDOFF,
            handoff_id=handoff_id,
            fence=Fence(0, 1),
            source_id=source.instance_id,
            source_address=source.addresses[0],
            fetcher_id="bench",
        )
        token = sign(subkey(CLUSTER_KEY), grant, NEVER_S)
        return kv_transfer_pb2.Leave(fetcher_id=grant.fetcher_id, capability=token)

    def _prefill_call(
        self, prompt: Sequence[int], name: str, *, only_first_token: bool
    ) -> "grpc.aio.UnaryStreamCall[workers_pb2.PrefillRequest, workers_pb2.PrefillEvent]":
        work = WorkRequest(
            handoff_id=HandoffId(name),
            fence=Fence(0, 1),
            router_id=RouterId("bench"),
            prompt_token_ids=tuple(prompt),
            output_token_ids=(),
            sampling=SamplingParams(temperature=0.0),
            stop=StopParams(max_tokens=1 if only_first_token else 8),
            child_index=0,
            timeout_s=CALL_TIMEOUT_S,
            fingerprint=Fingerprint(self.fingerprint),
        )
        stub = workers_pb2_grpc.PrefillWorkerStub(self.prefill)
        request = workers_pb2.PrefillRequest(
            work=work_to_pb(work), only_first_token=only_first_token
        )
        return stub.Prefill(request, timeout=CALL_TIMEOUT_S)

    def cpu_s(self) -> float:
        """Processor time of router and instances since their start."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids]
        return sum(t.user + t.system for t in times)


def _num_held(status: cluster_pb2.InstanceStatus) -> int:
    blocks = status.integrity.blocks
    return sum(n for state, n in blocks.items() if state not in IDLE_STATE_NAMES)


@asynccontextmanager
async def running_pair(model_dir: Path) -> AsyncIterator[Pair]:
    """Start everything; stop it when the block ends."""
    # Baselines and what is compared with them ask the same prompts.
    config = Config(engine=EngineConfig(prefix_cache=False))
    async with running(model_dir, (Role.PREFILL, Role.DECODE), config) as cluster:
        prefill, decode = cluster.channels
        pair = Pair(
            client=cluster.client, prefill=prefill, decode=decode, fingerprint="", pids=cluster.pids
        )
        fingerprint = (await pair.books(prefill)).fingerprint
        yield replace(pair, fingerprint=fingerprint)
