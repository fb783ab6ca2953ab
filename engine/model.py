"""Weights and shape of a model, from a directory of safetensors."""

import hashlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, GenerationConfig
from transformers.masking_utils import AttentionMaskInterface

from core.errors import ModelError
from core.model_spec import ModelSpec
from engine import attention
from engine.architecture import one_line, read_config
from engine.checkpoint import check_loading, quiet_transformers
from engine.cpu.int8 import quantise
from engine.cpu.speed_up import speed_up
from engine.cpu.warm_up import compile_int8_kernels, compile_kernels
from engine.kernels import runs_triton
from engine.kv_cache import TORCH_DTYPES
from engine.weight_files import weight_files

DIGEST_CHUNK_BYTES = 16 * 1024 * 1024
EVERY_LAYER_SLIDES = frozenset({"mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"})
"""Where `sliding_window` is set and the config lists no `layer_types`; others are not trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run on one device."""

    spec: ModelSpec
    module: torch.nn.Module
    device: str


def load_model(
    model_dir: Path, *, dtype: str = "float32", device: str = "cpu", fast: bool = True
) -> LoadedModel:
    """Load a Hugging Face checkpoint directory with our attention under it.

    Not `fast`, its other parts stay as transformers has them until `make_fast`.

    Raises:
        ModelError: the directory, its config or its weights cannot be used; says which and why.
    """
    check_dtype(dtype)
    config = read_config(model_dir)
    files = weight_files(model_dir)
    # One read from the disk although two of the memory: the digest maps the pages that the
    # tensors are then copied from, or stay in where file and model have the same dtype. They are
    # clean, so a machine short of memory drops them instead of swapping.
    spec = model_spec(model_dir, config, dtype, weights_digest(files.paths))
    module = _module(model_dir, TORCH_DTYPES[dtype]).to(device).eval()
    model = LoadedModel(spec=spec, module=module.requires_grad_(False), device=device)
    if fast:
        make_fast(model.module, device)
    return model


def make_fast(module: torch.nn.Module, device: str) -> None:
    """Replace parts of a loaded module by faster ones, where its device has them."""
    if torch.device(device).type == "cpu":
        speed_up(module)
        compile_kernels()
    elif runs_triton(device):
        # Here, so that a machine without a GPU needs no Triton.
        from engine.cuda import speed_up as cuda

        cuda.speed_up(module)


def with_weights(model: LoadedModel, weights: str) -> LoadedModel:
    """The same module, made fast before, with weights of this kind: see `EngineConfig.weights`."""
    if weights == "int8":
        quantise(model.module)
        compile_int8_kernels()
    return replace(model, spec=replace(model.spec, weights=weights))


def check_dtype(dtype: str) -> None:
    """Raise ModelError for what is not a name of ours."""
    if dtype not in TORCH_DTYPES:
        raise ModelError(f"dtype {dtype} is not one of {', '.join(TORCH_DTYPES)}")


def weights_digest(files: Iterable[Path]) -> str:
    """Hex BLAKE2b-256 over the bytes of all files in order: 1.3 GB/s without special hardware."""
    digest = hashlib.blake2b(digest_size=32)
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            for start in range(0, len(view), DIGEST_CHUNK_BYTES):
                digest.update(view[start : start + DIGEST_CHUNK_BYTES])
            view.release()
    return digest.hexdigest()


def _module(model_dir: Path, dtype: torch.dtype) -> torch.nn.Module:
    register_attention()
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model_dir,
                dtype=dtype,
                attn_implementation=attention.NAME,
                use_safetensors=True,
                local_files_only=True,
                # Told by name and shape below; transformers would only say that there are some.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever it is, the checkpoint cannot be served
        raise ModelError(f"{model_dir}: cannot be loaded: {one_line(error)}") from error
    module, loading = loaded
    assert isinstance(module, torch.nn.Module)
    check_loading(model_dir, module, loading)
    return module


def register_attention() -> None:
    """Let transformers find our attention by its name; harmless when repeated."""
    AttentionInterface.register(attention.NAME, attention.paged_attention)
    # Registered although it makes nothing: an unknown name would skip some models' mask set-up.
    AttentionMaskInterface.register(attention.NAME, _no_mask)


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """Masks depend on block tables and are the step plan's."""


def model_spec(model_dir: Path, config: Any, dtype: str, digest: str) -> ModelSpec:  # noqa: ANN401
    """The shape of the whole model. Raises ModelError for a config without a size."""
    text = config.get_text_config()
    try:
        return ModelSpec(
            name=model_dir.resolve().name,
            architecture=(config.architectures or [type(config).__name__])[0],
            num_layers=text.num_hidden_layers,
            num_query_heads=text.num_attention_heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None)
            or text.hidden_size // text.num_attention_heads,
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            max_context_tokens=text.max_position_embeddings,
            eos_token_ids=_eos_token_ids(model_dir, text),
            dtype=dtype,
            weights_digest=digest,
            window_tokens=_window_tokens(text),
        )
    except AttributeError as error:
        raise ModelError(f"{model_dir}: config.json lacks a size: {error}") from error


def _window_tokens(config: Any) -> int | None:  # noqa: ANN401
    """None unless it is certain that every layer slides: KV dropped in error is a wrong answer."""
    layers = getattr(config, "layer_types", None)
    if layers:
        slides = all(layer == "sliding_attention" for layer in layers)
    else:
        slides = config.model_type in EVERY_LAYER_SLIDES
    return (slides and getattr(config, "sliding_window", None)) or None


def _eos_token_ids(model_dir: Path, config: Any) -> tuple[int, ...]:  # noqa: ANN401
    """From generation_config.json, else config.json; either holds an int, a list or nothing."""
    given = getattr(config, "eos_token_id", None)
    if (model_dir / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(model_dir, local_files_only=True)
        given = given if generation.eos_token_id is None else generation.eos_token_id
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)
