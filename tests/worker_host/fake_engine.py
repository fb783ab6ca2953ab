"""An engine without a model: its tokens depend on every byte of KV that a request should have."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.ids import Fingerprint
from core.model_spec import ModelSpec
from core.request import TokenLogprobs
from engine.batch import BatchEntry, StepResult

Bytes = npt.NDArray[np.uint8]

FAKE_SPEC = ModelSpec(
    name="fake",
    architecture="FakeForCausalLM",
    num_layers=4,
    num_query_heads=1,
    num_kv_heads=1,
    head_dim=2,
    hidden_size=2,
    vocab_size=200,
    max_context_tokens=512,
    eos_token_ids=(),
    dtype="float32",
    weights_digest="fake",
)
FINGERPRINT = Fingerprint("fake-fingerprint")
WIDTH = 8
"""Bytes of K, and of V, of one token in one layer."""
FIRST_TOKEN_ID = 100
GATE_TIMEOUT_S = 10.0


def expected_tokens(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake model says to a prompt."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        kv = np.stack([kv_of(range(len(tokens)), tokens, layer) for layer in range(4)])
        tokens.append(token_of(kv))
    return tokens[len(prompt) :]


def kv_of(positions: Sequence[int], token_ids: Sequence[int], layer: int) -> Bytes:
    """[k/v, token, byte] of some tokens in one layer."""
    token = np.asarray(token_ids)[None, :, None]
    position = np.asarray(positions)[None, :, None]
    side, byte = np.arange(2)[:, None, None], np.arange(WIDTH)[None, None, :]
    mixed = token * 31 + position * 17 + layer * 13 + side * 7 + byte * 3
    return np.asarray(mixed % 251, dtype=np.uint8)


def token_of(kv: Bytes) -> int:
    """The next token after a context whose KV is [layer, k/v, token, byte]."""
    weights = np.arange(1, kv.shape[2] + 1, dtype=np.int64)[None, None, :, None]
    return FIRST_TOKEN_ID + int((kv * weights).sum()) % (FAKE_SPEC.vocab_size - FIRST_TOKEN_ID)


def expected_logprobs(token_id: int) -> TokenLogprobs:
    """What is told with a token; numbers that the wire leaves as they are."""
    return TokenLogprobs(-token_id / 8, ((token_id, -token_id / 8), (0, -99.0)))


class FakeStore:
    """KV in a numpy array."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        shape = (FAKE_SPEC.num_layers, 2, num_blocks * block_size, WIDTH)
        self.data = np.zeros(shape, np.uint8)

    def slots(self, block_ids: Sequence[int], tokens: range) -> list[int]:
        """Where tokens lie."""
        size = self.block_size
        return [block_ids[t // size] * size + t % size for t in tokens]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Whole blocks (source, target): every source as it was before."""
        blocks = self.data.reshape(FAKE_SPEC.num_layers, 2, -1, self.block_size, WIDTH)
        blocks[:, :, [target for _, target in pairs]] = blocks[
            :, :, [source for source, _ in pairs]
        ]

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """[layer][k/v][token][byte], flat."""
        picked = self.data[layers.start : layers.stop][:, :, self.slots(block_ids, tokens)]
        return memoryview(picked.tobytes())

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        """Into memory of the caller's."""
        out[:] = self.gather(layers, block_ids, tokens)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """The reverse."""
        given = np.frombuffer(payload, np.uint8).reshape(len(layers), 2, len(tokens), WIDTH)
        self.data[layers.start : layers.stop, :, self.slots(block_ids, tokens)] = given


class FakeRunner:
    """Computes at once, unless a test holds its steps."""

    def __init__(self, num_blocks: int = 64, block_size: int = 4) -> None:
        self.store = FakeStore(num_blocks, block_size)
        self.batches: list[list[str]] = []
        """Keys of each step's entries."""
        self.num_tokens: list[int] = []
        """Of each step."""
        self.error: Exception | None = None
        self._gate = threading.Event()
        self._gate.set()
        self._hold_after_layer = -1
        self._loop = asyncio.get_running_loop()
        self._held = asyncio.Event()

    @contextmanager
    def holding(self, after_layer: int = -1) -> Iterator[None]:
        """Steps stop after writing this layer (-1: before the first) until the block ends."""
        self._hold_after_layer = after_layer
        self._held.clear()
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()

    async def held(self) -> None:
        """A step has stopped at the gate."""
        async with asyncio.timeout(GATE_TIMEOUT_S):
            await self._held.wait()

    def step(
        self, entries: Sequence[BatchEntry], on_layer: Callable[[int], None] | None = None
    ) -> StepResult:
        """See engine.runner."""
        self.batches.append([entry.key for entry in entries])
        self.num_tokens.append(sum(len(entry.token_ids) for entry in entries))
        self._pass_gate(-1)
        if self.error is not None:
            raise self.error
        self.store.copy([pair for entry in entries for pair in entry.copies])
        for layer in range(FAKE_SPEC.num_layers):
            for entry in entries:
                self._write(entry, layer)
            if on_layer is not None:
                on_layer(layer)
            self._pass_gate(layer)
        token_ids = [self._sample(entry) for entry in entries]
        return StepResult(
            token_ids=tuple(token_ids),
            logprobs=tuple(map(_logprobs, entries, token_ids)),
            compute_s=0.0,
        )

    def _pass_gate(self, layer: int) -> None:
        if layer == self._hold_after_layer and not self._gate.is_set():
            self._loop.call_soon_threadsafe(self._held.set)
            if not self._gate.wait(GATE_TIMEOUT_S):
                raise TimeoutError("a test held a step and forgot it")

    def _write(self, entry: BatchEntry, layer: int) -> None:
        positions = range(entry.start, entry.stop)
        slots = self.store.slots(entry.block_ids, positions)
        self.store.data[layer][:, slots] = kv_of(positions, entry.token_ids, layer)

    def _sample(self, entry: BatchEntry) -> int | None:
        if entry.sample is None:
            return None
        num_known = len(entry.sample.prompt_token_ids) + len(entry.sample.output_token_ids)
        assert entry.stop == num_known, "the last token's KV and no more"
        slots = self.store.slots(entry.block_ids, range(entry.stop))
        return token_of(self.store.data[:, :, slots])


def _logprobs(entry: BatchEntry, token_id: int | None) -> TokenLogprobs | None:
    asked = entry.sample is not None and entry.sample.sampling.num_logprobs is not None
    return expected_logprobs(token_id) if asked and token_id is not None else None


MODEL_DIR = Path("unused")
