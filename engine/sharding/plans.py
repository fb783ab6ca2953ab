"""Where a model's parts are and how each is split: its own plans, and ours where it has none."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from core.errors import ModelError

FUSED_QKV = "fused_qkv"
"""Our own style: one layer for queries, keys and values, each with all its heads, in this order."""

OWN_STYLES: Mapping[str, Mapping[str, str]] = {
    "opt": {
        "model.decoder.layers.*.self_attn.q_proj": "colwise",
        "model.decoder.layers.*.self_attn.k_proj": "colwise",
        "model.decoder.layers.*.self_attn.v_proj": "colwise",
        "model.decoder.layers.*.self_attn.out_proj": "rowwise",
        "model.decoder.layers.*.fc1": "colwise",
        "model.decoder.layers.*.fc2": "rowwise",
    },
    "gpt2": {
        "transformer.h.*.attn.c_attn": FUSED_QKV,
        "transformer.h.*.attn.c_proj": "rowwise",
        "transformer.h.*.mlp.c_fc": "colwise",
        "transformer.h.*.mlp.c_proj": "rowwise",
    },
}
"""By model_type: tensor-parallel style by name, as in transformers' plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Names of what pipeline stages divide between them."""

    layers: str
    before: tuple[str, ...] = ()
    """Applied to the embeddings, on the first stage alone."""
    positions: tuple[str, ...] = ()
    """What is added to the embeddings."""
    after: tuple[str, ...] = ()
    """Applied after the last layer, on the last stage alone."""


OWN_OUTLINES: Mapping[str, Outline] = {
    "opt": Outline(
        layers="model.decoder.layers",
        before=("model.decoder.project_in",),
        positions=("model.decoder.embed_positions",),
        after=("model.decoder.final_layer_norm", "model.decoder.project_out"),
    ),
    "gpt2": Outline(
        layers="transformer.h", positions=("transformer.wpe",), after=("transformer.ln_f",)
    ),
}


def outline_of(model: Any) -> Outline:  # noqa: ANN401  transformers' models are duck-typed
    """From the model's pipeline plan or ours. Raises ModelError where there is neither."""
    model_type: str = model.config.model_type
    if model_type in OWN_OUTLINES:
        return OWN_OUTLINES[model_type]
    ends = {embedding_name(model), head_name(model)}
    names = [name for name in getattr(model, "_pp_plan", None) or () if name not in ends]
    layers = [name for name in names if isinstance(model.get_submodule(name), nn.ModuleList)]
    if len(layers) != 1:
        raise ModelError(f"{model_type} has no plan for pipeline stages: pp must be 1")
    return Outline(layers=layers[0], after=tuple(name for name in names if name not in layers))


def styles_of(model: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """(module or parameter, style) of all the model's plan or ours names, ends excepted.

    Raises ModelError where there is no plan.
    """
    model_type: str = model.config.model_type
    plan = OWN_STYLES.get(model_type) or getattr(model, "_tp_plan", None) or {}
    ends = {embedding_name(model), head_name(model)}
    layers = {pattern: style for pattern, style in plan.items() if pattern not in ends}
    if not layers:
        raise ModelError(f"{model_type} has no plan for tensor parallelism: tp must be 1")
    # Some plans name parameters, those of experts.
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    for pattern, style in layers.items():
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+")).fullmatch
        yield from ((name, style) for name in names if matches(name))


def embedding_name(model: Any) -> str:  # noqa: ANN401
    """Of the token embedding."""
    return _name_of(model, model.get_input_embeddings())


def head_name(model: Any) -> str:  # noqa: ANN401
    """Of the layer that computes logits."""
    return _name_of(model, model.get_output_embeddings())


def _name_of(model: nn.Module, wanted: object) -> str:
    name: str
    for name, module in model.named_modules():
        if module is wanted:
            return name
    raise ModelError(f"{type(model).__name__} tells neither its embedding nor its head")
