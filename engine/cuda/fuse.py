"""Linear layers that are given the same input, as one matrix product."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import linear

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class JoinedLinears(nn.Module):
    """The weights of several linear layers, one below the other."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [one.out_features for one in linears]
        self.weight = _joined([one.weight for one in linears])
        biases = [one.bias for one in linears if one.bias is not None]
        self.bias = _joined(biases) if biases else None
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def part(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """One layer's output, a view. Whoever asks first computes all, for the same tensor only.

        Held until the last has asked, so that no other tensor can take the input's place.
        """
        if x is not self._input or number not in self._outputs:
            parts = torch.split(linear(x, self.weight, self.bias), self.sizes, dim=-1)
            self._input, self._outputs = x, dict(enumerate(parts))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output


class PartOfLinears(nn.Module):
    """Stands where one of the layers stood."""

    def __init__(self, joined: JoinedLinears, number: int) -> None:
        super().__init__()
        self.joined = joined
        self.number = number
        self.in_features = joined.weight.shape[1]
        self.out_features = joined.sizes[number]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return self.joined.part(self.number, x)


def fuse_siblings(module: nn.Module) -> None:
    """Join, in place, the layers of attention's and of gated MLPs' inputs, wherever they are plain.

    On the device where the weights are to stay: for a moment one of them is there twice.
    """
    for parent in list(module.modules()):
        for names in SIBLINGS:
            linears = [getattr(parent, name, None) for name in names]
            if plain := [one for one in linears if type(one) is nn.Linear]:
                _fuse(parent, names, plain)


def _fuse(parent: nn.Module, names: Sequence[str], linears: Sequence[nn.Linear]) -> None:
    has_bias = {one.bias is not None for one in linears}
    widths = {one.in_features for one in linears}
    if len(linears) < len(names) or len(has_bias) > 1 or len(widths) > 1:
        return
    joined = JoinedLinears(linears)
    for number, name in enumerate(names):
        setattr(parent, name, PartOfLinears(joined, number))


def _joined(parameters: Sequence[torch.Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([p.detach() for p in parameters]), requires_grad=False)
