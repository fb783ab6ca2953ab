"""Instances in one process, over real gRPC on loopback: a numpy store instead of an engine."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
import pytest

from core.blocks import BlockState, leak_report
from core.capability import Capabilities, Grant, Purpose
from core.clock import Clock, MonotonicClock
from core.config import HandoffConfig
from core.failpoints import Failpoints
from core.ids import Fingerprint, HandoffId
from core.kv_layout import KvLayout, layer_groups
from core.model_spec import DTYPE_BYTES
from core.prefix import KEY_BYTES
from core.request import Fence
from core.work import KvLostReason, Peer
from engine.block_allocator import BlockAllocator
from kv_transfer import digest, wire_format
from kv_transfer.book import SourceBook
from kv_transfer.carriers.choose import Carriers
from kv_transfer.carriers.contract import Carrier
from kv_transfer.errors import KvLost
from kv_transfer.fetch import Fetcher, FetchResult
from kv_transfer.kv_host import KvHost
from kv_transfer.service import Context, KvTransferService, Requests
from kv_transfer.shelf import Shelf
from kv_transfer.sink import Sink
from kv_transfer.source import FirstToken, Source
from rpc.dial import ChannelPool
from rpc.options import Plane
from rpc.serve import bind, build
from worker_host.blocks import InstanceBlocks

NUM_BLOCKS = 64
NUM_TOKENS = 100
"""Of the pair's one prompt."""
ID = HandoffId("r/0")
FIRST = Fence(0, 1)
FINGERPRINT = Fingerprint("f")
INSTANCE_ID = "instance"
"""Of all of them: they are told apart by their addresses."""
CAPABILITIES = Capabilities.of_nobody(bytes(KEY_BYTES), own=Peer(INSTANCE_ID, "here:1"))


def leave(
    handoff_id: HandoffId = ID, fence: Fence = FIRST, purpose: Purpose = Purpose.HANDOFF
) -> bytes:
    """Signed leave for an instance to fetch from an instance."""
    grant = Grant(
        purpose=purpose,
        handoff_id=handoff_id,
        fence=fence,
        source_id=INSTANCE_ID,
        source_address="here:1",
        fetcher_id=INSTANCE_ID,
    )
    return CAPABILITIES.sign_for(grant, 60.0)


SMALL = KvLayout(num_layers=4, num_kv_heads=2, head_dim=8, dtype="float32", block_size=16)
QUICK = HandoffConfig(max_segment_bytes=8192)
"""Many small segments."""

Tamper = Callable[[bytes], bytes | tuple[bytes, ...] | None]
"""What becomes of a frame on its way: another one, several, none."""


