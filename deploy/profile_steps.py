"""Times steps and copies on an engine, with synthetic tokens and no server around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from core.clock import Clock
from core.model_spec import ModelSpec
from core.profile import StepShape
from core.request import SamplingParams, StopParams
from deploy.profile_points import Room
from engine.batch import BatchEntry, SampleSpec
from kv_transfer.stores import KvStore
from worker_host.steps import StepRunner

MAX_REPETITIONS = 3
ENOUGH_S = 0.2
"""Short steps are repeated until they took this long together: the least of a few is free of what
the rest of the machine did in between."""
COPY_REPETITIONS = 3
COPY_TOKENS = (16, 256, 1024)
TOUCH_TOKENS = 1024
"""Tokens written at once by the first touch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An engine to measure, used by one thread."""

    model: ModelSpec
    runner: StepRunner
    store: KvStore
    room: Room
    clock: Clock
    seed: int = 0

    def touch(self) -> None:
        """Write every block once: memory that was never written is not there yet, and the step
        that comes first would pay for it."""
        all_tokens = self.room.num_blocks * self.room.block_size
        for start in range(0, all_tokens, TOUCH_TOKENS):
            tokens = range(start, min(start + TOUCH_TOKENS, all_tokens))
            zeros = memoryview(bytes(len(tokens) * self.model.kv_bytes_per_token))
            self.store.scatter(self._layers, range(self.room.num_blocks), tokens, zeros)

    def step_s(self, shape: StepShape) -> float:
        """One step's time."""
        return self.runner.step(self.entries(shape)).compute_s

    def least_step_s(self, shape: StepShape) -> float:
        """The least of a few."""
        entries = self.entries(shape)
        times_s = [self.runner.step(entries).compute_s]
        while len(times_s) < MAX_REPETITIONS and sum(times_s) < ENOUGH_S:
            times_s.append(self.runner.step(entries).compute_s)
        return min(times_s)

    def entries(self, shape: StepShape) -> list[BatchEntry]:
        """The batch of one shape; the same for the same shape."""
        total = shape.num_cached_tokens + shape.num_tokens
        per_entry = -(-total // self.room.block_size)
        blocks = self._block_ids()
        return [
            BatchEntry(
                key=f"{shape.kind} {i}",
                token_ids=self._token_ids(shape.num_tokens, i),
                start=shape.num_cached_tokens,
                block_ids=blocks[i * per_entry : (i + 1) * per_entry],
                sample=_greedy(),
            )
            for i in range(shape.batch)
        ]

    def copy_s(self, num_tokens: int) -> tuple[float, float]:
        """Gather and scatter of as many tokens' KV: the least of a few, after one that makes the
        buffer's memory be there."""
        num_blocks = -(-num_tokens // self.room.block_size)
        blocks, tokens = self._block_ids()[:num_blocks], range(num_tokens)
        gathers_s, scatters_s = [], []
        for _ in range(1 + COPY_REPETITIONS):
            started_s = self.clock.now_s()
            payload = self.store.gather(self._layers, blocks, tokens)
            gathered_s = self.clock.now_s()
            self.store.scatter(self._layers, blocks, tokens, payload)
            gathers_s.append(gathered_s - started_s)
            scatters_s.append(self.clock.now_s() - gathered_s)
        return min(gathers_s[1:]), min(scatters_s[1:])

    def copy_sizes(self) -> Sequence[int]:
        """Token counts that the cache holds."""
        return [n for n in COPY_TOKENS if n <= self.room.num_blocks * self.room.block_size]

    @property
    def _layers(self) -> range:
        return range(self.model.num_layers)

    def _block_ids(self) -> list[int]:
        # Scattered, as after hours of service: neighbouring blocks would be read without a copy.
        blocks = list(range(self.room.num_blocks))
        Random(self.seed).shuffle(blocks)
        return blocks

    def _token_ids(self, num_tokens: int, entry: int) -> list[int]:
        rng = Random(f"{self.seed} {num_tokens} {entry}")
        return [rng.randrange(self.model.vocab_size) for _ in range(num_tokens)]


def _greedy() -> SampleSpec:
    return SampleSpec(
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_tokens=1),
        child_index=0,
        prompt_token_ids=(),
        output_token_ids=(),
    )
