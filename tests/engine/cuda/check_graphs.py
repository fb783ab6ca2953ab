"""Decode steps through padded buckets and static memory give the tokens of steps as they come.

On a GPU as CUDA graphs; else with a recorder that computes again what it was given, which reads the
same static memory.
"""

from collections.abc import Callable, Sequence

import pytest
import torch

from engine.attention import GatherBuffers, Kernels, StepAttention
from engine.batch import BatchEntry
from engine.cuda.graph_inputs import GraphShape
from engine.cuda.graphs import CudaRecorder, DecodeGraphs, Recorder, Replay
from engine.cuda.paged_decode import PagedDecode
from engine.cuda.paged_prefill import paged_prefill
from engine.cuda.write_kv import write_kv
from engine.kv_cache import KvCache
from engine.step_plan import StepPlan, plan_step
from tests.engine.conftest import tiny
from tests.engine.cuda.device import DEVICE
from tests.engine.cuda.recorders import Again
from tests.engine.tiny import BLOCK_SIZE, Answer, TinyModel, random_prompt

__all__ = ["tiny"]

SCRATCH_BLOCK = 64
SHAPE = GraphShape(block_size=BLOCK_SIZE, max_blocks=4, scratch_block=SCRATCH_BLOCK)
NUM_TOKENS = 6


class Refusing:
    """A Recorder of a model that waits for the device in its forward pass."""

    def record(self, compute: Callable[[], torch.Tensor]) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")


class Forward:
    """The tiny model over a cache whose unwritten slots are NaN."""

    def __init__(self, model: TinyModel) -> None:
        self.module = model.loaded.module.to(DEVICE)
        spec = model.loaded.spec
        self.cache = KvCache(
            spec, num_blocks=SCRATCH_BLOCK + 1, block_size=BLOCK_SIZE, device=DEVICE
        )
        self.cache.data.fill_(float("nan"))
        self.kernels = Kernels(prefill=paged_prefill, decode=PagedDecode(64), write=write_kv)
        self.buffers = GatherBuffers()

    def logits(self, plan: StepPlan) -> torch.Tensor:
        step = StepAttention(self.cache, plan, self.buffers, lambda _layer: None, self.kernels)
        out: torch.Tensor = self.module(
            input_ids=plan.input_ids,
            position_ids=plan.position_ids,
            use_cache=False,
            logits_to_keep=plan.sampled_rows,
            baton_step=step,
        ).logits[0]
        return out

    def eager(self, entries: Sequence[BatchEntry]) -> torch.Tensor:
        plan = plan_step(entries, BLOCK_SIZE, DEVICE)
        order = torch.tensor([plan.sampled.index(i) for i in range(len(entries))])
        return self.logits(plan)[order.to(DEVICE)]

    def graphs(self, recorder: Recorder) -> DecodeGraphs:
        return DecodeGraphs(self.logits, SHAPE, max_rows=5, device=DEVICE, recorder=recorder)


@pytest.fixture
def forward(tiny: TinyModel) -> Forward:
    return Forward(tiny)


def recorder() -> Recorder:
    return CudaRecorder() if DEVICE == "cuda" else Again()


def answers() -> list[Answer]:
    shapes = [(5, (9, 3)), (17, (40, 12, 7)), (2, (1,)), (33, (30, 31, 33)), (20, (20, 50))]
    return [Answer(random_prompt(n, seed=n), blocks) for n, blocks in shapes]


@torch.inference_mode()
def test_tokens_equal_generate(forward: Forward, tiny: TinyModel) -> None:
    """Answers join one by one and leave one by one: every bucket, with and without padding."""
    graphs = forward.graphs(recorder())
    graphs.capture()
    running: list[Answer] = []
    waiting = answers()
    while waiting or any(len(a.output) < NUM_TOKENS for a in running):
        if waiting:
            running.append(waiting.pop(0))
            entry = running[-1].next_entry()
            running[-1].absorb(entry, int(forward.eager([entry])[0].argmax()))
        active = [a for a in running if len(a.output) < NUM_TOKENS]
        entries = [a.next_entry() for a in active]
        assert graphs.takes(entries)
        logits = graphs.run(entries)
        for answer, entry, row in zip(active, entries, logits, strict=True):
            answer.absorb(entry, int(row.argmax()))
    for answer in running:
        assert list(answer.output) == tiny.generate(answer.prompt, NUM_TOKENS)


@torch.inference_mode()
def test_what_it_declines(forward: Forward) -> None:
    graphs = forward.graphs(recorder())
    answer = answers()[0]
    entry = answer.next_entry()
    answer.absorb(entry, int(forward.eager([entry])[0].argmax()))
    entry = answer.next_entry()
    assert not graphs.takes([entry]), "nothing is captured yet"
    graphs.capture()
    assert graphs.takes([entry])
    assert not graphs.takes([entry] * 6), "more rows than the largest bucket"
    assert not graphs.takes([answers()[1].next_entry()]), "a prompt"


def test_a_model_that_cannot_be_captured(
    forward: Forward, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = forward.graphs(Refusing())
    graphs.capture()
    assert "not permitted when stream is capturing" in caplog.text
    assert not graphs.takes([Answer((3,), (0,)).next_entry()])
