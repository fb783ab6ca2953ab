"""What follows from an attempt and from a model's shape."""

from dataclasses import replace

import pytest

from core.ids import Fingerprint, HandoffId, RouterId
from core.model_spec import ModelSpec
from core.request import Fence, SamplingParams, StopParams
from core.work import WorkRequest

WORK = WorkRequest(
    handoff_id=HandoffId("r/0"),
    fence=Fence(0, 1),
    router_id=RouterId("router-0"),
    prompt_token_ids=(5, 6, 7),
    sampling=SamplingParams(),
    stop=StopParams(max_tokens=4),
    timeout_s=1.0,
    fingerprint=Fingerprint("f"),
)
SMOLLM2 = ModelSpec(
    name="smollm2",
    architecture="LlamaForCausalLM",
    num_layers=30,
    num_query_heads=9,
    num_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    vocab_size=49_152,
    max_context_tokens=8192,
    eos_token_ids=(2,),
    dtype="float32",
    weights_digest="00",
)


@pytest.mark.parametrize("forced", [(), (8,), (8, 9)])
def test_prefill_computes_the_prompt_and_what_is_forced(forced: tuple[int, ...]) -> None:
    work = replace(WORK, output_token_ids=forced)
    assert work.input_token_ids == (5, 6, 7, *forced)
    assert work.num_input_tokens == len(work.input_token_ids)


@pytest.mark.parametrize(("dtype", "want"), [("float32", 46_080), ("bfloat16", 23_040)])
def test_kv_bytes_per_token(dtype: str, want: int) -> None:
    assert replace(SMOLLM2, dtype=dtype).kv_bytes_per_token == want
