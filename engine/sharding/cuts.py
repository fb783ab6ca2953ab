"""Which part of every parameter a tensor-parallel rank holds, decided without any weights."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.errors import ModelError
from core.model_spec import DTYPE_BYTES, ModelSpec
from core.parallel import RankPlace, Shard, shard_of, split
from engine.sharding.plans import FUSED_QKV, embedding_name, head_name, styles_of

Rule = Callable[[str], None]
"""Plans what one name of a model's plan stands for."""
HEADS_OF = {"q_proj": "query", "k_proj": "kv", "v_proj": "kv"}
"""What the rows of an attention's projections are; other names are not trusted."""

EXPERT_ALIGNMENT_BYTES = 16
"""Of the rows of experts' matrices: torch's grouped product refuses others."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Some runs of one dimension, one after the other."""

    dim: int
    runs: tuple[range, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part; a view where it is one run."""
        parts = [tensor.narrow(self.dim, run.start, len(run)) for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def shape(self, whole: torch.Size) -> tuple[int, ...]:
        """Of the part of a tensor of the shape `whole`."""
        num = sum(map(len, self.runs))
        return *whole[: self.dim], num, *whole[self.dim + 1 :]


@dataclass(slots=True)
class Cuts:
    """The plan of one rank."""

    parts: dict[str, Cut] = field(default_factory=dict)
    """By parameter; what is not here every rank holds whole."""
    summed_linears: list[str] = field(default_factory=list)
    """Layers with a part of their inputs."""
    summed_outputs: list[str] = field(default_factory=list)
    """Modules whose output has to be summed as a whole."""
    attentions: list[str] = field(default_factory=list)


class Planner:
    """Walks the plan of one model for one rank, on a model without weights."""

    def __init__(self, model: nn.Module, spec: ModelSpec, place: RankPlace) -> None:
        self._model = model
        self._spec = spec
        self._place = place
        self._shard: Shard = shard_of(spec, place)
        self._cuts = Cuts()
        self._parameters = {name for name, _ in model.named_parameters()}

    def plan(self) -> Cuts:
        """Raises ModelError for a style or a module that is not split here."""
        rules: dict[str, Rule] = {
            "colwise": self._colwise,
            "rowwise": self._rowwise,
            "packed_colwise": self._packed,
            FUSED_QKV: self._fused_qkv,
            "moe_tp_experts": self._experts,
            "replicated_with_grad_allreduce": lambda _name: None,
        }
        self._ends()
        for name, style in styles_of(self._model):
            if style not in rules:
                raise ModelError(f"style {style} of {name} is not supported: tp must be 1")
            rules[style](name)
        # The rank's KV cache has its own heads alone, in every layer.
        if (num := len(self._cuts.attentions)) != self._spec.num_layers:
            told = f"the plan splits the attention of {num} layers of {self._spec.num_layers}"
            raise ModelError(f"{told}: tp must be 1")
        for name in self._cuts.attentions:
            self._check_attention(name)
        return self._cuts

    def _ends(self) -> None:
        for name in (embedding_name(self._model), head_name(self._model)):
            module = self._model.get_submodule(name)
            if not isinstance(module, nn.Embedding | nn.Linear):
                raise ModelError(f"{name} is a {type(module).__name__}: tp must be 1")
            if (num := len(module.weight)) != self._spec.vocab_size:
                told = f"{name} has {num} tokens, config.json {self._spec.vocab_size}"
                raise ModelError(f"{told}: tp must be 1")
            self._cut_layer(name, module, out=(self._split(num),))

    def _colwise(self, name: str) -> None:
        layer, parent = self._layer(name), name.rpartition(".")[0]
        if not self._is_attention(parent):
            return self._cut_layer(name, layer, out=(self._split(_num_outputs(layer)),))
        kind = HEADS_OF.get(name.rpartition(".")[2])
        if kind is None:
            raise ModelError(f"{name} in an attention is not supported: tp must be 1")
        num, heads = self._heads(kind)
        self._expect(name, _num_outputs(layer), num * self._spec.head_dim)
        if parent not in self._cuts.attentions:
            self._cuts.attentions.append(parent)
        return self._cut_layer(name, layer, out=(self._values(heads),))

    def _fused_qkv(self, name: str) -> None:
        layer = self._layer(name)
        num, heads = self._heads("query")
        width, run = num * self._spec.head_dim, self._values(heads)
        self._expect(name, _num_outputs(layer), 3 * width)
        runs = tuple(range(run.start + at, run.stop + at) for at in (0, width, 2 * width))
        self._cuts.attentions.append(name.rpartition(".")[0])
        self._cut_layer(name, layer, out=runs)

    def _rowwise(self, name: str) -> None:
        parent, _, leaf = name.rpartition(".")
        if name in self._parameters:
            return self._cut_experts(parent, leaf, dim=2, num_parts=1)
        layer = self._layer(name)
        run = self._split(_num_inputs(layer))
        if self._is_attention(parent):
            num, heads = self._heads("query")
            self._expect(name, _num_inputs(layer), num * self._spec.head_dim)
            run = self._values(heads)
        self._cuts.parts[f"{name}.weight"] = Cut(0 if isinstance(layer, Conv1D) else 1, (run,))
        self._cuts.summed_linears.append(name)
        return None

    def _packed(self, name: str) -> None:
        parent, _, leaf = name.rpartition(".")
        if name in self._parameters:
            return self._cut_experts(parent, leaf, dim=1, num_parts=2)
        layer = self._layer(name)
        half, odd = divmod(_num_outputs(layer), 2)
        if odd or self._is_attention(parent):
            raise ModelError(f"style packed_colwise of {name} is not supported: tp must be 1")
        return self._cut_layer(name, layer, out=_each_part(self._split(half), half, 2))

    def _cut_experts(self, parent: str, leaf: str, *, dim: int, num_parts: int) -> None:
        experts = self._model.get_submodule(parent)
        # In GPT-OSS' experts gate and up alternate, and each has a bias.
        for what, told in (
            ("is_concatenated", True),
            ("is_transposed", False),
            ("has_bias", False),
        ):
            if getattr(experts, what, told) is not told:
                raise ModelError(
                    f"experts with {what} = {not told} are not supported: tp must be 1"
                )
        shape, num = experts.get_parameter(leaf).shape, getattr(experts, "intermediate_dim", None)
        if len(shape) != 3 or num is None or shape[dim] != num_parts * num:
            raise ModelError(f"{parent}.{leaf} has the shape {[*shape]}: tp must be 1")
        runs = _each_part(self._split_experts(parent, num), num, num_parts)
        self._cuts.parts[f"{parent}.{leaf}"] = Cut(dim, runs)
        self._experts(parent)

    def _split_experts(self, name: str, num: int) -> range:
        unit, tp = EXPERT_ALIGNMENT_BYTES // DTYPE_BYTES[self._spec.dtype], self._place.layout.tp
        if num % unit or num // unit < tp:
            raise ModelError(f"{name}: an inner size of {num} is not split by {tp}, {unit} at once")
        units = self._split(num // unit)
        return range(units.start * unit, units.stop * unit)

    def _experts(self, name: str) -> None:
        if name not in self._cuts.summed_outputs:
            self._cuts.summed_outputs.append(name)

    def _check_attention(self, name: str) -> None:
        """What is not split works on single heads, so that it needs no other rank's."""
        kept = {f"{linear}.bias" for linear in self._cuts.summed_linears} | self._cuts.parts.keys()
        for leaf, parameter in self._model.get_submodule(name).named_parameters():
            if f"{name}.{leaf}" not in kept and parameter.numel() != self._spec.head_dim:
                raise ModelError(f"{name}.{leaf} spans several heads: tp must be 1")

    def _cut_layer(self, name: str, layer: nn.Module, *, out: tuple[range, ...]) -> None:
        self._cuts.parts[f"{name}.weight"] = Cut(1 if isinstance(layer, Conv1D) else 0, out)
        if getattr(layer, "bias", None) is not None:
            self._cuts.parts[f"{name}.bias"] = Cut(0, out)

    def _layer(self, name: str) -> nn.Linear | Conv1D:
        layer = self._model.get_submodule(name)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise ModelError(f"{name} is a {type(layer).__name__}: tp must be 1")
        return layer

    def _is_attention(self, name: str) -> bool:
        module = self._model.get_submodule(name)
        # Layers may know their number too, but only an attention scales and masks scores.
        return hasattr(module, "layer_idx") and (
            hasattr(module, "scaling") or hasattr(module, "is_causal")
        )

    def _heads(self, kind: str) -> tuple[int, range]:
        if kind == "query":
            return self._spec.num_query_heads, self._shard.query_heads
        return self._spec.num_kv_heads, self._shard.kv_heads

    def _values(self, heads: range) -> range:
        return range(heads.start * self._spec.head_dim, heads.stop * self._spec.head_dim)

    def _split(self, num: int) -> range:
        return split(num, self._place.layout.tp, self._place.tp_rank)

    def _expect(self, name: str, num: int, wanted: int) -> None:
        if num != wanted:
            raise ModelError(f"{name} has {num} values, its heads {wanted}: tp must be 1")


def _num_outputs(layer: nn.Linear | Conv1D) -> int:
    return int(layer.weight.shape[1 if isinstance(layer, Conv1D) else 0])


def _num_inputs(layer: nn.Linear | Conv1D) -> int:
    return int(layer.weight.shape[0 if isinstance(layer, Conv1D) else 1])


def _each_part(run: range, num: int, num_parts: int) -> tuple[range, ...]:
    """The same run of each of `num_parts` parts of `num` rows."""
    return tuple(range(run.start + i * num, run.stop + i * num) for i in range(num_parts))
