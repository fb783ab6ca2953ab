"""Whole models on the GPU path give the oracle's tokens: attention over chunks and windows, and the
parts that replace transformers' own."""

import pytest

from engine.attention import Kernels
from engine.cuda.paged_decode import PagedDecode
from engine.cuda.paged_prefill import paged_prefill
from engine.cuda.speed_up import speed_up
from engine.model import load_model
from engine.runner import one_rank
from tests.engine.architectures import CONFIGS, Architectures
from tests.engine.conftest import architectures
from tests.engine.cuda.device import DEVICE
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
    kernels = Kernels(prefill=paged_prefill, decode=PagedDecode(32))
    monkeypatch.setattr("engine.forward.kernels_for", lambda _device, _dtype: kernels)
    architecture = architectures[name]
    model = load_model(architecture.model.directory, device=DEVICE)
    speed_up(model.module)
    runner = one_rank(model, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, num_threads=1)
    runner.kv_cache.data.fill_(float("nan"))
    answers = [
        Answer(random_prompt(length, seed=length), tuple(range(i, NUM_BLOCKS, 2)), chunk)
        for i, (length, chunk) in enumerate(LENGTHS)
    ]
    run_all(runner, answers, NUM_TOKENS)
    for answer in answers:
        architecture.compare(answer.prompt, answer.output).check()
