"""A model in parts computes what the whole one does."""

from pathlib import Path

import pytest
import torch

from engine.forward import ModelForward
from engine.model import load_model
from tests.engine.architectures import CONFIGS, Architectures
from tests.engine.sharding.checkpoints import Variants
from tests.engine.sharding.crew import BLOCK_SIZE, NUM_BLOCKS, Crew
from tests.engine.tiny import Answer, random_prompt

# Two chunks, over the windows, neither a multiple of a block.
PROMPT = random_prompt(70, seed=70)
CHUNK = 41
NUM_TOKENS = 12
TOLERANCE = 1e-5
"""Of the largest logit: sums over ranks are other sums than a rank's own."""
LAYOUTS = [(1, 2), (2, 1), (2, 2)]


def greedy(directory: Path, crew: Crew) -> tuple[int, ...]:
    """The crew's tokens; every step's logits are held to the whole model's."""
    model = load_model(directory)
    whole = ModelForward(model, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, num_scratch_blocks=0)
    answer = Answer(PROMPT, tuple(range(NUM_BLOCKS)), chunk=CHUNK)
    while len(answer.output) < NUM_TOKENS:
        entry = answer.next_entry()
        with torch.inference_mode():
            want = whole.run([entry], None).rows
        got = crew.logits(entry)
        assert got.shape == want.shape
        if len(want):
            assert float((got - want).abs().max() / want.abs().max()) < TOLERANCE
        answer.absorb(entry, int(got[0].argmax()) if entry.sample else None)
    return answer.output


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(
    architectures: Architectures, name: str, tp: int, pp: int
) -> None:
    architecture = architectures[name]
    crew = Crew(architecture.model.directory, tp, pp)
    output = greedy(architecture.model.directory, crew)
    architecture.compare(PROMPT, output).check()


UNUSUAL = [
    # id                              checkpoint           tp pp
    ("more ranks than KV heads", "llama", 4, 1),
    ("one KV head for all", "llama one kv head", 4, 1),
    ("3 layers, 9 and 3 heads, odd sizes", "llama uneven", 2, 2),
    ("a head per rank", "llama uneven", 3, 1),
    ("one of three stages is neither end", "llama tied", 1, 3),
    ("tied weights on both ends", "llama tied", 2, 2),
    ("biases after the sum", "llama biased", 2, 1),
    ("tied and scaled embedding", "gemma3 tied", 2, 2),
    ("padding token of another rank", "gemma3 tied", 2, 1),
    ("a dense layer among experts", "qwen3_moe one dense", 2, 2),
    ("experts and more ranks than KV heads", "qwen3_moe one dense", 4, 1),
    ("experts of an odd size", "mixtral uneven", 2, 2),
    ("OPT with its biases, tied", "opt tied", 2, 2),
    ("OPT, projected and normed late", "opt projected", 2, 2),
    ("GPT-2 with its biases, tied", "gpt2 tied", 2, 2),
    ("GPT-2 with 3 heads", "gpt2 uneven", 2, 2),
    ("a GPT-2 head per rank, a layer per stage", "gpt2 uneven", 3, 3),
]


@pytest.mark.parametrize(
    ("name", "tp", "pp"), [case[1:] for case in UNUSUAL], ids=[case[0] for case in UNUSUAL]
)
def test_unusual_shapes_too(variants: Variants, name: str, tp: int, pp: int) -> None:
    architecture = variants[name]
    crew = Crew(architecture.model.directory, tp, pp)
    output = greedy(architecture.model.directory, crew)
    architecture.compare(PROMPT, output).check()
