"""A decoder layer of the Llama family whose decode step of one row is two kernels."""

from typing import Any

import numpy as np
import torch
from torch import nn

from engine.cpu.layer_kernels import enter_attention, leave_attention
from engine.cpu.modules import FastAttention, FastGatedMlp, FastLinear, FastRmsNorm


def fits(layer: Any) -> bool:  # noqa: ANN401  a decoder layer of transformers
    """Whether its parts are the fast ones, and only those that the kernels know."""
    attention, mlp = layer.self_attn, layer.mlp
    if not isinstance(attention, FastAttention) or attention.q_norm is not None:
        return False
    if not isinstance(mlp, FastGatedMlp) or not mlp.is_silu:
        return False
    inner: tuple[Any, ...] = (attention.q_proj, attention.k_proj, attention.v_proj)
    outer: tuple[Any, ...] = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return (
        all(isinstance(linear, FastLinear) for linear in (*inner, *outer))
        and all(linear.bias is None for linear in outer)
        and all(isinstance(norm, FastRmsNorm) for norm in norms)
    )


class FastLayer(nn.Module):
    """The layer it is given, except for a single row."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401  a decoder layer of transformers
        super().__init__()
        self.self_attn: FastAttention = layer.self_attn
        self.mlp: FastGatedMlp = layer.mlp
        self.input_layernorm: FastRmsNorm = layer.input_layernorm
        self.post_attention_layernorm: FastRmsNorm = layer.post_attention_layernorm
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = tuple(p.rows for p in qkv)
        no_bias = torch.empty(0)
        self._biases: Any = tuple(
            (no_bias if p.bias is None else p.bias.detach()).numpy() for p in qkv
        )
        outer = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        self._outer = tuple(p.rows for p in outer)
        dim = attention.head_dim
        self._heads = tuple((1, 1, p.out_features // dim, dim) for p in qkv)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        """[1, row, hidden] to the same."""
        if hidden_states.numel() == hidden_states.shape[-1] and torch.get_num_threads() == 1:
            return self._one_row(hidden_states, position_embeddings, kwargs)
        mixed, _ = self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings=position_embeddings, **kwargs
        )
        hidden_states = hidden_states + mixed
        out: torch.Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return out

    def _one_row(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        x = hidden_states.view(1, -1).numpy()
        query, key, value = (torch.empty(shape) for shape in self._heads)
        norm = self.input_layernorm
        cos, sin = position_embeddings
        enter_attention(
            x,
            (norm.row, norm.eps),
            self._qkv,
            self._biases,
            (cos[0].numpy(), sin[0].numpy()),
            (query[0].numpy(), key[0].numpy(), value[0].numpy()),
        )
        mask = kwargs.pop("attention_mask", None)
        mixed = self.self_attn.attend(query, key, value, mask, kwargs)
        norm = self.post_attention_layernorm
        out = torch.empty_like(hidden_states)
        leave_attention(
            x,
            mixed.reshape(-1).numpy(),
            (norm.row, norm.eps),
            self._outer,
            np.empty((2, self.mlp.gate_proj.out_features), np.float32),
            out.view(1, -1).numpy(),
        )
        return out
