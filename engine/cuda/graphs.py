"""Decode steps as CUDA graphs: one launch instead of a thousand, for padded batch sizes."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from engine.batch import BatchEntry
from engine.cuda.graph_inputs import (
    GraphInputs,
    GraphShape,
    bucket_for,
    buckets_up_to,
    fill,
    plan_of,
    views,
)
from engine.step_plan import StepPlan

logger = logging.getLogger(__name__)

NUM_WARM_UPS = 2
"""Before a capture: kernels are compiled and chosen, workspaces taken."""

Replay = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """Makes a computation repeatable. A fake that computes it again stands in on a CPU."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Replay: ...


class CudaRecorder:
    """As CUDA graphs that share their memory: only one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None  # torch has no public name for its type

    def record(self, compute: Callable[[], torch.Tensor]) -> Replay:
        """Capture; what `replay()` returns is overwritten by the next replay of any graph."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                compute()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: KV of other requests moves on other threads meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            logits = compute()
        self._pool = graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


def recorder_for(device: str) -> Recorder | None:
    """None where steps cannot be recorded."""
    return CudaRecorder() if torch.device(device).type == "cuda" else None


class DecodeGraphs:
    """Computes decode steps by replaying; what it has no graph for is left to the caller."""

    def __init__(
        self,
        compute: Callable[[StepPlan], torch.Tensor],
        shape: GraphShape,
        *,
        max_rows: int,
        device: str,
        recorder: Recorder,
    ) -> None:
        """`compute` gives the logits of every row of a plan, and must not wait for the device."""
        self._compute = compute
        self._shape = shape
        self._buckets = buckets_up_to(max_rows)
        self._recorder = recorder
        num_words = max(map(shape.num_words, self._buckets))
        self._device_words = torch.zeros(num_words, dtype=torch.int64, device=device)
        # Pinned, so that the copy is queued instead of waited for.
        self._host_words = torch.zeros(
            num_words, dtype=torch.int64, pin_memory=self._device_words.is_cuda
        )
        self._copied = (
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            if self._device_words.is_cuda
            else None
        )
        self._replays: dict[int, Replay] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Record every bucket; until then none is taken. A model that cannot be captured stays
        without: it is slower, and says why in the log."""
        replays: dict[int, Replay] = {}
        # The largest first: the others fit in the memory it took.
        for bucket in reversed(self._buckets):
            inputs = views(self._device_words, self._shape, bucket)
            self._fill(bucket, ())
            plan = plan_of(inputs, self._shape)
            try:
                replays[bucket] = self._recorder.record(partial(self._compute, plan))
            except RuntimeError as error:
                logger.warning("decode graphs unavailable bucket=%d reason=%s", bucket, error)
                return
        self._replays = replays

    def takes(self, entries: Sequence[BatchEntry]) -> bool:
        """Whether there is a graph for them: one token each, and a token asked for by each."""
        bucket = bucket_for(len(entries), self._buckets)
        return bucket in self._replays and self._shape.fits(entries)

    def run(self, entries: Sequence[BatchEntry]) -> torch.Tensor:
        """Logits [entry, vocabulary] of entries that are taken, valid until the next call.

        K and V of the entries are in the cache when the device is done.
        """
        bucket = bucket_for(len(entries), self._buckets)
        assert bucket is not None
        self._fill(bucket, entries)
        return self._replays[bucket]()[: len(entries)]

    def _fill(self, bucket: int, entries: Sequence[BatchEntry]) -> None:
        if self._copied is not None:
            # The last step's copy has long ended; nothing else keeps the host from overtaking it.
            self._copied.synchronize()
        host: GraphInputs = views(self._host_words, self._shape, bucket)
        num_words = fill(host, self._shape, entries)
        self._device_words[:num_words].copy_(self._host_words[:num_words], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
