"""Linear layers whose weights are kept in 8 bits: faster, smaller, and not exact."""

import torch
from torch import nn

from engine.cpu.int8_kernels import Int8Rows, int8_row, int8_rows, to_floats
from engine.cpu.layer import FastLayer
from engine.cpu.modules import FastLinear, product

MAX_INT8_KERNEL_ROWS = 16
"""Up to here our kernels; above, a product of floats is worth the time to make them."""
SCRATCH_BYTES = 8 * 1024 * 1024
"""Floats made at a time. Smaller tiles mean more calls of oneDNN: at 32 rows of
input, tiles of 64 outputs took twice as long as one of 3072 (7 MB)."""
LARGEST = 127
"""So that every value has its negative; -128 stays unused."""


class Int8Linear(nn.Module):
    """A linear layer over a weight rounded to 255 steps per output.

    `scratch` [any] float32 is used during calls and may be shared by layers that take turns.
    """

    def __init__(self, linear: FastLinear, scratch: torch.Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        values, scales = rounded(linear.weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.rows = Int8Rows(values.numpy(), scales.numpy())
        self._scratch = scratch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        num_rows = x.numel() // self.in_features
        if not 0 < num_rows <= MAX_INT8_KERNEL_ROWS:
            return self._many_rows(x)
        rows = x.reshape(num_rows, -1).contiguous().numpy()
        out = x.new_empty((self.out_features, num_rows))
        if num_rows == 1:
            int8_row(rows[0], *self.rows, out.view(-1).numpy())
        else:
            int8_rows(rows, *self.rows, out.numpy())
        out = out.T.contiguous().view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out.add_(self.bias)

    def _many_rows(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty((*x.shape[:-1], self.out_features))
        tile = max(1, self._scratch.numel() // self.in_features)
        for start in range(0, self.out_features, tile):
            stop = min(start + tile, self.out_features)
            bias = None if self.bias is None else self.bias[start:stop]
            out[..., start:stop] = product(x, self._floats(start, stop), bias)
        return out

    def _floats(self, start: int, stop: int) -> torch.Tensor:
        """The weight's rows `start` to `stop`, valid until the next call."""
        weight = self._scratch[: (stop - start) * self.in_features].view(-1, self.in_features)
        values, scales = self.rows
        to_floats(values[start:stop], scales[start:stop], weight.numpy())
        return weight


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [n, k] int8 and scales [n] float32: each row in steps of its largest / 127.

    A row that holds NaN or infinity has a scale that is neither a number nor finite, and so has
    its product.
    """
    scales = weight.abs().amax(dim=1) / LARGEST
    steps = weight / scales.where(scales > 0, torch.ones(()))[:, None]
    return steps.round().nan_to_num().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def quantise(module: nn.Module) -> None:
    """Round, in place, every linear layer that `speed_up` has replaced.

    Embeddings and norms stay as they are. A head tied to the embedding gets rows of its own, a
    byte per weight more: rows of the embedding are still looked up in float32.
    """
    _quantise(module, torch.empty(SCRATCH_BYTES // 4))


def _quantise(module: nn.Module, scratch: torch.Tensor) -> None:
    largest = max((m.in_features for m in module.modules() if isinstance(m, FastLinear)), default=0)
    if largest > scratch.numel():  # a single row must fit
        scratch = torch.empty(largest)
    for name, child in list(module.named_children()):
        if isinstance(child, FastLinear):
            setattr(module, name, Int8Linear(child, scratch))
            continue
        _quantise(child, scratch)
        if isinstance(child, FastLayer):
            # It holds the weights of its parts; those are others now.
            setattr(module, name, FastLayer(child))
