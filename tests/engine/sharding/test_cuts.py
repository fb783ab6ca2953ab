"""Law: of every parameter the ranks of its stage hold each element once, or all of them all."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from core.model_spec import ModelSpec
from core.parallel import ParallelLayout, layout_problems
from engine.sharding import LoadedShard
from tests.engine.architectures import CONFIGS, SHAPE
from tests.engine.sharding.checkpoints import VARIANTS, save_numbered
from tests.engine.sharding.crew import load_rank

WRAPPERS = (".linear.", ".embedding.", ".inner.")
KV_NAMES = ("k_proj", "v_proj")
HEAD_DIM = 8


def held_parameters(shard: LoadedShard) -> dict[str, torch.Tensor]:
    """By their names in the whole model."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in shard.module.model.named_parameters(remove_duplicate=False):
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, ".")
        found[name] = parameter
    return found


def check_union(config: PretrainedConfig, tp: int, pp: int) -> None:
    """The elements are numbered: their values tell which of them a rank has."""
    with TemporaryDirectory() as directory:
        whole = save_numbered(config, Path(directory))
        layout = ParallelLayout(tp=tp, pp=pp)
        # As cut: faster parts keep some weights in another form, like a norm's 1 + weight.
        ranks = [load_rank(Path(directory), layout, rank, fast=False) for rank in range(tp * pp)]
    held = [held_parameters(rank) for rank in ranks]
    assert set[str]().union(*held) == whole.keys()
    for name, parameter in whole.items():
        holders = [rank for rank, names in zip(ranks, held, strict=True) if name in names]
        # Nothing is in two stages, tied weights excepted: they have a name on either end.
        assert [rank.place.rank for rank in holders] == list(holders[0].place.stage_ranks), name
        parts = [held[rank.place.rank][name] for rank in holders]
        check_parameter(name, parameter.numel(), parts)


def check_parameter(name: str, num: int, parts: list[torch.Tensor]) -> None:
    """Every element equally often: once, on all ranks, or with its KV head on some."""
    counts = torch.zeros(num, dtype=torch.long)
    for part in parts:
        numbers = part.detach().flatten().long()
        assert part.is_contiguous()
        assert part.untyped_storage().nbytes() == part.nbytes, f"{name} keeps what is not its part"
        assert len(set(numbers.tolist())) == len(numbers), name
        counts[numbers] += 1
    assert counts.min() == counts.max() >= 1, name
    if counts.max() not in (1, len(parts)):
        assert any(kv_name in name for kv_name in KV_NAMES), name


@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), *VARIANTS.values()], ids=[*CONFIGS, *VARIANTS]
)
def test_every_element_has_its_place(config: PretrainedConfig) -> None:
    check_union(config, tp=2, pp=2)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    """Of a model and its layout; parts of different sizes more often than not."""
    num_kv_heads = draw(st.integers(1, 4))
    num_query_heads = num_kv_heads * draw(st.integers(1, 3))
    return {
        "num_key_value_heads": num_kv_heads,
        "num_attention_heads": num_query_heads,
        "num_hidden_layers": draw(st.integers(1, 4)),
        "hidden_size": num_query_heads * HEAD_DIM,
        "vocab_size": draw(st.integers(300, 310)),
        "intermediate_size": draw(st.integers(8, 40)),
        "head_dim": HEAD_DIM,
    }


@settings(max_examples=20, deadline=None)
@given(shape=shapes(), tp=st.integers(1, 4), pp=st.integers(1, 3), experts=st.booleans())
def test_whatever_the_shape(shape: dict[str, int], tp: int, pp: int, experts: bool) -> None:
    config: PretrainedConfig = LlamaConfig(**(SHAPE | shape))
    if experts:
        config = Qwen3MoeConfig(**(SHAPE | shape), num_experts=2, moe_intermediate_size=20)
    layout = ParallelLayout(tp=tp, pp=pp)
    assume(not list(layout_problems(spec_of(shape), layout)))
    check_union(config, tp, pp)


def spec_of(shape: dict[str, int]) -> ModelSpec:
    """What a layout is judged by."""
    return ModelSpec(
        name="shape",
        architecture="LlamaForCausalLM",
        num_layers=shape["num_hidden_layers"],
        num_query_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        head_dim=HEAD_DIM,
        hidden_size=shape["hidden_size"],
        vocab_size=shape["vocab_size"],
        max_context_tokens=512,
        eos_token_ids=(),
        dtype="float32",
        weights_digest="",
    )
