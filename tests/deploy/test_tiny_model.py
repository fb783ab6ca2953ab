"""The tiny model: small, the same everywhere, and not a bore."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from deploy.gguf_checkpoint import CHECKPOINT_FILES, WEIGHTS_FILE
from deploy.tiny_model import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, write_tiny_llama
from text.tokenizer import Tokenizer

TEXT = "It's 2024: naïve 👩‍👩‍👧 \n\n\tcafé<|im_end|>"


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, same, other = (
        write_tiny_llama(tmp_path / name, seed=seed)
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    for name in CHECKPOINT_FILES:
        assert (one / name).read_bytes() == (same / name).read_bytes()
    assert (one / WEIGHTS_FILE).read_bytes() != (other / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, 512, MAX_VOCAB_SIZE])
def test_the_tokenizer_is_the_one_transformers_reads(tmp_path: Path, vocab_size: int) -> None:
    path = write_tiny_llama(tmp_path, vocab_size=vocab_size)
    ours, theirs = Tokenizer.load(path), AutoTokenizer.from_pretrained(path)
    messages = [{"role": "user", "content": TEXT}]
    assert ours.vocab_size == vocab_size == len(theirs)
    assert ours.encode(TEXT) == theirs(TEXT)["input_ids"]
    assert ours.encode_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize(("layers", "query_heads", "kv_heads"), [(2, 4, 2), (3, 4, 4), (2, 8, 1)])
def test_greedy_answers_are_diverse(
    tmp_path: Path, layers: int, query_heads: int, kv_heads: int
) -> None:
    path = write_tiny_llama(tmp_path, layers=layers, query_heads=query_heads, kv_heads=kv_heads)
    model: Any = LlamaForCausalLM.from_pretrained(path)  # generate() comes from a mixin
    prompt = torch.tensor([Tokenizer.load(path).encode(TEXT)])
    answer = model.generate(prompt, do_sample=False, max_new_tokens=64, eos_token_id=None)
    assert len(set(answer[0, prompt.shape[1] :].tolist())) > 32
