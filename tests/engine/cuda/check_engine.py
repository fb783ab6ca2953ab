"""Whole models on the GPU path give the oracle's tokens: attention over chunks and windows, the
parts that replace transformers' own, and decode steps from memory that does not move."""

import pytest

from engine.attention import Kernels
from engine.cuda.paged_decode import PagedDecode
from engine.cuda.paged_prefill import paged_prefill
from engine.cuda.write_kv import write_kv
from engine.model import load_model, make_fast
from engine.runner import Runner, model_forward
from tests.engine.architectures import CONFIGS, Architectures
from tests.engine.conftest import architectures
from tests.engine.cuda.device import DEVICE
from tests.engine.cuda.recorders import Again
from tests.engine.tiny import BLOCK_SIZE, Answer, random_prompt, run_all

__all__ = ["architectures"]

NUM_TOKENS = 5
NUM_BLOCKS = 24
LENGTHS = ((52, 30), (20, 64))
"""Of a prompt, past the window or not, and of its chunks."""


@pytest.mark.parametrize("name", list(CONFIGS))
def test_tokens_equal_generate(
    name: str, architectures: Architectures, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Kernels(prefill=paged_prefill, decode=PagedDecode(32), write=write_kv)
    monkeypatch.setattr("engine.forward.kernels_for", lambda _device, _dtype: kernels)
    architecture = architectures[name]
    model = load_model(architecture.model.directory, device=DEVICE, fast=False)
    make_fast(model.module, "cuda")
    recorder = None if DEVICE == "cuda" else Again()
    forward = model_forward(
        model,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_graph_rows=len(LENGTHS),
        recorder=recorder,
    )
    runner = Runner(forward, num_threads=1)
    runner.warm_up()
    runner.kv_cache.data.fill_(float("nan"))
    answers = [
        Answer(random_prompt(length, seed=length), tuple(range(i, NUM_BLOCKS, 2)), chunk)
        for i, (length, chunk) in enumerate(LENGTHS)
    ]
    run_all(runner, answers, NUM_TOKENS)
    # All but the two steps with chunks of the longer prompt.
    assert recorder is None or recorder.num_replays == NUM_TOKENS - 1
    for answer in answers:
        architecture.compare(answer.prompt, answer.output).check()
