"""One pipeline stage of a model: its own layers, and nothing in the place of the others'."""

from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.model_spec import ModelSpec
from core.parallel import RankPlace, shard_of
from engine.architecture import one_line
from engine.attention import StepAttention
from engine.sharding.layers import NoPositions, PassThrough, replace_module
from engine.sharding.plans import Outline, embedding_name, head_name

CHECKED_ROWS = 3
"""Of the random hidden states: more than one, or a mistake of the shape might not show."""


class StageModule(nn.Module):
    """What one rank computes of a step."""

    def __init__(self, model: nn.Module, place: RankPlace) -> None:
        """`model` is a transformers model with `baton` attention, cut down to the rank's part."""
        super().__init__()
        self.model = model
        self._place = place

    def forward(
        self,
        states: torch.Tensor,
        position_ids: torch.Tensor,
        sampled_rows: torch.Tensor,
        step: StepAttention,
    ) -> torch.Tensor:
        """`states` are ids [1, row] (int64) on the first stage, later hidden [1, row, hidden].

        Returns hidden [1, row, hidden]; on the last stage logits [sampled row, column], of the
        rank's own columns of the vocabulary.
        """
        model: Any = self.model
        given: dict[str, Any] = {
            "input_ids" if self._place.is_first_stage else "inputs_embeds": states,
            "position_ids": position_ids,
            "use_cache": False,
            "baton_step": step,
        }
        if self._place.is_last_stage:
            out = model(**given, logits_to_keep=sampled_rows).logits[0]
        else:
            out = model.base_model(**given).last_hidden_state
        assert isinstance(out, torch.Tensor)
        return out


def drop_other_stages(
    model: Any,  # noqa: ANN401
    outline: Outline,
    spec: ModelSpec,
    place: RankPlace,
) -> None:
    """Put nothing in the place of what another stage holds, before any of it is loaded.

    The list of layers keeps its length, so that a layer's number finds its kind of attention.
    A tied embedding and head stay on both ends until they are loaded: see `finish_stage`.
    """
    own = shard_of(spec, place).layers
    others = [i for i in range(spec.num_layers) if i not in own]
    dropped = [f"{outline.layers}.{i}" for i in others]
    ends = embedding_name(model), head_name(model)
    is_tied = bool(model.all_tied_weights_keys)
    if not place.is_first_stage:
        dropped += outline.before
        if not (is_tied and place.is_last_stage):
            dropped.append(ends[0])
        dropped += outline.positions
    if not place.is_last_stage:
        dropped += outline.after
        if not (is_tied and place.is_first_stage):
            dropped.append(ends[1])
    if not (place.is_first_stage or place.is_last_stage):
        model.all_tied_weights_keys = {}
    for name in dropped:
        replace_module(model, name, PassThrough())


def finish_stage(
    model: nn.Module, outline: Outline, ends: tuple[str, str], place: RankPlace
) -> None:
    """After loading: neither the embedding nor the head where only the other one is used, and
    nothing to add to what comes from an earlier stage."""
    for name, is_used in zip(ends, (place.is_first_stage, place.is_last_stage), strict=True):
        if not is_used:
            replace_module(model, name, PassThrough())
    if not place.is_first_stage:
        # Not earlier: transformers gives every buffer new memory while it loads.
        for name in outline.positions:
            replace_module(model, name, NoPositions())


def check_carries(model: Any, outline: Outline, spec: ModelSpec) -> None:  # noqa: ANN401
    """Raise ModelError unless hidden states without layers come out as they went in.

    Where a model scales or norms them between the embedding and the layers, each stage would do so
    once more. `model` has no weights, and is of no use after this.
    """
    for name in (*outline.before, *outline.after, embedding_name(model), head_name(model)):
        replace_module(model, name, PassThrough())
    layers = [PassThrough() for _ in range(spec.num_layers)]
    replace_module(model, outline.layers, nn.ModuleList(layers))
    for name in outline.positions:
        replace_module(model, name, PassThrough())
    model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(1)
    for name in outline.positions:
        replace_module(model, name, NoPositions())
    hidden = torch.randn(1, CHECKED_ROWS, spec.hidden_size)
    positions = torch.arange(CHECKED_ROWS)[None]
    model_type = model.config.model_type
    try:
        with torch.inference_mode():
            out = model.base_model(inputs_embeds=hidden, position_ids=positions, use_cache=False)
    except Exception as error:  # of every architecture another
        raise ModelError(f"{model_type} cannot be cut into stages: {one_line(error)}") from error
    if not torch.equal(out.last_hidden_state, hidden):
        raise ModelError(f"{model_type} changes hidden states outside its layers: pp must be 1")
