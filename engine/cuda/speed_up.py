"""Replaces parts of a transformers model by faster equals for CUDA, where it knows them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from engine.cuda.elementwise import rms_norm, silu_times
from engine.cuda.fuse import fuse_siblings


class OnePassNorm(nn.Module):
    """Root mean square norm as one kernel."""

    def __init__(self, weight: torch.Tensor, eps: float, *, round_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps
        self.round_first = round_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] to the same."""
        return rms_norm(x, self.weight, self.eps, round_first=self.round_first)


class OnePassGate(nn.Module):
    """`down(silu(gate(x)) · up(x))` with one kernel between the products."""

    def __init__(self, mlp: Any) -> None:  # noqa: ANN401  a gated MLP of transformers
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        out: torch.Tensor = self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))
        return out


def _llama_norm(norm: Any) -> nn.Module:  # noqa: ANN401
    return OnePassNorm(norm.weight.detach(), norm.variance_epsilon, round_first=True)


def _gemma_norm(norm: Any) -> nn.Module:  # noqa: ANN401
    # In float32: 1 + weight has no room for the weight's last bits in 16.
    return OnePassNorm(1.0 + norm.weight.detach().float(), norm.eps, round_first=False)


def _gated(mlp: Any) -> nn.Module:  # noqa: ANN401
    is_silu = type(mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")
    return OnePassGate(mlp) if is_silu else mlp


FASTER: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    llama.LlamaRMSNorm: _llama_norm,
    mistral.MistralRMSNorm: _llama_norm,
    mixtral.MixtralRMSNorm: _llama_norm,
    qwen2.Qwen2RMSNorm: _llama_norm,
    qwen3.Qwen3RMSNorm: _llama_norm,
    qwen3_moe.Qwen3MoeRMSNorm: _llama_norm,
    gemma3.Gemma3RMSNorm: _gemma_norm,
    llama.LlamaMLP: _gated,
    mistral.MistralMLP: _gated,
    qwen2.Qwen2MLP: _gated,
    qwen3.Qwen3MLP: _gated,
    qwen3_moe.Qwen3MoeMLP: _gated,
}
"""By exact type: a subclass may compute something else, and stays as it is."""


def speed_up(module: nn.Module) -> None:
    """Replace, in place, every part known to have a faster equal, on the device it stays on."""
    fuse_siblings(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (faster := FASTER.get(type(child))) is not None:
                setattr(parent, name, faster(child))
