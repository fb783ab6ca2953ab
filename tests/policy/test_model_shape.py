"""Models counted from their config.json: published sizes, other spellings, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, NoProfile
from policy.model_config import shape_of
from policy.model_files import load_shape, preset, presets

WEIGHTS = [
    # model, all weights, active ones, KV bytes per token at 16 bits; as published or in its files
    ("smollm2-135m", 134_515_008, 134_515_008, 23_040),
    ("llama-2-7b", 6_738_415_616, 6_738_415_616, 524_288),
    ("llama-2-70b", 68_976_648_192, 68_976_648_192, 327_680),
    ("llama-3.1-8b", 8_030_261_248, 8_030_261_248, 131_072),
    ("llama-3.1-70b", 70_553_706_496, 70_553_706_496, 327_680),
    ("llama-3.1-405b", 405_853_388_800, 405_853_388_800, 516_096),
    ("mistral-7b-v0.1", 7_241_732_096, 7_241_732_096, 131_072),
    ("mixtral-8x7b", 46_702_792_704, 12_879_925_248, 131_072),
    ("qwen2.5-32b", 32_763_876_352, 32_763_876_352, 262_144),
    ("qwen3-30b-a3b", 30_532_122_624, 3_353_032_704, 98_304),
    ("bloom-176b", 176_247_271_424, 176_247_271_424, 4_014_080),
]


@pytest.mark.parametrize(("model", "weights", "active", "kv_bytes"), WEIGHTS)
def test_counted_exactly(model: str, weights: int, active: int, kv_bytes: int) -> None:
    shape = preset(model)
    assert shape.num_weights == weights
    assert shape.num_active_weights == active
    assert shape.kv_bytes_per_token == kv_bytes


ROUNDED = [
    # model, billions of weights, of active ones, GB of weights as stored, within
    ("opt-13b", 12.85, 12.85, 26, 0.02),
    ("opt-66b", 65.7, 65.7, 132, 0.01),
    ("opt-175b", 175, 175, 350, 0.01),
    ("llama-3.1-70b", 70.6, 70.6, 141, 0.005),
    ("qwen3-30b-a3b", 30.5, 3.3, 61, 0.02),
    ("qwen3-235b-a22b", 235, 22, 470, 0.01),
    # Published as 671 and, with the head but without the token table, 36.6 active.
    ("deepseek-v3", 671, 37.5, 671, 0.005),
]


@pytest.mark.parametrize(("model", "weights", "active", "gigabytes", "within"), ROUNDED)
def test_counted_as_published(
    model: str, weights: float, active: float, gigabytes: float, within: float
) -> None:
    shape = preset(model)
    assert shape.num_weights / 1e9 == pytest.approx(weights, rel=within)
    assert shape.num_active_weights / 1e9 == pytest.approx(active, rel=within)
    assert shape.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=within)


def test_a_latent_vector_is_small_and_is_read_by_every_head() -> None:
    shape = preset("deepseek-v3")
    assert shape.kv_bytes_per_token == 61 * (512 + 64) * 2
    assert shape.decode_flops_per_pair == 2 * 128 * (2 * 512 + 64)
    assert shape.prefill_flops_per_pair == 2 * 128 * (128 + 64 + 128)


def tiny(**changes: object) -> dict[str, Any]:
    """A Llama of few numbers."""
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 16,
        "vocab_size": 10,
        "max_position_embeddings": 64,
    }
    return {**config, **changes}


ATTENTION, FFN, NORMS = 4 * 8 * 8, 3 * 8 * 16, 2 * 8
TOTALS = [
    # id, config, weights
    ("plain", tiny(), 2 * (ATTENTION + FFN + NORMS) + 8 + 2 * 80),
    ("tied", tiny(tie_word_embeddings=True), 2 * (ATTENTION + FFN + NORMS) + 8 + 80),
    ("grouped", tiny(num_key_value_heads=1), 2 * (2 * 64 + 32 + FFN + NORMS) + 8 + 160),
    ("wide heads", tiny(head_dim=4), 2 * (2 * ATTENTION + FFN + NORMS) + 8 + 160),
    (
        "gpt2",
        {
            "model_type": "gpt2",
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        124_439_808,
    ),
    (
        "opt-350m, whose embeddings are narrow",
        {
            "model_type": "opt",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "ffn_dim": 4096,
            "max_position_embeddings": 2048,
            "vocab_size": 50272,
            "word_embed_proj_dim": 512,
        },
        331_196_416 + 2 * 1024,  # it alone has no last norm, which is counted here
    ),
    (
        "qwen1.5-moe-a2.7b, with a shared expert and its gate",
        {
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "decoder_sparse_step": 1,
            "max_position_embeddings": 8192,
            "vocab_size": 151936,
        },
        14_315_784_192,
    ),
    (
        "qwen2.5-vl, whose text part is inside",
        {"model_type": "a_vision_model", "text_config": tiny()},
        2 * (ATTENTION + FFN + NORMS) + 8 + 160,
    ),
]


@pytest.mark.parametrize(("config", "want"), [c[1:] for c in TOTALS], ids=[c[0] for c in TOTALS])
def test_families(config: dict[str, Any], want: int) -> None:
    assert shape_of(config, "x").num_weights == want


def test_only_some_layers_have_experts() -> None:
    mixed = tiny(
        model_type="qwen3_moe",
        num_hidden_layers=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=4,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
    )
    shape = shape_of(mixed, "x")
    assert (shape.num_dense_layers, shape.num_expert_layers) == (5, 3)
    assert shape.inner_size == 16


WINDOWS = [
    # id, config, context, what the note says
    ("every layer slides", {"model_type": "mistral", "sliding_window": 16}, 16, "capped"),
    ("the window is wider", {"model_type": "mistral", "sliding_window": 99}, 64, ""),
    (
        "switched off",
        {"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False},
        64,
        "",
    ),
    ("some layers slide", {"model_type": "gemma2", "sliding_window": 16}, 64, "every layer saw"),
    (
        "all of the listed layers slide",
        {"sliding_window": 16, "layer_types": ["sliding_attention"] * 2},
        16,
        "capped",
    ),
]


@pytest.mark.parametrize(
    ("changes", "context", "says"), [c[1:] for c in WINDOWS], ids=[c[0] for c in WINDOWS]
)
def test_sliding_windows_are_named(changes: dict[str, Any], context: int, says: str) -> None:
    shape = shape_of(tiny(**changes), "x")
    assert shape.max_context_tokens == context
    assert [says in note for note in shape.notes] == ([True] if says else [])


DTYPES = [
    ({"torch_dtype": "bfloat16"}, "bfloat16"),
    ({"dtype": "float32"}, "float32"),
    ({}, "float16"),
    ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "int4"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "int8"),
]


@pytest.mark.parametrize(("changes", "want"), DTYPES)
def test_weight_types(changes: dict[str, Any], want: str) -> None:
    assert shape_of(tiny(**changes), "x").weight_dtype == want


def test_weights_and_kv_have_types_of_their_own() -> None:
    shape = preset("llama-3.1-8b").with_dtypes(weights="fp8", kv="int8")
    assert shape.weight_bytes == shape.num_weights
    assert shape.kv_bytes_per_token == 65_536
    with pytest.raises(ConfigError, match=r"weight_dtype must be one of .*'fp3'\nkv_dtype must"):
        shape.with_dtypes(weights="fp3", kv="fp2")


REFUSED = [
    # config, what the error says
    ({"model_type": "mamba"}, "model_type 'mamba' cannot be counted, only llama"),
    ({}, "model_type 'None' cannot be counted"),
    ({"model_type": "llama"}, r"(?s)none of hidden_size.*none of num_hidden_layers.*vocab_size"),
    (tiny(num_key_value_heads=3), "4 attention heads cannot share 3 KV heads"),
    (tiny(hidden_size="8"), "hidden_size must be a whole number from 0, got '8'"),
    (tiny(dtype="float8"), "dtype must be one of .*got 'float8'"),
    (tiny(quantization_config={"quant_method": "bitnet"}), "quantization 'bitnet' cannot be"),
    (tiny(model_type="mixtral", num_local_experts=4, num_experts_per_tok=5), "5 of 4 experts"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_refused_by_name(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        shape_of(config, "x")


def test_files(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny()))
    assert load_shape(folder) == load_shape(folder / "config.json")
    assert load_shape(folder).name == "my-model"
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="it is not an object"):
        load_shape(folder)
    with pytest.raises(ConfigError, match="nothing-here"):
        load_shape(tmp_path / "nothing-here")


def test_presets_all_count() -> None:
    assert len(presets()) >= 15
    for name in presets():
        assert preset(name).num_weights > 0
    with pytest.raises(NoProfile, match=r"named 'gpt-5'; there is bloom-176b, .*config.json"):
        preset("gpt-5")
