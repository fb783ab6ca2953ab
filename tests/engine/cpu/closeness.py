"""How near a product has to be to the one it replaces."""

import torch
from torch.nn import functional


def assert_linear_close(
    got: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """`got` is x @ weight.T + bias in another order of summation: error is of the terms' size, not
    of the sum's, which may be near 0."""
    want = functional.linear(x, weight, bias)
    terms = functional.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert ((got - want).abs() <= 1e-5 * terms).all()
