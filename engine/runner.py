"""Computes steps: a forward pass, then one token for each entry that asks for one."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from core.clock import Clock, MonotonicClock
from core.request import SamplingParams, StopParams, TokenLogprobs
from engine.batch import BatchEntry, SampleSpec, StepResult
from engine.cuda.graphs import Recorder
from engine.forward import MAX_GRAPH_ROWS, Forward, ModelForward, WarmsUp
from engine.grammars import GrammarStates
from engine.kv_cache import KvCache, KvMemory
from engine.model import LoadedModel
from engine.sampler import sample

WARM_UP_TOKENS = 8

T = TypeVar("T")
M_co = TypeVar("M_co", bound=KvMemory, covariant=True)


class Runner(Generic[M_co]):
    """Runs one step at a time, in whatever thread calls it."""

    def __init__(
        self,
        forward: Forward[M_co],
        *,
        num_threads: int,
        clock: Clock | None = None,
        grammars: GrammarStates | None = None,
    ) -> None:
        """Without `grammars` a request that has one is its caller's mistake."""
        self._forward = forward
        self._num_threads = num_threads
        self._clock = clock or MonotonicClock()
        self._grammars = grammars

    @property
    def kv_cache(self) -> M_co:
        """Where the KV of all steps is."""
        return self._forward.kv_cache

    def step(
        self, entries: Sequence[BatchEntry], on_layer: Callable[[int], None] | None = None
    ) -> StepResult:
        """Compute one batch and sample; blocks its thread.

        `on_layer(i)` is called in this thread as soon as K and V of the whole batch are in layer
        i's cache; on CUDA one layer late, so that the GPU always has work queued.
        """
        started_at_s = self._clock.now_s()
        # Of the calling thread: OpenMP keeps its own number per thread.
        if torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)
        with torch.inference_mode():
            self._check_windows(entries)
            logits = self._forward.run(entries, on_layer)
            sampled = [entries[i] for i in logits.entries]
            token_ids, logprobs = self._sample(logits.rows, sampled)
            if logits.rows.is_cuda:
                # Not the whole device: copies of other requests' KV run on streams of their own.
                torch.cuda.current_stream(logits.rows.device).synchronize()
        return StepResult(
            token_ids=_spread(logits.entries, token_ids, len(entries)),
            logprobs=_spread(logits.entries, logprobs, len(entries)),
            compute_s=self._clock.now_s() - started_at_s,
        )

    def warm_up(self) -> None:
        """One prefill and one decode step on scratch blocks: kernels chosen, memory touched.

        Then whatever else the forward pass has to do before the first request.
        """
        prompt = (0,) * WARM_UP_TOKENS
        spec = SampleSpec(
            sampling=SamplingParams(top_p=0.9),
            stop=StopParams(max_tokens=2),
            child_index=0,
            prompt_token_ids=prompt,
            output_token_ids=(),
        )
        for start, token_ids in ((0, prompt), (WARM_UP_TOKENS, (0,))):
            entry = BatchEntry(
                key="warm-up",
                token_ids=token_ids,
                start=start,
                block_ids=self._forward.scratch_blocks,
                sample=spec,
            )
            self.step([entry])
        if isinstance(self._forward, WarmsUp):
            self._forward.warm_up()

    def _check_windows(self, entries: Sequence[BatchEntry]) -> None:
        """KV that some layer still looks at must not be gone."""
        window_tokens = self._forward.spec.window_tokens
        for entry in entries:
            num_seen = entry.start if window_tokens is None else window_tokens - 1
            if entry.kv_start > max(entry.start - num_seen, 0):
                raise ValueError(
                    f"entry {entry.key}: tokens before {entry.kv_start} are gone, but token "
                    f"{entry.start} sees the {num_seen} before it"
                )

    def _sample(
        self, logits: torch.Tensor, entries: Sequence[BatchEntry]
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """One token for each of these entries."""
        specs = [entry.sample for entry in entries if entry.sample is not None]
        if not specs:
            return [], []
        if not any(spec.sampling.grammar for spec in specs):
            return sample(logits, specs)
        assert self._grammars is not None, "the door refuses grammars when there is no compiler"
        keys = [entry.key for entry in entries]
        masks = [self._grammars.mask(key, spec) for key, spec in zip(keys, specs, strict=True)]
        return sample(logits, specs, masks)


LocalRunner = Runner[KvCache]
"""With all KV in one cache of this process."""


def one_rank(
    model: LoadedModel,
    *,
    num_blocks: int,
    block_size: int,
    num_threads: int,
    clock: Clock | None = None,
    grammars: GrammarStates | None = None,
) -> LocalRunner:
    """A runner over a whole model on one device."""
    forward = model_forward(model, num_blocks=num_blocks, block_size=block_size)
    return Runner(forward, num_threads=num_threads, clock=clock, grammars=grammars)


def model_forward(
    model: LoadedModel,
    *,
    num_blocks: int,
    block_size: int,
    max_graph_rows: int = MAX_GRAPH_ROWS,
    recorder: Recorder | None = None,
) -> ModelForward:
    """Over a whole model on one device, with blocks to warm up on; see `ModelForward`."""
    return ModelForward(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        num_scratch_blocks=num_scratch_blocks(block_size),
        max_graph_rows=max_graph_rows,
        recorder=recorder,
    )


def num_scratch_blocks(block_size: int) -> int:
    """Blocks that `warm_up` writes to."""
    return -(-(WARM_UP_TOKENS + 1) // block_size)


def _spread(rows: Sequence[int], values: Sequence[T], num_rows: int) -> tuple[T | None, ...]:
    spread: list[T | None] = [None] * num_rows
    for row, value in zip(rows, values, strict=True):
        spread[row] = value
    return tuple(spread)
