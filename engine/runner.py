"""Computes steps: the one object that holds a rank's model and KV cache."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from core.clock import Clock, MonotonicClock
from core.request import SamplingParams, StopParams, TokenLogprobs
from engine.attention import GatherBuffers, StepAttention
from engine.batch import BatchEntry, SampleSpec, StepResult
from engine.grammars import GrammarStates
from engine.kv_cache import KvCache
from engine.model import LoadedModel
from engine.sampler import sample
from engine.step_plan import StepPlan, plan_step

WARM_UP_TOKENS = 8

T = TypeVar("T")


class Runner:
    """Runs one step at a time, in whatever thread calls it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        num_blocks: int,
        block_size: int,
        num_threads: int,
        clock: Clock | None = None,
        grammars: GrammarStates | None = None,
    ) -> None:
        """Without `grammars` a request that has one is its caller's mistake."""
        self._device = model.device
        self._module = model.module.to(self._device)
        self._num_threads = num_threads
        self._window_tokens = model.spec.window_tokens
        self._clock = clock or MonotonicClock()
        self._grammars = grammars
        self._scratch_blocks = tuple(
            range(num_blocks, num_blocks + -(-(WARM_UP_TOKENS + 1) // block_size))
        )
        # The scratch blocks lie behind those that the allocator knows of.
        self._buffers = GatherBuffers()
        self.kv_cache = KvCache(
            model.spec,
            num_blocks=num_blocks + len(self._scratch_blocks),
            block_size=block_size,
            device=self._device,
        )

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
            plan = plan_step(entries, self.kv_cache.block_size, self._device)
            if copies := [pair for entry in entries for pair in entry.copies]:
                self.kv_cache.copy_blocks(copies)
            logits = self._forward(plan, on_layer)
            token_ids, logprobs = self._sample(logits, [entries[i] for i in plan.sampled])
            self._synchronize()
        return StepResult(
            token_ids=_spread(plan.sampled, token_ids, len(entries)),
            logprobs=_spread(plan.sampled, logprobs, len(entries)),
            compute_s=self._clock.now_s() - started_at_s,
        )

    def warm_up(self) -> None:
        """One prefill and one decode step on scratch blocks: kernels chosen, memory touched."""
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
                block_ids=self._scratch_blocks,
                sample=spec,
            )
            self.step([entry])

    def _forward(self, plan: StepPlan, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        """Logits [sampled row, vocabulary]."""
        written = _written_callback(on_layer, torch.device(self._device))
        logits = self._module(
            input_ids=plan.input_ids,
            position_ids=plan.position_ids,
            use_cache=False,
            logits_to_keep=plan.sampled_rows,
            baton_step=StepAttention(self.kv_cache, plan, self._buffers, written),
        ).logits[0]
        if isinstance(written, EventNotifier):
            written.finish()
        assert isinstance(logits, torch.Tensor)
        return logits

    def _check_windows(self, entries: Sequence[BatchEntry]) -> None:
        """KV that some layer still looks at must not be gone."""
        for entry in entries:
            num_seen = entry.start if self._window_tokens is None else self._window_tokens - 1
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

    def _synchronize(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)


class EventNotifier:
    """Calls `on_layer(i)` once the GPU has passed layer i's writes: when layer i + 1 is queued."""

    def __init__(self, on_layer: Callable[[int], None]) -> None:
        self._on_layer = on_layer
        self._pending: tuple[int, torch.cuda.Event] | None = None

    def __call__(self, layer: int) -> None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self.finish()
        self._pending = layer, event

    def finish(self) -> None:
        """Report the layer still pending."""
        if self._pending is not None:
            layer, event = self._pending
            event.synchronize()
            self._pending = None
            self._on_layer(layer)


def _written_callback(
    on_layer: Callable[[int], None] | None, device: torch.device
) -> Callable[[int], None]:
    if on_layer is None:
        return _ignore
    return on_layer if device.type == "cpu" else EventNotifier(on_layer)


def _ignore(_layer: int) -> None:
    pass


def _spread(rows: Sequence[int], values: Sequence[T], num_rows: int) -> tuple[T | None, ...]:
    spread: list[T | None] = [None] * num_rows
    for row, value in zip(rows, values, strict=True):
        spread[row] = value
    return tuple(spread)
