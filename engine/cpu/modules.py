"""Modules that compute what the ones they replace compute, with the kernels of this package."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.cpu.linear_kernels import linear_row, linear_rows
from engine.cpu.row_kernels import gate_silu, rms_norm, rotate

MAX_KERNEL_ROWS = 8
"""Up to here our kernels read weights faster than oneDNN: SmolLM2-135M's, one thread of a Zen 5,
best of 12: at 2 rows 27 GB/s to 14, at 4 rows 19 to 17, at 8 rows 16 to 15; at 16 rows 9 to 11."""


class FastLinear(nn.Module):
    """A linear layer over the same weight and bias: nothing is copied or repacked."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rows = linear.weight.detach().numpy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        num_rows = x.numel() // self.in_features
        if not 0 < num_rows <= MAX_KERNEL_ROWS or torch.get_num_threads() > 1:
            return product(x, self.weight, self.bias)
        out = x.new_empty((*x.shape[:-1], self.out_features))
        if num_rows == 1:
            linear_row(x.reshape(-1).contiguous().numpy(), self.rows, out.view(-1).numpy())
        else:
            rows = x.reshape(num_rows, -1).contiguous()
            linear_rows(rows.numpy(), self.rows, out.view(num_rows, -1).numpy())
        return out if self.bias is None else out.add_(self.bias)


_onednn_linear = torch.ops.mkldnn._linear_pointwise.default


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """oneDNN on the weight as it lies.

    torch asks MKL, which leaves AVX-512 unused on AMD: at 512 rows 100 GFLOP/s to oneDNN's 220.
    """
    out: torch.Tensor = _onednn_linear(x, weight, bias, "none", [], "")
    return out


class FastRmsNorm(nn.Module):
    """Root mean square norm in one pass."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.row = weight.detach().numpy()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] to the same."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty_like(rows)
        rms_norm(rows.numpy(), self.row, self.eps, out.numpy())
        return out.view(x.shape)


class FastGatedMlp(nn.Module):
    """`down(act(gate(x)) · up(x))`."""

    def __init__(self, mlp: Any) -> None:  # noqa: ANN401  of transformers
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn
        self.is_silu = type(mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.is_silu:
            gate_silu(gate.view(-1).numpy(), up.view(-1).numpy())
        else:
            gate = self.act_fn(gate).mul_(up)
        out: torch.Tensor = self.down_proj(gate)
        return out


class FastAttention(nn.Module):
    """Attention with rotary positions: the projections as they are, the rotation in place."""

    def __init__(self, attention: Any, sliding_window: int | None) -> None:  # noqa: ANN401
        """Of an attention module of transformers; without a window every token is seen."""
        super().__init__()
        self.config, self.layer_idx = attention.config, attention.layer_idx
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.num_key_value_groups = attention.num_key_value_groups
        self.is_causal = attention.is_causal
        self.sliding_window = sliding_window
        self.q_proj: nn.Module = attention.q_proj
        self.k_proj: nn.Module = attention.k_proj
        self.v_proj: nn.Module = attention.v_proj
        self.o_proj: nn.Module = attention.o_proj
        # Of Qwen3 and Gemma 3.
        self.q_norm: nn.Module | None = getattr(attention, "q_norm", None)
        self.k_norm: nn.Module | None = getattr(attention, "k_norm", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the module replaced, for a model that is called without a cache of transformers."""
        assert past_key_values is None
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key = self.q_proj(hidden_states).view(heads), self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (part.reshape(-1, self.head_dim).numpy() for part in position_embeddings)
        for part in (query, key):
            rotate(part.view(-1, *part.shape[-2:]).numpy(), cos, sin)
        out = self.attend(query, key, value, attention_mask, kwargs)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Attention alone, by the function that the model's config names: [1, row, head, dim]."""
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        assert isinstance(out, torch.Tensor)
        return out