class NumpyStore:
    """KV as bytes [layer][K, V][slot][head][element]."""

    def __init__(self, layout: KvLayout, num_blocks: int = NUM_BLOCKS) -> None:
        self.layout = layout
        row = layout.num_kv_heads * layout.head_dim * DTYPE_BYTES[layout.dtype]
        shape = (layout.num_layers, 2, num_blocks * layout.block_size, row)
        self.data = np.zeros(shape, dtype=np.uint8)
        self.gate = threading.Event()
        """Copies wait for it."""
        self.gate.set()
        self.copying = threading.Event()
        """A copy has begun."""

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        self._enter()
        slots = self._slots(block_ids, tokens)
        picked = self.data[layers.start : layers.stop][:, :, slots]
        return np.ascontiguousarray(picked).reshape(-1).data

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        out[:] = self.gather(layers, block_ids, tokens)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        self._enter()
        slots = self._slots(block_ids, tokens)
        shape = (len(layers), 2, len(tokens), self.data.shape[-1])
        given = np.frombuffer(payload, dtype=np.uint8).reshape(shape)
        self.data[layers.start : layers.stop, :, slots] = given

    def _enter(self) -> None:
        self.copying.set()
        assert self.gate.wait(10), "the test never opened the gate"

    def _slots(self, block_ids: Sequence[int], tokens: range) -> np.ndarray[Any, Any]:
        size = self.layout.block_size
        at = np.arange(tokens.start, tokens.stop)
        return np.asarray(block_ids)[at // size] * size + at % size


class _TamperingContext:
    """A context whose frames pass through `tamper` on their way out."""

    def __init__(self, context: Context, tamper: Tamper) -> None:
        self._context = context
        self._tamper = tamper

    async def write(self, frame: bytes) -> None:
        changed = self._tamper(frame)
        for each in (changed,) if isinstance(changed, bytes) else changed or ():
            await self._context.write(each)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a context has
        return getattr(self._context, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperingService(KvTransferService):
    """A peer whose frames are changed, dropped (None) or looked at."""

    tamper: Tamper = field(repr=False)

    async def fetch(self, requests: Requests, context: Context) -> None:
        tampering: Any = _TamperingContext(context, self.tamper)
        await KvTransferService.fetch(self, requests, tampering)


@dataclass(kw_only=True)
class Instance:
    """Both ends of handoffs over one store."""

    layout: KvLayout
    store: NumpyStore
    blocks: BlockAllocator
    book: SourceBook
    fetcher: Fetcher
    server: grpc.aio.Server
    address: str
    clock: Clock
    ended: list[Source] = field(default_factory=list)

    def peer(self, sink: Sink) -> Peer:
        return Peer(INSTANCE_ID, self.address, leave(sink.handoff_id, sink.fence))

    def accept(self, fence: Fence = FIRST, handoff_id: HandoffId = ID) -> Source:
        return self.book.accept(handoff_id, fence, on_ended=self.ended.append)

    def start(self, source: Source, num_tokens: int) -> None:
        """To leave layer by layer: as many segments as can be."""
        needed = self.layout.num_blocks(num_tokens)
        ids = self.blocks.allocate(needed, BlockState.OWNED)
        groups = layer_groups(self.layout.num_layers, self.layout.num_layers)
        assert self.book.started(source, ids, num_tokens, groups)

    def fill(self, source: Source, seed: int = 0) -> bytes:
        """Write random KV of the whole prompt; progress is the caller's to tell."""
        kv = self.random_kv(source.num_tokens, seed)
        layers, tokens = range(self.layout.num_layers), range(source.num_tokens)
        self.store.scatter(layers, source.block_ids, tokens, memoryview(kv))
        return kv

    def random_kv(self, num_tokens: int, seed: int = 0) -> bytes:
        return np.random.default_rng(seed).bytes(num_tokens * self.layout.bytes_per_token)

    def finish(self, source: Source) -> bool:
        # By the clock that the instance goes by: how long ago that was is told to the other side.
        token = FirstToken(
            token_id=7, position=0, finish_reason=None, sampled_at_s=self.clock.now_s()
        )
        return self.book.finished(source, token)

    def prefill(self, num_tokens: int, fence: Fence = FIRST, handoff_id: HandoffId = ID) -> bytes:
        """A whole prefill at once."""
        source = self.accept(fence, handoff_id)
        self.start(source, num_tokens)
        kv = self.fill(source, seed=hash(handoff_id) & 0xFFFF)
        assert self.finish(source)
        return kv

    def sink(self, fence: Fence = FIRST, handoff_id: HandoffId = ID) -> Sink:
        return Sink(handoff_id=handoff_id, layout=self.layout, blocks=self.blocks, fence=fence)

    async def reserve(self, sink: Sink) -> None:
        """All the room that is missing."""
        sink.reserve(self.blocks.allocate(sink.num_missing_blocks, BlockState.INCOMING))

    def take(self, sink: Sink) -> bytes:
        """The bytes of a committed sink, whose blocks are given back."""
        ids = sink.hand_over()
        layers, tokens = range(self.layout.num_layers), range(sink.num_tokens)
        kv = bytes(self.store.gather(layers, ids, tokens))
        self.blocks.release(ids, BlockState.OWNED)
        return kv

    def assert_no_leak(self) -> None:
        self.blocks.check()
        assert leak_report(self.blocks.counts(), NUM_BLOCKS) is None
        assert self.book.num_sources == self.book.num_fetches == self.fetcher.num_fetches == 0


@asynccontextmanager
async def instance(
    layout: KvLayout = SMALL,
    *,
    config: HandoffConfig = QUICK,
    clock: Clock | None = None,
    tamper: Tamper | None = None,
    carriers: Sequence[Carrier] = (),
) -> AsyncIterator[Instance]:
    """A running instance; at the end nothing may be left of it but its carriers, the caller's."""
    # As at an instance's start: or else the first handoff waits for a compiler, and may stall.
    digest.warm_up()
    wire_format.warm_up()
    clock = clock or MonotonicClock()
    store, blocks = NumpyStore(layout), BlockAllocator(NUM_BLOCKS, layout.block_size)
    book = SourceBook(layout=layout, blocks=blocks, clock=clock, config=config)
    copies = ThreadPoolExecutor(2)
    host = KvHost(
        instance_id=INSTANCE_ID,
        fingerprint=FINGERPRINT,
        layout=layout,
        store=store,
        copies=copies,
        carriers=Carriers(carriers, config.carrier),
        clock=clock,
        config=config,
        failpoints=Failpoints.parse(config.failpoints),
    )
    service = TamperingService(
        book=book,
        shelf=Shelf(book, InstanceBlocks(blocks), clock),
        host=host,
        capabilities=CAPABILITIES,
        tamper=tamper or (lambda frame: frame),
    )
    server = await build(Plane.WORKER, ())
    service.add_to(server.grpc)
    port = bind(server, "127.0.0.1:0")
    await server.grpc.start()
    pool = ChannelPool()
    fetcher = Fetcher(host, pool.get)
    loops = [asyncio.ensure_future(loop()) for loop in (book.reap, fetcher.run_releases)]
    try:
        yield Instance(
            layout=layout,
            store=store,
            blocks=blocks,
            book=book,
            fetcher=fetcher,
            server=server.grpc,
            clock=clock,
            address=f"127.0.0.1:{port}",
        )
    finally:
        store.gate.set()
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
        await pool.close()
        await server.grpc.stop(grace=None)
        copies.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of other people's making
            await asyncio.sleep(0.001)


async def fetched(
    decode: Instance,
    prefill: Instance,
    sink: Sink,
    num_tokens: int,
    reserve: Callable[[Sink], Awaitable[None]] | None = None,
) -> FetchResult:
    """One run of decode's fetcher, bounded."""
    async with asyncio.timeout(20):
        return await decode.fetcher.run(
            sink, prefill.peer(sink), num_tokens=num_tokens, reserve=reserve or decode.reserve
        )


async def lost(
    decode: Instance,
    prefill: Instance,
    sink: Sink,
    num_tokens: int,
    reserve: Callable[[Sink], Awaitable[None]] | None = None,
) -> KvLostReason:
    """Why a run that must fail did."""
    with pytest.raises(KvLost) as caught:
        await fetched(decode, prefill, sink, num_tokens, reserve)
    return caught.value.why


@asynccontextmanager
async def pair(tamper: Tamper | None = None) -> AsyncIterator[tuple[Instance, Instance, bytes]]:
    """A finished prefill and an idle decode; no leak on either side afterwards."""
    async with instance(tamper=tamper) as prefill, instance() as decode:
        kv = prefill.prefill(NUM_TOKENS)
        yield prefill, decode, kv
        prefill.book.release(ID, Fence(9, 9), committed=False)
        await until(lambda: not prefill.book.num_fetches)
        prefill.assert_no_leak()
        decode.assert_no_leak()
