"""Gives a model the shapes of its part, and lets it compute with them."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.model_spec import ModelSpec
from core.parallel import RankPlace, Shard, shard_of, split
from engine.sharding.cuts import Cuts
from engine.sharding.layers import (
    AllReduce,
    SummedLinear,
    SummedOutput,
    VocabEmbedding,
    replace_module,
)

QUERY_COUNTS = ("num_heads", "num_attention_heads")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
"""What attention modules of transformers call their numbers of heads, where they keep them."""


def resize(model: nn.Module, names: Collection[str | None], cuts: Cuts) -> None:
    """Give those of the parameters `names` that are cut the shape of their part.

    For a model whose parameters have no memory yet.
    """
    for name, module, leaf in list(_owners(model, cuts)):
        if name in names:
            whole = getattr(module, leaf)
            shape = cuts.parts[name].shape(whole.shape)
            setattr(module, leaf, nn.Parameter(whole.new_empty(shape), requires_grad=False))


def cut_rest(model: nn.Module, cuts: Cuts, shapes: Mapping[str, torch.Size]) -> None:
    """Cut what was loaded whole, because transformers made it of several tensors."""
    for name, module, leaf in list(_owners(model, cuts)):
        loaded = getattr(module, leaf)
        if loaded.shape == shapes[name]:
            part = cuts.parts[name].of(loaded.detach())
            part = part.clone(memory_format=torch.contiguous_format)
            setattr(module, leaf, nn.Parameter(part, requires_grad=False))


def apply_cuts(
    model: nn.Module, cuts: Cuts, spec: ModelSpec, place: RankPlace, all_reduce: AllReduce
) -> None:
    """Let every module know its size, and sum over the ranks what each has a part of."""
    num_ranks, rank = place.layout.tp, place.tp_rank
    shard = shard_of(spec, place)
    for name, module in list(model.named_modules()):
        if f"{name}.weight" in cuts.parts:
            _tell_size(model, name, module)
        if isinstance(module, nn.Embedding) and f"{name}.weight" in cuts.parts:
            rows = split(spec.vocab_size, num_ranks, rank)
            replace_module(model, name, VocabEmbedding(module, rows, all_reduce))
        if name in cuts.attentions:
            _tell_heads(module, shard, spec.head_dim)
    names = {name for name, _ in model.named_modules()}
    for name in names.intersection(cuts.summed_linears):
        replace_module(model, name, _summed(model.get_submodule(name), all_reduce))
    for name in names.intersection(cuts.summed_outputs):
        experts = model.get_submodule(name)
        replace_module(model, name, SummedOutput(experts, all_reduce))


def _owners(model: nn.Module, cuts: Cuts) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, name in it) of every parameter that is cut; other stages' are gone."""
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in cuts.parts:
            parent, _, leaf = name.rpartition(".")
            yield name, model.get_submodule(parent), leaf


def _tell_size(model: nn.Module, name: str, module: nn.Module) -> None:
    if isinstance(module, Conv1D):
        replace_module(model, name, _as_linear(module))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings = len(module.weight)
        # Of use in training alone, and refused by torch where it is another rank's.
        module.padding_idx = None


def _tell_heads(attention: nn.Module, shard: Shard, head_dim: int) -> None:
    sizes = dict.fromkeys(QUERY_COUNTS, len(shard.query_heads))
    sizes |= dict.fromkeys(KV_COUNTS, len(shard.kv_heads))
    sizes["num_key_value_groups"] = len(shard.query_heads) // len(shard.kv_heads)
    sizes["split_size"] = len(shard.query_heads) * head_dim
    for name, value in sizes.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def _as_linear(conv: Conv1D) -> nn.Linear:
    """GPT-2's layer keeps its weight the other way round."""
    linear = nn.Linear(1, 1, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = conv.bias
    linear.out_features, linear.in_features = linear.weight.shape
    return linear


def _summed(linear: nn.Module, all_reduce: AllReduce) -> SummedLinear:
    assert isinstance(linear, nn.Linear)
    bias: nn.Parameter | None = linear.bias
    linear.register_parameter("bias", None)
    return SummedLinear(linear, bias, all_reduce)
