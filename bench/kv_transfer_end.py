"""Either end of `bench kv_transfer`: paged KV of random content, and what moves it."""

import hashlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from bench.kv_transfer_spec import LAYOUT, NUM_BLOCKS, SEED, SEGMENT_BYTES
from core.blocks import BlockState
from core.capability import Capabilities, Grant, Purpose
from core.clock import MonotonicClock
from core.config import HandoffConfig
from core.ids import Fingerprint, HandoffId
from core.model_spec import ModelSpec
from core.prefix import KEY_BYTES
from core.request import Fence
from core.work import Peer
from engine.block_allocator import BlockAllocator
from engine.kv_cache import KvCache
from kv_transfer.carriers.choose import Carriers
from kv_transfer.carriers.shm import ShmCarrier
from kv_transfer.carriers.torchdist import TorchDistCarrier
from kv_transfer.kv_host import KvHost
from kv_transfer.memory import keep_freed_memory

FINGERPRINT = Fingerprint("bench")
SOURCE_ID, SINK_ID = "source", "sink"
FENCE = Fence(0, 1)
LOOPBACK = "127.0.0.1"
NUM_COPY_THREADS = 2
NUM_PLACES = 4
"""As many times the largest transfer as the paged caches have blocks for."""
TIMEOUT_S = 60.0
TAG = 7
"""Of the Gloo baseline's messages."""
SPEC = ModelSpec(
    name="kv",
    architecture="LlamaForCausalLM",
    num_layers=LAYOUT.num_layers,
    num_query_heads=LAYOUT.num_kv_heads,
    num_kv_heads=LAYOUT.num_kv_heads,
    head_dim=LAYOUT.head_dim,
    hidden_size=LAYOUT.num_kv_heads * LAYOUT.head_dim,
    vocab_size=1,
    max_context_tokens=1 << 20,
    eos_token_ids=(),
    dtype=LAYOUT.dtype,
    weights_digest="",
)
_OWN = Peer(SOURCE_ID, "source:1")
CAPABILITIES = Capabilities.of_nobody(bytes(KEY_BYTES), own=_OWN)


def leave(handoff_id: HandoffId) -> bytes:
    """For the sink to fetch one handoff."""
    grant = Grant(
        purpose=Purpose.HANDOFF,
        handoff_id=handoff_id,
        fence=FENCE,
        source_id=SOURCE_ID,
        source_address=_OWN.address,
        fetcher_id=SINK_ID,
    )
    return CAPABILITIES.sign_for(grant, TIMEOUT_S)


class Plain:
    """Contiguous bytes for the baselines, from another place each time: no cache holds them."""

    def __init__(self, size: int) -> None:
        pool = np.random.default_rng(SEED).integers(0, 256, NUM_PLACES * size, dtype=np.uint8)
        self._places = pool.reshape(NUM_PLACES, size)
        self._turn = 0

    def next(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """The next place's first bytes."""
        self._turn += 1
        return self._places[self._turn % NUM_PLACES, :num_bytes]


class TimedStore:
    """The engine's paged KV; knows when it was first read and last written."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.cache = KvCache(SPEC, num_blocks=NUM_BLOCKS, block_size=LAYOUT.block_size)
        self.first_gather_s: float | None = None
        self.last_scatter_s = 0.0

    def fill(self) -> None:
        """Random bits in every block."""
        flat = self.cache.data.view(torch.int32).reshape(-1).numpy()
        rng = np.random.default_rng(SEED)
        flat[:] = rng.integers(0, 2**30, flat.size, dtype=np.int32)

    def digest(self, block_ids: Sequence[int], num_tokens: int) -> str:
        """Of the KV itself, whichever blocks it is in."""
        kv = self.gather(range(LAYOUT.num_layers), block_ids, range(num_tokens))
        return hashlib.blake2b(kv).hexdigest()

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """See KvStore."""
        return self.cache.gather(layers, block_ids, tokens)

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        """See KvStore."""
        self.first_gather_s = self.first_gather_s or time.monotonic()
        self.cache.gather_into(layers, block_ids, tokens, out)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """See KvStore."""
        self.cache.scatter(layers, block_ids, tokens, payload)
        self.last_scatter_s = time.monotonic()


def shuffled_blocks(seed: int) -> BlockAllocator:
    """All free, and handed out in random order."""
    blocks = BlockAllocator(NUM_BLOCKS, LAYOUT.block_size)
    ids = list(blocks.allocate(NUM_BLOCKS, BlockState.OWNED))
    random.Random(seed).shuffle(ids)
    for block_id in ids:
        blocks.release((block_id,), BlockState.OWNED)
    return blocks


@dataclass(slots=True)
class End:
    """One process's."""

    instance_id: str
    seed: int
    store: TimedStore = field(default_factory=TimedStore)
    copies: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(NUM_COPY_THREADS))
    blocks: BlockAllocator = field(init=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        self.blocks = shuffled_blocks(self.seed)

    def host(self, carrier: str) -> KvHost:
        """That receives by `carrier`; sends by any."""
        config = HandoffConfig(max_segment_bytes=SEGMENT_BYTES, carrier=carrier)
        carriers = (ShmCarrier(), TorchDistCarrier(LOOPBACK, config.progress_timeout_s))
        return KvHost(
            instance_id=self.instance_id,
            fingerprint=FINGERPRINT,
            layout=LAYOUT,
            store=self.store,
            copies=self.copies,
            carriers=Carriers(carriers, carrier),
            clock=MonotonicClock(),
            config=config,
        )
