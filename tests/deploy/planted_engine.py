"""An engine whose steps take what a planted model says, on a clock that only they move."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from core.clock import ManualClock
from core.model_spec import ModelSpec
from core.profile import Machine, Subject
from deploy.profile_points import Room
from deploy.profile_steps import Bench
from engine.batch import BatchEntry, StepResult

BASE_S, PER_TOKEN_S, PER_PAIR_S = 0.04, 0.0025, 1e-6
PER_ANSWER_S, PER_CONTEXT_TOKEN_S = 0.003, 1e-5
COPY_BYTES_PER_S = 1e10
LOADED_SLOWDOWN = 2.0

SPEC = ModelSpec(
    name="planted",
    architecture="PlantedForCausalLM",
    num_layers=2,
    num_query_heads=1,
    num_kv_heads=1,
    head_dim=2,
    hidden_size=2,
    vocab_size=100,
    max_context_tokens=4096,
    eos_token_ids=(),
    dtype="float32",
    weights_digest="planted",
)


class StepFailed(Exception):
    """What a test lets happen in the middle."""


class PlantedEngine:
    """Runner, KV store and neighbours in one."""

    def __init__(self, noise: float = 0.0, seed: int = 0, speed: float = 1.0) -> None:
        self.clock = ManualClock()
        self.num_steps = 0
        self.fails_at_step = -1
        self.num_neighbours = 0
        self.touched: set[int] = set()
        self._noise = noise
        self._rng = Random(seed)
        self._speed = speed

    def bench(self, num_blocks: int = 1024) -> Bench:
        """What is profiled."""
        room = Room(max_context_tokens=4096, num_blocks=num_blocks, block_size=16)
        return Bench(model=SPEC, runner=self, store=self, room=room, clock=self.clock)

    def step(
        self, entries: Sequence[BatchEntry], on_layer: Callable[[int], None] | None = None
    ) -> StepResult:
        """Takes the planted time."""
        self.num_steps += 1
        if self.num_steps == self.fails_at_step:
            raise StepFailed
        used = [block for entry in entries for block in entry.block_ids]
        assert len(set(used)) == len(used), "two entries share a block"
        time_s = self._time_s(entries)
        self.clock.advance(time_s)
        return StepResult(
            token_ids=(0,) * len(entries), logprobs=(None,) * len(entries), compute_s=time_s
        )

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """At the planted rate."""
        num_bytes = len(tokens) * SPEC.kv_bytes_per_token
        self.clock.advance(num_bytes / COPY_BYTES_PER_S)
        return memoryview(bytes(num_bytes))

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        """At the same rate."""
        out[:] = self.gather(layers, block_ids, tokens)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """At half the planted rate."""
        assert len(payload) == len(tokens) * SPEC.kv_bytes_per_token
        self.touched.update(block_ids[token // 16] for token in tokens)
        self.clock.advance(2 * len(payload) / COPY_BYTES_PER_S)

    @contextmanager
    def neighbours(self) -> Iterator[None]:
        """While they are there, everything is slower."""
        self.num_neighbours += 1
        try:
            yield
        finally:
            self.num_neighbours -= 1

    def _time_s(self, entries: Sequence[BatchEntry]) -> float:
        tokens = [len(entry.token_ids) for entry in entries]
        pairs = sum(n * e.start + n * (n + 1) / 2 for n, e in zip(tokens, entries, strict=True))
        if max(tokens) == 1:
            time_s = BASE_S + PER_ANSWER_S * len(entries) + PER_CONTEXT_TOKEN_S * pairs
        else:
            time_s = BASE_S + PER_TOKEN_S * sum(tokens) + PER_PAIR_S * pairs
        slowdown = LOADED_SLOWDOWN if self.num_neighbours else 1.0
        return time_s * slowdown * (1 + self._noise * self._rng.random()) / self._speed


SUBJECT = Subject(
    model="planted",
    weights_digest="planted",
    dtype="float32",
    device="cpu",
    machine=Machine(cpu="planted", num_cores=2, num_threads=1),
    block_size=16,
    kv_bytes_per_token=SPEC.kv_bytes_per_token,
)
