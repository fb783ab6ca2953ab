"""Which model architectures can be served, and for what reason one cannot."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from core.errors import ModelError

ALIBI_MODELS = frozenset({"bloom", "mpt"})
SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})
UNSERVED_ROPE = frozenset({"dynamic", "longrope"})

Fields = Mapping[str, Any]
"""config.json of the text model, with transformers' defaults."""

UNSUPPORTED: dict[str, Callable[[Fields], object]] = {
    "an encoder beside the decoder": lambda c: c.get("is_encoder_decoder"),
    "multi-head latent attention (kv_lora_rank)": lambda c: c.get("kv_lora_rank"),
    "score softcapping (attn_logit_softcapping)": lambda c: c.get("attn_logit_softcapping"),
    "KV shared between layers (num_kv_shared_layers)": lambda c: c.get("num_kv_shared_layers"),
    # transformers puts it into its mask alone, and an attention backend never hears of it.
    "a sliding window of phimoe": lambda c: c["model_type"] == "phimoe" and c.get("sliding_window"),
    "ALiBi position biases": lambda c: c.get("alibi") or c["model_type"] in ALIBI_MODELS,
    # Their frequencies follow the longest request of the batch: an answer would depend on others.
    "rotary scaling by length (rope_type dynamic or longrope)": lambda c: (
        UNSERVED_ROPE & _rope_types(c.get("rope_parameters"))
    ),
}
"""What a config may ask for and this engine does not compute → whether it does."""


def read_config(model_dir: Path) -> Any:  # noqa: ANN401  transformers' configs are duck-typed
    """The config of a folder whose architecture can be served. Raises ModelError."""
    document = _document(model_dir)
    model_type = document.get("model_type")
    if model_type not in CONFIG_MAPPING:
        own_code = "; its own code (auto_map) is not run" if "auto_map" in document else ""
        raise ModelError(
            f"{model_dir}: model_type {model_type} is not known to transformers "
            f"{transformers.__version__}{own_code}"
        )
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    except Exception as error:  # validators of every architecture raise what they like
        raise ModelError(f"{model_dir}: config.json cannot be used: {one_line(error)}") from error
    if reason := _unsupported(config):
        raise ModelError(f"{model_dir}: {model_type}: {reason}")
    return config


def model_class(config: Any) -> Any:  # noqa: ANN401
    """The class that generates text with such a config."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def one_line(error: object, limit: int = 300) -> str:
    """An error of a library, which may be pages long, as part of one of ours."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def _document(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "config.json"
    if not path.is_file():
        raise ModelError(f"{model_dir}: no config.json, so not a model directory")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_dir}: config.json cannot be used: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{model_dir}: config.json cannot be used: it is not an object")
    return document


def _unsupported(config: Any) -> str | None:  # noqa: ANN401
    """Why not, or None."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "it does not generate text"
    fields = _text_fields(config)
    if fields is None:
        return "it has several text models"
    if method := _quantization(config, fields):
        return f"not supported: weights quantized as {method}"
    if reasons := [what for what, asked in UNSUPPORTED.items() if asked(fields)]:
        return f"not supported: {', '.join(reasons)}"
    if layers := set(fields.get("layer_types") or ()) - SERVED_LAYERS:
        return f"not supported: layers of {', '.join(sorted(map(str, layers)))}"
    found = model_class(config)
    if getattr(found, "_is_stateful", False):
        return "not supported: recurrent state beside the KV"
    if not getattr(found, "_supports_attention_backend", False):
        return f"{found.__name__} does not let its attention be replaced"
    return None


def _text_fields(config: Any) -> Fields | None:  # noqa: ANN401
    try:
        fields: Fields = config.get_text_config(decoder=True).to_dict()
    except ValueError:  # more than one
        return None
    return fields


def _quantization(config: Any, fields: Fields) -> str | None:  # noqa: ANN401
    about = getattr(config, "quantization_config", None) or fields.get("quantization_config")
    if not about:
        return None
    method = about.get("quant_method") if isinstance(about, dict) else None
    return str(method or type(about).__name__)


def _rope_types(parameters: object) -> set[str]:
    """One type, or one per kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    tables = [parameters, *(v for v in parameters.values() if isinstance(v, dict))]
    return {str(table["rope_type"]) for table in tables if "rope_type" in table}
