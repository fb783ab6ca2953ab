"""Checkpoints that are wrong in one way each, and what has to be said of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

UP_PROJ = "model.layers.1.mlp.up_proj.weight"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_everything(directory: Path) -> None:
    shutil.rmtree(directory)


def remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def config_of_a_list(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def unknown_architecture(directory: Path) -> None:
    edit_json(directory / "config.json", model_type="nonsense", architectures=["Nonsense"])


def not_a_text_generator(directory: Path) -> None:
    edit_json(directory / "config.json", model_type="vit", architectures=["ViTModel"])


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10])


def empty_file(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def drop_tensor(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors[UP_PROJ]
    save_file(tensors, path, {"format": "pt"})


def reshape_tensor(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, path, {"format": "pt"})


def cut_in_two(directory: Path) -> list[Path]:
    """Make it a checkpoint of two files and an index; returns the files."""
    whole = directory / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    paths = [directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map: dict[str, str] = {}
    for path, half in zip(paths, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in half}, path, {"format": "pt"})
        weight_map |= dict.fromkeys(half, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return paths


def edit_weight_map(directory: Path, changes: dict[str, object]) -> None:
    path = directory / "model.safetensors.index.json"
    edit_json(path, weight_map=json.loads(path.read_text())["weight_map"] | changes)


def missing_shard(directory: Path) -> None:
    cut_in_two(directory)[1].unlink()


def truncated_shard(directory: Path) -> None:
    path = cut_in_two(directory)[1]
    path.write_bytes(path.read_bytes()[:-1])


def index_of_a_tensor_that_is_elsewhere(directory: Path) -> None:
    first, second = cut_in_two(directory)
    where = first if UP_PROJ in load_file(second) else second
    edit_weight_map(directory, {UP_PROJ: where.name})


def index_that_leaves_the_folder(directory: Path) -> None:
    cut_in_two(directory)
    edit_weight_map(directory, {UP_PROJ: "../model.safetensors"})


def index_without_names(directory: Path) -> None:
    cut_in_two(directory)
    (directory / "model.safetensors.index.json").write_text("{}")


def no_index(directory: Path) -> None:
    cut_in_two(directory)
    (directory / "model.safetensors.index.json").unlink()


def shard_that_no_index_names(directory: Path) -> None:
    path, _ = cut_in_two(directory)
    shutil.copy(path, directory / "model-00003-of-00003.safetensors")


def eight_bit_floats(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors[UP_PROJ] = tensors[UP_PROJ].to(torch.float8_e4m3fn)
    save_file(tensors, path, {"format": "pt"})


def quantized(directory: Path) -> None:
    edit_json(directory / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def own_code(directory: Path) -> None:
    unknown_architecture(directory)
    edit_json(directory / "config.json", auto_map={"AutoConfig": "configuration.Nonsense"})


def rope_by_length(directory: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    edit_json(directory / "config.json", rope_parameters=scaling)


def more_layers(directory: Path) -> None:
    edit_json(directory / "config.json", num_hidden_layers=3)


def heads_that_do_not_divide(directory: Path) -> None:
    edit_json(directory / "config.json", num_attention_heads=3, head_dim=None)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (remove_everything, "no config.json, so not a model directory"),
    (remove_config, "no config.json, so not a model directory"),
    (break_config, "config.json cannot be used"),
    (config_of_a_list, "config.json cannot be used: it is not an object"),
    (unknown_architecture, "model_type nonsense is not known to transformers"),
    (own_code, r"model_type nonsense .* its own code \(auto_map\) is not run"),
    (not_a_text_generator, "vit: it does not generate text"),
    (quantized, "not supported: weights quantized as gptq"),
    (rope_by_length, "not supported: rotary scaling by length"),
    (heads_that_do_not_divide, "config.json cannot be used|cannot be loaded"),
    (remove_weights, r"no \*.safetensors weights$"),
    (only_pickle, "pytorch_model.bin would run code when loaded"),
    (truncate, "model.safetensors: damaged or truncated"),
    (truncate_header, "model.safetensors: damaged or truncated"),
    (empty_file, "model.safetensors: damaged or truncated"),
    (eight_bit_floats, f"{UP_PROJ} is F8_E4M3: quantized, not supported"),
    (drop_tensor, rf"missing tensors: {UP_PROJ} \[96, 64\]$"),
    (more_layers, r"missing tensors: model\.layers\.2\..* and 4 more$"),
    (reshape_tensor, r"model.norm.weight is \[5\], config.json asks for \[64\]$"),
    (missing_shard, "model-00002-of-00002.safetensors is missing"),
    (truncated_shard, "model-00002-of-00002.safetensors: damaged or truncated"),
    (index_of_a_tensor_that_is_elsewhere, f"{UP_PROJ} is not in model-0000"),
    (index_that_leaves_the_folder, r"'\.\./model.safetensors' is not the name of a file"),
    (index_without_names, "no weight_map can be read"),
    (no_index, "is neither model.safetensors nor named by a model.safetensors.index.json"),
    (shard_that_no_index_names, "model-00003-of-00003.safetensors is not in"),
]
NAMES = [damage.__name__ for damage, _ in DAMAGES]
