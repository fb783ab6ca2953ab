"""The check before a start: one line for each broken checkpoint, and silence for whole ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MptConfig,
    PhimoeConfig,
    PretrainedConfig,
    T5Config,
)

from core.errors import ModelError
from engine import checkpoint
from engine.checkpoint import CheckpointReport, check_checkpoint
from tests.engine.architectures import CONFIGS, SHAPE
from tests.engine.damages import DAMAGES, NAMES, cut_in_two
from tests.engine.tiny import TinyModel


@pytest.fixture
def copy(tiny: TinyModel, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny.directory, tmp_path / "model"))


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=NAMES)
def test_bad_checkpoints_say_what_is_wrong_in_one_line(
    copy: Path,
    damage: Callable[[Path], None],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        check_checkpoint(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_checkpoints_pass(name: str, tmp_path: Path) -> None:
    """As save_pretrained writes them: with experts one by one, prefixes and tied weights."""
    module: Any = AutoModelForCausalLM.from_config(CONFIGS[name])  # type: ignore[no-untyped-call]
    module.save_pretrained(tmp_path)
    report = check_checkpoint(tmp_path)
    assert report.architecture == type(module).__name__
    assert report.num_parameters == module.num_parameters()
    assert (report.num_files, report.ignored_tensors) == (1, ())
    assert report.num_bytes == (tmp_path / "model.safetensors").stat().st_size


OLD_NAMES = [("gpt2", "transformer."), ("opt", "model.")]


@pytest.mark.parametrize(("name", "prefix"), OLD_NAMES)
def test_names_as_old_checkpoints_have_them_pass(name: str, prefix: str, tmp_path: Path) -> None:
    """As on the hub: without the prefix, and GPT-2 with a mask among its weights."""
    module: Any = AutoModelForCausalLM.from_config(CONFIGS[name])  # type: ignore[no-untyped-call]
    module.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix(prefix): value for key, value in load_file(path).items()}
    if name == "gpt2":
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(tensors, path, {"format": "pt"})
    assert check_checkpoint(tmp_path).num_parameters == module.num_parameters()


def test_shards_pass(copy: Path, tiny: TinyModel) -> None:
    paths = cut_in_two(copy)
    assert check_checkpoint(copy) == CheckpointReport(
        architecture="LlamaForCausalLM",
        num_parameters=sum(weight.numel() for weight in tiny.loaded.module.parameters()),
        num_files=2,
        num_bytes=sum(path.stat().st_size for path in paths),
        ignored_tensors=(),
    )


def test_tensors_without_a_place_are_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    ignored = check_checkpoint(copy).ignored_tensors
    assert len(ignored) == 9
    assert all(name.startswith("model.layers.1.") for name in ignored)


REFUSED: list[tuple[PretrainedConfig, str]] = [
    (DeepseekV3Config(), r"multi-head latent attention \(kv_lora_rank\)"),
    (Gemma2Config(), "score softcapping"),
    (BloomConfig(), "ALiBi"),
    (MptConfig(), "ALiBi"),
    (PhimoeConfig(sliding_window=64), "a sliding window"),
    (T5Config(), "it does not generate text"),
    (MambaConfig(), "recurrent state"),
    (Lfm2Config(layer_types=["conv"] * 32), "layers of conv"),
    (Llama4TextConfig(), "layers of chunked_attention"),
]


@pytest.mark.parametrize(
    ("config", "message"), REFUSED, ids=[config.model_type for config, _ in REFUSED]
)
def test_what_is_not_computed_is_refused_by_name(
    config: PretrainedConfig, message: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{config.model_type}: .*{message}"):
        check_checkpoint(tmp_path)


FOUND_IN_THE_MODULE: list[tuple[PretrainedConfig, str]] = [
    (GptOssConfig(**SHAPE, num_local_experts=4), r"attention sinks \(model.layers.0.self_attn"),
    (
        BertConfig(vocab_size=300, hidden_size=64, num_hidden_layers=1, num_attention_heads=4),
        "attention that looks ahead",
    ),
]


@pytest.mark.parametrize(
    ("config", "message"),
    FOUND_IN_THE_MODULE,
    ids=[config.model_type for config, _ in FOUND_IN_THE_MODULE],
)
def test_what_no_config_says_is_found_in_the_module(
    config: PretrainedConfig, message: str, tmp_path: Path
) -> None:
    module: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"not supported: {message}"):
        check_checkpoint(tmp_path)


def test_a_model_that_also_sees_may_serve_text(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = Gemma3Config(
        text_config=SHAPE,
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    module: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    module.save_pretrained(tmp_path)
    assert check_checkpoint(tmp_path).architecture == "Gemma3ForConditionalGeneration"


def test_no_weight_is_read(copy: Path) -> None:
    """A file system that holds only headers is enough."""
    path = copy / "model.safetensors"
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(header_bytes)
        file.truncate(size)  # the rest is a hole
    assert check_checkpoint(copy).num_bytes == size


def test_the_command_prints_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["checkpoint", "--model-dir", str(copy)])
    assert checkpoint.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["architecture"] == "LlamaForCausalLM"
    shutil.rmtree(copy)
    assert checkpoint.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"error": f"{copy}: no config.json, so not a model directory"}


def test_loading_leaves_the_default_device_alone(copy: Path) -> None:
    check_checkpoint(copy)
    assert torch.empty(1).device.type == "cpu"
