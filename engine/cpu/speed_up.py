"""Replaces parts of a transformers model by faster equals, where it knows them."""

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

from engine.cpu.layer import FastLayer, fits
from engine.cpu.modules import FastAttention, FastGatedMlp, FastLinear, FastRmsNorm


def _linear(linear: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastLinear(linear) if linear.weight.is_contiguous() else linear


def _rms_norm(norm: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastRmsNorm(norm.weight, norm.variance_epsilon)


def _gemma_norm(norm: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastRmsNorm(1.0 + norm.weight.detach(), norm.eps)


def _window_of_config(attention: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastAttention(attention, getattr(attention.config, "sliding_window", None))


def _window_of_module(attention: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastAttention(attention, attention.sliding_window)


def _no_window(attention: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastAttention(attention, None)


def _layer(layer: Any) -> nn.Module:  # noqa: ANN401  of transformers
    return FastLayer(layer) if fits(layer) else layer


FASTER: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: _linear,
    llama.LlamaRMSNorm: _rms_norm,
    mistral.MistralRMSNorm: _rms_norm,
    mixtral.MixtralRMSNorm: _rms_norm,
    qwen2.Qwen2RMSNorm: _rms_norm,
    qwen3.Qwen3RMSNorm: _rms_norm,
    qwen3_moe.Qwen3MoeRMSNorm: _rms_norm,
    gemma3.Gemma3RMSNorm: _gemma_norm,
    llama.LlamaMLP: FastGatedMlp,
    mistral.MistralMLP: FastGatedMlp,
    qwen2.Qwen2MLP: FastGatedMlp,
    qwen3.Qwen3MLP: FastGatedMlp,
    qwen3_moe.Qwen3MoeMLP: FastGatedMlp,
    gemma3.Gemma3MLP: FastGatedMlp,
    llama.LlamaAttention: _no_window,
    mistral.MistralAttention: _window_of_config,
    mixtral.MixtralAttention: _window_of_config,
    qwen2.Qwen2Attention: _window_of_module,
    qwen3.Qwen3Attention: _window_of_module,
    qwen3_moe.Qwen3MoeAttention: _window_of_module,
    gemma3.Gemma3Attention: _window_of_module,
    llama.LlamaDecoderLayer: _layer,
    mistral.MistralDecoderLayer: _layer,
    qwen2.Qwen2DecoderLayer: _layer,
}
"""By exact type: a subclass may compute something else, and stays as it is."""


def speed_up(module: nn.Module) -> None:
    """Replace, in place, every part known to have a faster equal; float32 on a CPU only.

    Parameters stay the same objects, so tied weights stay tied.
    """
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in module.parameters()):
        return
    for name, child in list(module.named_children()):
        speed_up(child)
        if (faster := FASTER.get(type(child))) is not None:
            setattr(module, name, faster(child))
