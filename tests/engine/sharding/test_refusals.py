"""What cannot be split is told before a weight is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
)

from core.errors import ModelError
from core.parallel import ParallelLayout, RankPlace
from engine.sharding import load_shard
from engine.sharding.cuts import Planner
from tests.engine.architectures import CONFIGS, SHAPE, Architectures
from tests.engine.sharding.checkpoints import save_checkpoint
from tests.engine.sharding.crew import no_sum
from tests.engine.tiny import tiny_config

Model = Any
"""Of transformers, duck-typed."""

GRANITE = GraniteConfig(**SHAPE, embedding_multiplier=12.0)
NEOX = GPTNeoXConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
)
GRANITE_MOE = GraniteMoeConfig(**SHAPE, num_local_experts=2)
HUNYUAN = HunYuanDenseV1Config(**SHAPE)
ODD_EXPERTS = MixtralConfig(**(SHAPE | {"intermediate_size": 98}), num_local_experts=2)
CASES: list[tuple[str, PretrainedConfig, int, int, str]] = [
    # id                       config      tp pp why
    ("three of two heads", tiny_config(), 3, 1, "tp = 3: more ranks than"),
    ("more stages than layers", tiny_config(), 1, 3, "pp = 3: the model has 2 layers"),
    ("no ranks", tiny_config(), 0, 1, "tp must be 1 to 64"),
    ("scaled embeddings", GRANITE, 1, 2, "granite changes hidden states outside its layers"),
    ("no attention in the plan", GRANITE_MOE, 2, 1, "attention of 0 layers of 2"),
    ("no plan for tensors", HUNYUAN, 2, 1, "hunyuan_v1_dense has no plan for tensor parallelism"),
    ("no plan for stages", HUNYUAN, 1, 2, "hunyuan_v1_dense has no plan for pipeline stages"),
    ("a style unknown", Phi3Config(**SHAPE), 2, 1, "style colwise_gather_output of"),
    ("heads fused", NEOX, 2, 1, "query_key_value"),
    ("uneven experts", ODD_EXPERTS, 2, 1, "an inner size of 98 is not split by 2, 4 at once"),
]


@pytest.mark.parametrize(
    ("config", "tp", "pp", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_cannot_be_split_is_refused(
    config: PretrainedConfig, tp: int, pp: int, why: str, tmp_path: Path
) -> None:
    save_checkpoint(config, tmp_path)
    place = RankPlace(layout=ParallelLayout(tp=tp, pp=pp), rank=0)
    with pytest.raises(ModelError, match=why) as refused:
        load_shard(tmp_path, dtype="float32", device="cpu", place=place, all_reduce=no_sum)
    assert str(tmp_path) in str(refused.value)


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype int4 is not one of"):
        load_shard(tmp_path, dtype="int4", device="cpu", place=RankPlace(), all_reduce=no_sum)


def _spanning_norm(model: Model) -> None:
    model.model.layers[1].self_attn.q_norm.weight = nn.Parameter(torch.empty(64))


def _gated_queries(model: Model) -> None:
    model.model.layers[0].self_attn.q_proj = nn.Linear(64, 128)


def _alternating_gates(model: Model) -> None:
    model.model.layers[0].mlp.experts.is_concatenated = False


def _other_layer(model: Model) -> None:
    model.model.layers[0].self_attn.o_proj = nn.Identity()


def _split_sequences(model: Model) -> None:
    model._tp_plan["model.layers.*.input_layernorm"] = "sequence_parallel"


def _padded_vocabulary(model: Model) -> None:
    model.lm_head = nn.Linear(64, 320)


MODELS: list[tuple[str, Callable[[Model], None], str]] = [
    # id                      change              why
    ("a norm over all heads", _spanning_norm, "layers.1.self_attn.q_norm.weight spans several"),
    ("gates beside queries", _gated_queries, "q_proj has 128 values, its heads 64"),
    ("gate and up alternate", _alternating_gates, "experts with is_concatenated = False"),
    ("a layer of another kind", _other_layer, "o_proj is a Identity"),
    ("a padded vocabulary", _padded_vocabulary, "lm_head has 320 tokens, config.json 300"),
    ("split sequences", _split_sequences, "style sequence_parallel of model.layers.0.input"),
]


@pytest.mark.parametrize(
    ("change", "why"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS]
)
def test_what_a_plan_does_not_tell_is_refused(
    architectures: Architectures, change: Callable[[Model], None], why: str
) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(CONFIGS["qwen3_moe"])  # type: ignore[no-untyped-call]
        change(model)
    spec = architectures["qwen3_moe"].model.loaded.spec
    place = RankPlace(layout=ParallelLayout(tp=2), rank=1)
    with pytest.raises(ModelError, match=why):
        Planner(model, spec, place).plan()
