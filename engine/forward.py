"""The forward pass of one step: everything that a model computes before a token is chosen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from core.model_spec import ModelSpec
from engine.attention import GatherBuffers, StepAttention
from engine.batch import BatchEntry
from engine.cuda.graph_inputs import GraphShape
from engine.cuda.graphs import DecodeGraphs, Recorder, recorder_for
from engine.kernels import kernels_for
from engine.kv_cache import KvCache, KvMemory
from engine.model import LoadedModel
from engine.step_plan import StepPlan, check_entries, plan_step

MAX_GRAPH_ROWS = 64  # the answers that a decode worker runs at once unless it is told otherwise

OnLayer = Callable[[int], None]
M_co = TypeVar("M_co", bound=KvMemory, covariant=True)


class Logits(NamedTuple):
    """What the sampler chooses from."""

    rows: torch.Tensor
    """[sampled entry, vocabulary], on the device; valid until the next step."""
    entries: tuple[int, ...]
    """Which entry of the step each row belongs to."""


class Forward(Protocol[M_co]):
    """Computes a step's logits, on one rank or with several."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def block_size(self) -> int: ...
    @property
    def scratch_blocks(self) -> range:
        """Blocks that no allocator knows of, for warm-up."""
        ...

    @property
    def kv_cache(self) -> M_co: ...
    def run(self, entries: Sequence[BatchEntry], on_layer: OnLayer | None) -> Logits: ...


@runtime_checkable
class WarmsUp(Protocol):
    """A `Forward` with something of its own to do before the first request."""

    def warm_up(self) -> None:
        """Called after steps of each kind; takes seconds."""
        ...


class ModelForward:
    """A whole model on one device."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        num_blocks: int,
        block_size: int,
        num_scratch_blocks: int,
        max_graph_rows: int = MAX_GRAPH_ROWS,
        recorder: Recorder | None = None,
    ) -> None:
        """Decode steps of up to `max_graph_rows` entries are recorded by `warm_up`: by `recorder`,
        or as CUDA graphs where there is none and the device has them; 0 leaves that out."""
        self.spec = model.spec
        self.block_size = block_size
        # The scratch blocks lie behind those that the allocator knows of.
        self.scratch_blocks = range(num_blocks, num_blocks + num_scratch_blocks)
        self._device = model.device
        self._module = model.module.to(model.device)
        self._buffers = GatherBuffers()
        self._kernels = kernels_for(model.device, model.spec.dtype)
        self.kv_cache = KvCache(
            model.spec,
            num_blocks=self.scratch_blocks.stop,
            block_size=block_size,
            device=model.device,
        )
        # Every answer writes into a block of its own.
        max_rows = min(max_graph_rows, num_blocks)
        self._graphs = self._decode_graphs(recorder or recorder_for(model.device), max_rows)

    def warm_up(self) -> None:
        """Record decode steps: until then they are computed like any other."""
        if self._graphs is not None:
            self._graphs.capture()

    def run(self, entries: Sequence[BatchEntry], on_layer: OnLayer | None) -> Logits:
        """Compute one batch; K and V are in the cache when it returns."""
        # A replay tells nobody how far it is.
        if on_layer is None and self._graphs is not None and self._graphs.takes(entries):
            check_entries(entries, self.block_size)
            self._copy_blocks(entries)
            return Logits(self._graphs.run(entries), tuple(range(len(entries))))
        plan = plan_step(entries, self.block_size, self._device)
        self._copy_blocks(entries)
        return Logits(self._logits(plan, on_layer), plan.sampled)

    def _copy_blocks(self, entries: Sequence[BatchEntry]) -> None:
        if copies := [pair for entry in entries for pair in entry.copies]:
            self.kv_cache.copy_blocks(copies)

    def _decode_graphs(self, recorder: Recorder | None, max_rows: int) -> DecodeGraphs | None:
        # Without a decode kernel attention gathers what differs from step to step, and without a
        # scratch block there is nowhere for padding to write.
        if self._kernels.decode is None or not self.scratch_blocks:
            return None
        if recorder is None or max_rows < 1:
            return None
        max_blocks = -(-self.spec.max_context_tokens // self.block_size)
        # What left a window keeps its place in the table, but not its block.
        if self.spec.window_tokens is None:
            max_blocks = min(max_blocks, self.scratch_blocks.start)
        return DecodeGraphs(
            lambda plan: self._logits(plan, None),
            GraphShape(
                block_size=self.block_size,
                max_blocks=max_blocks,
                scratch_block=self.scratch_blocks[-1],
            ),
            max_rows=max_rows,
            device=self._device,
            recorder=recorder,
        )

    def _logits(self, plan: StepPlan, on_layer: OnLayer | None) -> torch.Tensor:
        written = written_callback(on_layer, torch.device(self._device))
        logits = self._module(
            input_ids=plan.input_ids,
            position_ids=plan.position_ids,
            use_cache=False,
            logits_to_keep=plan.sampled_rows,
            baton_step=StepAttention(self.kv_cache, plan, self._buffers, written, self._kernels),
        ).logits[0]
        if isinstance(written, EventNotifier):
            written.finish()
        assert isinstance(logits, torch.Tensor)
        return logits


class EventNotifier:
    """Calls `on_layer(i)` once the GPU has passed layer i's writes: when layer i + 1 is queued."""

    def __init__(self, on_layer: OnLayer) -> None:
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


def written_callback(on_layer: OnLayer | None, device: torch.device) -> OnLayer:
    """What attention calls when a layer's K and V are written."""
    if on_layer is None:
        return _ignore
    return on_layer if device.type == "cpu" else EventNotifier(on_layer)


def _ignore(_layer: int) -> None:
    pass
